"""Options of training."""

from __future__ import annotations

from typing import Any

import pytest

from scale_export.core.errors import UserError
from scale_export.training.options import TrainOptions


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "--steps 0 is refused: give 1 or more"),
        ({"batch_size": -1}, "--batch-size -1 is refused"),
        ({"bound": 0.0}, "--bound 0.0 is refused"),
        ({"learning_rate": float("nan")}, "--lr nan is refused"),
        ({"replay": 1.0}, "--replay 1.0 is refused"),
        ({"select": 0}, "--select 0 is refused"),
        ({"patience": -1}, "--patience -1 is refused"),
        ({"cache_mib": -1}, "cache_mib -1 is refused"),
        (
            {"sites": "head"},
            r"--sites 'head' is unknown \(did you mean 'heads'\?\): known are heads, mlp, both",
        ),
        ({"scope": "lest"}, r"--scope 'lest' is unknown \(did you mean 'last'\?\)"),
    ],
)
def test_options_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainOptions(**changes)
