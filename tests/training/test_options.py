"""Options of training."""

from __future__ import annotations

from typing import Any

import pytest

from scale_export.core.errors import UserError
from scale_export.training.options import TrainOptions


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"bound": 0.0}, "bound is 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"replay": 1.0}, r"replay is 1.0; give a share of non-spatial questions in \[0, 1\)"),
        ({"select": 0}, "select is 0"),
        ({"patience": 0}, "patience is 0"),
        ({"cache_mib": -1}, "cache_mib is -1"),
        ({"sites": "head"}, r"sites is 'head' \(did you mean 'heads'\?\); give one of heads, mlp, both"),
        ({"scope": "lest"}, r"scope is 'lest' \(did you mean 'last'\?\)"),
    ],
)
def test_options_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainOptions(**changes)
