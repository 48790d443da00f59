"""Maps of scalars and of sensitivities: every value named, and nothing unmeasured that looks measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scale_export.charts.maps import heat_map, sensitivity_map
from scale_export.charts.style import to_svg
from tests.helpers.figures import colour_at, drawn, scalars, texts


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
