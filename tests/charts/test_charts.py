"""The drawings: what they say, equal bytes for equal numbers, and nothing unmeasured that looks measured."""

from __future__ import annotations

import subprocess
import sys
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.collections import PathCollection
from PIL import Image

from scale_export.charts.accuracy import AccuracyBar, FrontierPoint, accuracy_bars, frontier_chart
from scale_export.charts.errors import LegError, leg_chart
from scale_export.charts.maps import heat_map, sensitivity_map
from scale_export.charts.style import FAILED, INK, PASSED, SERIES, save_png, short_number, to_svg


def scalars(layers: int, heads: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(layers * 100 + heads)
    attn, mlp = 1 + np.tanh(rng.normal(0, 0.5, (layers, heads))), 1 + np.tanh(rng.normal(0, 0.5, layers))
    return attn.astype(np.float32), mlp.astype(np.float32)


def texts(figure) -> list[str]:
    """Everything that is written in a figure, in its order in the SVG."""
    root = ElementTree.fromstring(to_svg(figure))
    return ["".join(node.itertext()).strip() for node in root.iter("{http://www.w3.org/2000/svg}text")]


def bars() -> list[AccuracyBar]:
    values = {"base": 0.421, "PyTorch ScAle": 0.733, "export": 0.728}
    return [
        AccuracyBar(model=model, kind=kind, value=value, low=value - 0.03, high=value + 0.03, cases=768)
        for kind in ("spatial", "other")
        for model, value in values.items()
    ]


def test_numbers_are_short_and_honest():
    numbers = [0, 0.731, 1.0, 24, 1234, 7.21e-7, 1e-5, 1.25e6, -0.0418, float("inf"), float("nan")]
    shown = [short_number(number) for number in numbers]
    assert shown == ["0", "0.731", "1", "24", "1234", "7.2e-7", "1e-5", "1.2e6", "-0.0418", "∞", "NaN"]


def colour_at(image: Image.Image, place: tuple[float, float]) -> np.ndarray:
    size = np.array(image.size)
    x, y = (np.array(place) * size).astype(int)
    return np.asarray(image.convert("RGB"))[y, x].astype(int)


def drawn(figure) -> Image.Image:
    buffer = BytesIO()
    save_png(figure, buffer)
    return Image.open(buffer)


def test_heat_map_names_every_scalar_and_the_scope():
    attn, mlp = scalars(3, 2)
    found = texts(heat_map(attn, mlp, title="tiny", scope="last"))
    for value in [*attn.ravel(), *mlp]:
        assert f"{value:.2f}" in found
    assert {"tiny", "MLP", "query head", "decoder layer"} <= set(found)
    assert "scalar s, acting on the last token (1 = base model)" in found
    assert any("every token" in t for t in texts(heat_map(attn, mlp, title="", scope="all")))


def test_heat_map_is_centred_at_one():
    attn = np.array([[1.0, 1.5], [0.6, 1.0]])
    image = drawn(heat_map(attn, np.ones(2), title="", scope="last"))
    white, red, blue = (colour_at(image, place) for place in ((0.2, 0.1), (0.5, 0.1), (0.2, 0.4)))
    assert white.min() > 240
    assert red[0] > 2 * red[1:].max()
    assert blue[2] > 2 * blue[0]
    untouched = drawn(heat_map(np.ones((2, 2)), np.ones(2), title="", scope="last"))
    assert colour_at(untouched, (0.4, 0.1)).min() > 240


@pytest.mark.parametrize(("layers", "heads"), [(1, 1), (2, 2), (28, 16), (64, 64)])
def test_heat_map_sizes(layers, heads):
    figure = heat_map(*scalars(layers, heads), title="", scope="last")
    image = drawn(figure)
    assert image.width == 736
    assert 200 < image.height < 1600
    assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 20
    ticks = [t for t in texts(figure) if t.isdigit()]
    assert len(ticks) <= 32
    assert len(to_svg(figure)) < 150_000


def test_sensitivities_that_were_not_measured_are_hatched_and_named():
    attn = np.array([[0.1, -0.2], [np.nan, 0.05]])
    figure = sensitivity_map(attn, np.full(2, np.nan), layers=[3, 7], title="", label="Δ loss, nats")
    found = texts(figure)
    assert {"0.1", "−0.2", "0.05", "3", "7", "Δ loss, nats; hatched: not measured"} <= set(found)
    assert "0" not in [t for t in found if t not in ("0", "1")]
    assert "nan" not in " ".join(found).lower()
    assert "<pattern" in to_svg(figure)
    measured = sensitivity_map(np.ones((2, 2)), np.ones(2), layers=[3, 7], title="", label="Δ loss, nats")
    assert "<pattern" not in to_svg(measured)
    assert "Δ loss, nats" in texts(measured)


@pytest.mark.parametrize("shapes", [((2, 2), (3,)), ((0, 2), (0,)), ((2,), (2,))])
def test_maps_refuse_shapes_that_do_not_fit(shapes):
    with pytest.raises(ValueError, match=r"a map needs \[L, H\]"):
        heat_map(np.ones(shapes[0]), np.ones(shapes[1]), title="", scope="last")


def test_accuracy_bars_say_their_values_models_and_cases():
    figure = accuracy_bars(bars())
    found = texts(figure)
    assert found.count("42.1") == found.count("73.3") == found.count("72.8") == 2
    assert {"base", "PyTorch ScAle", "export", "spatial", "other", "768 questions"} <= set(found)
    heights = [patch.get_height() for patch in figure.axes[0].patches]
    assert heights == pytest.approx([0.421, 0.421, 0.733, 0.733, 0.728, 0.728])
    whiskers = [line.get_segments() for line in figure.axes[0].collections]
    assert whiskers[0][0][:, 1] == pytest.approx([0.391, 0.451])
    with pytest.raises(ValueError, match="0 models"):
        accuracy_bars([])
    crowd = [AccuracyBar(model=str(i), kind="all", value=0.5, low=0.4, high=0.6, cases=9) for i in range(6)]
    with pytest.raises(ValueError, match=f"1 to {len(SERIES)} can"):
        accuracy_bars(crowd)


def leg(value: float | None, limit: float | None, name: str = "fold") -> LegError:
    return LegError(leg=name, metric="KL", value=value, limit=limit)


@pytest.mark.parametrize(
    ("value", "limit", "passed", "words"),
    [
        (1e-6, 1e-5, True, "KL 1e-6 (limit 1e-5)"),
        (2e-5, 1e-5, False, "KL 2e-5 (limit 1e-5)"),
        (0.0, 1.0, True, "KL 0 (limit 1)"),
        (0.0, 0.0, True, "KL 0 (limit 0)"),
        (0.1, 0.0, False, "KL 0.1 (limit 0)"),
        (-0.02, 0.05, True, "KL -0.02 (limit 0.05)"),
        (float("inf"), 1.0, False, "KL ∞ (limit 1)"),
        (float("nan"), 1.0, False, "KL NaN (limit 1)"),
        (1e-14, 1.0, True, "KL 1e-14 (limit 1)"),
        (0.3, None, None, "KL 0.3 (no limit)"),
        (None, 1e-5, None, "not checked"),
    ],
)
def test_leg_chart_marks_what_passed_and_what_did_not(value, limit, passed, words):
    only = leg(value, limit)
    figure = leg_chart([only])
    assert only.passed is passed
    assert [" ".join(t.split()) for t in texts(figure)][-2:] == ["fold", words]
    svg = to_svg(figure)
    marks = [c for c in figure.axes[0].collections if isinstance(c, PathCollection)]
    assert (len(marks) == 1) is (passed is not None)
    assert (f"stroke: {PASSED}" in svg) is (passed is True)
    if passed is False:
        assert f"fill: {FAILED}" in svg
    left, right = figure.axes[0].get_xlim()
    for mark in marks:
        (place, _), (_, top) = mark.get_offsets()[0], figure.axes[0].get_ylim()
        assert left <= place <= right
        assert bool(place <= 1) is passed
        assert top < 0


def test_leg_chart_names_a_leg_once_and_never_draws_the_unchecked():
    figure = leg_chart([leg(0.1, 1, "quantization"), leg(0.2, 1, "quantization"), leg(None, None, "task")])
    found = texts(figure)
    assert found.count("quantization") == 1
    assert found.count("not checked") == 1
    assert "0" not in found
    with pytest.raises(ValueError, match="no legs"):
        leg_chart([])


def figures():
    yield heat_map(*scalars(4, 4), title="tiny", scope="last")
    yield sensitivity_map(np.array([[np.nan, 1.0]]), np.zeros(1), layers=[0], title="", label="x")
    yield accuracy_bars(bars())
    yield leg_chart([leg(1e-6, 1e-5), leg(3.0, 1.0), leg(None, None)])


def test_same_numbers_same_bytes(tmp_path, monkeypatch):
    first = [to_svg(figure, name="a") for figure in figures()]
    for number, figure in enumerate(figures()):
        save_png(figure, tmp_path / f"{number}.png")
    import matplotlib

    # A user's settings must not show.
    monkeypatch.setitem(matplotlib.rcParams, "axes.facecolor", "black")
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 20.0)
    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "path")
    for number, figure in enumerate(figures()):
        assert to_svg(figure, name="a") == first[number]
        save_png(figure, tmp_path / "again.png")
        assert (tmp_path / "again.png").read_bytes() == (tmp_path / f"{number}.png").read_bytes()
    assert matplotlib.rcParams["font.size"] == 20.0


def test_svgs_stand_on_any_page():
    ids: list[str] = []
    for number, figure in enumerate(figures()):
        svg = to_svg(figure, name=str(number))
        root = ElementTree.fromstring(svg)
        assert root.tag.endswith("svg")
        assert INK not in svg
        assert "currentColor" in svg
        assert "<metadata" not in svg
        assert "rdf" not in svg
        own = [node.get("id") for node in root.iter() if node.get("id")]
        for name in own:
            assert f"#{name}" in svg
        ids += own
    assert len(ids) == len(set(ids))


def test_png_is_on_white_without_a_date(tmp_path):
    path = tmp_path / "bars.png"
    save_png(accuracy_bars(bars()), path)
    image = Image.open(path)
    assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    assert not {"Software", "Creation Time", "date"} & set(image.info)


def test_titles_are_text_and_never_formulas():
    found = texts(heat_map(*scalars(2, 2), title=r"$\frac{broken <b>&amp;", scope="last"))
    assert r"$\frac{broken <b>&amp;" in found


def test_importing_draws_no_framework_in():
    """``inspect`` and the report import this file: matplotlib waits until something is drawn."""
    heavy = "[m for m in ('matplotlib', 'torch', 'scipy') if m in sys.modules]"
    code = f"import sys, scale_export.charts.maps; print({heavy})"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.strip() == "[]"


def test_the_frontier_shows_every_point_and_marks_the_chosen_one():
    points = [
        FrontierPoint(size=1_000_000 - 40_000 * i, kl=0.001 * i, accuracy=0.92 - 0.002 * i, chosen=i == 3)
        for i in range(8)
    ]
    figure = frontier_chart(points, 0.93)
    accuracy, divergence = figure.axes
    np.testing.assert_allclose(accuracy.lines[1].get_xydata()[:, 0], [p.size / 1e6 for p in points])
    np.testing.assert_allclose(divergence.lines[0].get_xydata()[:, 1], [p.kl for p in points])
    for ax in figure.axes:
        np.testing.assert_allclose(ax.collections[0].get_offsets()[:, 0], [points[3].size / 1e6])
    assert to_svg(figure).count("<svg") == 1
    with pytest.raises(ValueError, match="no points"):
        frontier_chart([], 0.9)
