"""A package in the hub's cache answers as it does elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scale_export import open_package, verify
from scale_export.device.onnxruntime.engine import open_session
from tests.helpers.packages import in_hub_cache
from tests.helpers.pictures import picture


def test_it_answers_as_before(package: Path, tmp_path: Path) -> None:
    snapshot = in_hub_cache(package, tmp_path / "hub")
    found, expected = (
        open_package(path, threads=1).logits([picture()], "hello") for path in (snapshot, package)
    )
    np.testing.assert_array_equal(found, expected)
    assert verify(snapshot, selftest_only=True).passed


@pytest.mark.parametrize("name", ["decoder.onnx", "vision.onnx", "embedding.onnx"])
def test_its_graphs_open_on_strict_kernels(name: str, package: Path, tmp_path: Path) -> None:
    snapshot = in_hub_cache(package, tmp_path / "hub")
    found, expected = (
        open_session(folder / name, providers=["CPUExecutionProvider"], strict=True)
        for folder in (snapshot, package)
    )
    signatures = [[(o.name, o.shape) for o in session.get_outputs()] for session in (found, expected)]
    assert signatures[0] == signatures[1] != []
