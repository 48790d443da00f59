"""Bugs planted in the emission of quantized graphs alone: the lowering leg holds the very graphs that ship."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scale_export.backends.coreml import graphs as GRAPHS
from scale_export.backends.interface import Emission, GraphBackend, graph_backend
from scale_export.coefficients.file import Coefficients
from scale_export.core.words import INTEGER
from scale_export.plan.targets import load_target
from tests.helpers.reports import report_of

Break = Callable[[Coefficients], Coefficients]


def first_layer_dropped(right: Coefficients) -> Coefficients:
    """Layer 0's heads are not scaled."""
    return replace(right, head_scale=(np.ones_like(right.head_scale[0]), *right.head_scale[1:]))


def two_heads_swapped(right: Coefficients) -> Coefficients:
    first = right.head_scale[0]
    return replace(right, head_scale=(np.concatenate((first[1::-1], first[2:])), *right.head_scale[1:]))


def mlp_forgotten(right: Coefficients) -> Coefficients:
    return replace(right, mlp_scale=np.ones_like(right.mlp_scale))


def no_scalars(right: Coefficients) -> Coefficients:
    """All of them 1, which is the base model."""
    return replace(mlp_forgotten(right), head_scale=tuple(np.ones_like(row) for row in right.head_scale))


def plant(monkeypatch: pytest.MonkeyPatch, target: str, broken: Break) -> None:
    """A backend whose quantized graphs, and no others, are emitted with other scalars than they were given."""
    kind = type(graph_backend(load_target(target).backend))
    emit = kind.emit

    def planted(self: GraphBackend, emission: Emission, directory: Path) -> dict[str, str]:
        decoder = emission.decoder
        if emission.precision in INTEGER:
            decoder = replace(decoder, coefficients=broken(decoder.coefficients))
        return emit(self, replace(emission, decoder=decoder), directory)

    monkeypatch.setattr(kind, "emit", planted)


EVERYWHERE = [
    ("cpu", "int8"),
    ("cpu", "w8a8"),
    ("coreml", "int8"),
    ("coreml", "int4"),
    ("coreai", "int4"),
]


@pytest.mark.parametrize(("target", "precision"), [("cpu", "int4"), *EVERYWHERE])
def test_a_sound_emission_is_held_to_the_limit(base_of: Any, tmp_path: Path, target: str, precision: str):
    if target == "coreai":
        pytest.importorskip("coreai_torch")
    leg = report_of(base_of("llava", "llama"), tmp_path, target, precision).lowering
    assert leg is not None and leg.passed, leg and leg.to_json()
    assert {error.metric for error in leg.front} and leg.weights == (
        None if precision == "w8a8" else "dequantized"
    )


def test_a_residual_stream_that_carries_a_factor_is_held_in_the_base_models_units(
    base_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Gemma 3's on Core ML, where embedded tokens and pictures carry it."""
    base = base_of("gemma3", "own")
    (tmp_path / "sound").mkdir()
    leg = report_of(base, tmp_path / "sound", "coreml", "int8").lowering
    assert leg is not None and leg.passed and len(leg.front) == 2 and leg.context, leg and leg.to_json()
    factor = GRAPHS.residual_scale
    monkeypatch.setattr(GRAPHS, "residual_scale", lambda *args, **named: 2 * factor(*args, **named))
    (tmp_path / "wrong").mkdir()
    assert "lowering" in report_of(base, tmp_path / "wrong", "coreml", "int8").failed


@pytest.mark.parametrize("broken", [first_layer_dropped, two_heads_swapped, mlp_forgotten, no_scalars])
def test_scalars_that_only_the_quantized_graph_lacks(
    base_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: Break
):
    plant(monkeypatch, "cpu", broken)
    report = report_of(base_of("llava", "llama"), tmp_path, "cpu", "int4")
    assert "lowering" in report.failed and report.fold is not None and report.fold.passed


@pytest.mark.parametrize(("target", "precision"), EVERYWHERE)
def test_two_swapped_heads_on_every_backend(
    base_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, precision: str
):
    if target == "coreai":
        pytest.importorskip("coreai_torch")
    plant(monkeypatch, target, two_heads_swapped)
    report = report_of(base_of("llava", "llama"), tmp_path, target, precision)
    assert "lowering" in report.failed
