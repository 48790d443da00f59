"""Every family does what ``docs/families.md`` and ``scale-export families`` say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scale_export.core.compare import relative_error
from scale_export.core.limits import FOLD_RELATIVE
from scale_export.device.engine import Scalars
from scale_export.families import family_names
from scale_export.model.folding import fold
from tests.families.proof import (
    COLUMNS,
    PAGE,
    TABLE,
    Subject,
    engine_path,
    hooked_path,
    missed,
    page,
    proof,
    subject,
)
from tests.helpers.emission import reference
from tests.helpers.models import FAMILIES
from tests.helpers.sabotage import drop_layer, swap_heads

RECORDED = json.loads(TABLE.read_text(encoding="utf-8"))


def test_every_family_is_proved_and_the_page_is_the_table():
    assert sorted(RECORDED["worst"]) == sorted(FAMILIES) == family_names()
    assert PAGE.read_text(encoding="utf-8") == page(RECORDED)
    for family, errors in RECORDED["worst"].items():
        assert set(errors) == set(COLUMNS), family
        assert not missed(errors), family


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_column_is_within_its_limit(family: str, tmp_path: Path):
    errors = proof(family, tmp_path)
    assert not missed(errors), errors


def gated(measured: Subject, broken: Any = None) -> Any:
    """The portable decoder with its scalars as they are, or broken."""
    asked = reference(measured.plan, measured.folded)
    if broken is not None:
        attn, mlp = broken(*measured.folded.dense())
        asked.scalars = Scalars(attn=attn, mlp=mlp)
    return asked


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_wrong_scalars_naive_folds_and_shifted_pictures_are_far_off(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    measured = subject(family, tmp_path / "model")
    inputs = measured.prompts[3]
    expected = hooked_path(measured, inputs)

    def error(asked: Any) -> float:
        return relative_error(expected, engine_path(asked, inputs, "whole"))

    assert error(gated(measured)) <= FOLD_RELATIVE
    for broken in (swap_heads, drop_layer):
        assert error(gated(measured, broken)) > 100 * FOLD_RELATIVE, broken.__name__
    naive = replace(measured.plan, fold="weights")
    folded = fold(measured.base.weights, measured.plan.coefficients, "weights")
    assert error(reference(naive, folded)) > 100 * FOLD_RELATIVE
    shifted = gated(measured)
    embed = shifted.engine.embed
    monkeypatch.setattr(
        shifted.engine, "embed", lambda ids, features: embed(ids, np.roll(features, 1, axis=0))
    )
    assert error(shifted) > 100 * FOLD_RELATIVE
