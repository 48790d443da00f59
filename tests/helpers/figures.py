"""Made-up numbers to draw, and what can be read off a drawing."""

from __future__ import annotations

from io import BytesIO
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from scale_export.charts.accuracy import AccuracyBar
from scale_export.charts.errors import LegError
from scale_export.charts.style import save_png, to_svg


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


def colour_at(image: Image.Image, place: tuple[float, float]) -> np.ndarray:
    size = np.array(image.size)
    x, y = (np.array(place) * size).astype(int)
    return np.asarray(image.convert("RGB"))[y, x].astype(int)


def drawn(figure) -> Image.Image:
    buffer = BytesIO()
    save_png(figure, buffer)
    return Image.open(buffer)


def leg(value: float | None, limit: float | None, name: str = "fold") -> LegError:
    return LegError(leg=name, metric="KL", value=value, limit=limit)
