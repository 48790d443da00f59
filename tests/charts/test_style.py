"""What all drawings share: short numbers, equal bytes for equal numbers, and files that stand on any page."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
from PIL import Image

from scale_export.charts.accuracy import accuracy_bars
from scale_export.charts.errors import leg_chart
from scale_export.charts.maps import heat_map, sensitivity_map
from scale_export.charts.style import INK, save_png, short_number, to_svg
from tests.helpers.figures import bars, leg, scalars


def test_numbers_are_short_and_honest():
    numbers = [0, 0.731, 1.0, 24, 1234, 7.21e-7, 1e-5, 1.25e6, -0.0418, float("inf"), float("nan")]
    shown = [short_number(number) for number in numbers]
    assert shown == ["0", "0.731", "1", "24", "1234", "7.2e-7", "1e-5", "1.2e6", "-0.0418", "∞", "NaN"]


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
