"""Every operation against PyTorch or plain Python, and against what coremltools itself computes of constants."""

from __future__ import annotations

from pathlib import Path

import pytest

from scale_export.mil import REGISTRY

from .cases import CASES, passes


def test_every_operation_has_cases():
    assert REGISTRY.keys() == CASES.keys()


@pytest.mark.parametrize("type", sorted(REGISTRY))
def test_operation(type: str):
    failed = [case.inputs for case in CASES[type] if not passes(REGISTRY[type], case)]
    assert not failed


def test_every_operation_is_documented():
    page = (Path(__file__).parents[2] / "docs/mil.md").read_text(encoding="utf-8")
    assert all(f"`{type}`" in page for type in REGISTRY)
