"""What a decoder computes in beside integer weights: as asked, or the target's own; or there is no choice."""

from __future__ import annotations

from typing import Any

import pytest

from scale_export.core.errors import UserError
from scale_export.core.words import FloatType, Precision
from scale_export.plan.estimate import matrix_bytes
from scale_export.plan.make import make_plan
from scale_export.plan.options import ExportOptions
from scale_export.plan.record import Plan
from scale_export.plan.targets import load_target
from tests.helpers.coefficients import random_coefficients


def planned(base_of: Any, name: str, precision: Precision | None, activations: FloatType | None) -> Plan:
    base = base_of("llava", "llama")
    scope = "all" if name == "checkpoint" else "last"
    options = ExportOptions(precision=precision, activations=activations, calib="none")
    return make_plan(random_coefficients(base, scope), base, load_target(name), options)


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("name", ["cpu", "web", "android"])
def test_float16_is_asked_for(base_of: Any, name: str, precision: Precision) -> None:
    asked, own = (planned(base_of, name, precision, chosen) for chosen in ("float16", None))
    assert (asked.float_types, own.float_types) == (("float16",) * 2, ("float32",) * 2)
    assert asked.vision_precision == own.vision_precision == "float32"
    assert matrix_bytes(asked) < matrix_bytes(own), "block scales take two bytes"
    said = [sentence for sentence in asked.decisions if "float16" in sentence]
    assert len(said) == 1 and "as asked" in said[0] and "0.002" in said[0]
    assert not any("float16" in sentence for sentence in own.decisions)


def test_what_the_target_or_the_weights_say_anyway_is_no_mistake(base_of: Any) -> None:
    for name, precision, same in (
        ("web", "int4", "float32"),
        ("cpu", "float16", "float16"),
        ("coreml", "int8", "float16"),
    ):
        asked, own = planned(base_of, name, precision, same), planned(base_of, name, precision, None)  # type: ignore[arg-type]
        assert asked.float_types == own.float_types and asked.target == own.target


@pytest.mark.parametrize(
    ("name", "precision", "activations", "words"),
    [
        (
            "cpu",
            "float32",
            "float16",
            "float32 weights compute in float32; leave it out, or use --precision int8 or",
        ),
        ("cpu", "w8a8", "float16", "w8a8 weights compute in float32"),
        ("coreml", "int4", "float32", "target coreml computes in float16; leave it out"),
        ("checkpoint", None, "float16", "a checkpoint holds weights, .* leave --activations out"),
        ("cpu", "int4", "bfloat16", "--activations 'bfloat16' is unknown"),
    ],
)
def test_what_leaves_no_choice_is_refused(
    base_of: Any, name: str, precision: Any, activations: Any, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        planned(base_of, name, precision, activations)
