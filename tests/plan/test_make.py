"""Planning: which fold mode is chosen and why, and every refusal before a weight is read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from scale_export.core.errors import UserError
from scale_export.core.records import DecoderSpec
from scale_export.plan.fold_choice import scaled_layers
from scale_export.plan.make import _placement, make_plan
from scale_export.plan.options import ExportOptions
from scale_export.plan.targets import load_target
from tests.helpers.coefficients import random_coefficients

CPU = load_target("cpu")


def plan_of(base: Any, scope: Any = "last", layers: Any = None, target: Any = CPU, **options: Any) -> Any:
    return make_plan(random_coefficients(base, scope, layers), base, target, ExportOptions(**options))


@pytest.mark.parametrize(
    ("scope", "layers", "mode", "reason"),
    [
        ("all", None, "weights", "act on every token"),
        ("last", None, "gate", "act on the last token only"),
        ("last", (2,), "weights", "only the final decoder layer"),
        ("last", (1,), "gate", "layers before the final one (1)"),
    ],
)
def test_auto_takes_the_cheapest_exact_mode_and_says_why(
    base_of: Any, scope: Any, layers: Any, mode: str, reason: str
):
    plan = plan_of(base_of("llava", "llama"), scope, layers)
    assert plan.fold == mode
    assert reason in plan.decisions[0]


def test_layers_whose_scalars_are_all_one_do_not_count(base_of: Any):
    base = base_of("llava", "llama")
    coefficients = random_coefficients(base)
    ones = np.ones(base.spec.num_heads, np.float32)
    quiet = replace(
        coefficients,
        head_scale=(ones, ones, coefficients.head_scale[2]),
        mlp_scale=np.array([1, 1, 0.5], np.float32),
    )
    assert scaled_layers(quiet) == (2,)
    assert make_plan(quiet, base, CPU, ExportOptions()).fold == "weights"


@pytest.mark.parametrize(
    ("scope", "options", "words"),
    [
        ("last", {"fold": "weights"}, ("scale every token", "--fold gate", "--fold two-phase")),
        ("all", {"fold": "two-phase"}, ("leave the prompt unscaled", "--fold weights")),
        ("last", {"fold": "wieghts"}, ("did you mean 'weights'",)),
        ("last", {"precision": "int3"}, ("--precision 'int3' is unknown (did you mean 'int8'?)", "int4")),
        (
            "last",
            {"precision": "int4", "block_size": 48},
            ("no runtime here has kernels", "16, 32, 64, 128, 256"),
        ),
        ("last", {"precision": "int4", "block_size": 8}, ("block size 8 is refused",)),
        ("last", {"precision": "int8", "block_size": 512}, ("block size 512 is refused",)),
        ("last", {"precision": "int4", "block_size": 1024}, ("block size 1024 is refused",)),
        ("last", {"precision": "int4", "block_size": 128}, ("hidden size 64", "give --block-size 64")),
        ("all", {"precision": "int4", "block_size": 64, "fold": "weights"}, ("straddle", "divides head_dim")),
    ],
)
def test_refusals_say_what_why_and_the_way_out(
    base_of: Any, scope: Any, options: Any, words: tuple[str, ...]
):
    with pytest.raises(UserError) as refusal:
        plan_of(base_of("llava", "llama"), scope, **options)
    for word in words:
        assert word in str(refusal.value)


def test_auto_gates_where_blocks_straddle_heads(base_of: Any):
    plan = plan_of(base_of("llava", "llama"), "all", precision="int4", block_size=64)
    assert plan.fold == "gate"
    assert "straddle" in plan.decisions[0]


def test_a_target_without_the_mode_is_refused(base_of: Any):
    narrow = CPU.model_copy(update={"fold_modes": ("weights",)})
    with pytest.raises(UserError, match="no fold mode is exact here"):
        plan_of(base_of("llava", "llama"), target=narrow)


def test_another_base_model_is_refused(base_of: Any):
    coefficients = random_coefficients(base_of("llava", "llama"))
    with pytest.raises(UserError):
        make_plan(coefficients, base_of("llava", "qwen2"), CPU, ExportOptions())


def test_context_is_the_smaller_of_target_and_model(base_of: Any):
    assert plan_of(base_of("llava", "llama")).context_length == 512
    short = CPU.model_copy(update={"context_length": 100})
    assert plan_of(base_of("llava", "llama"), target=short).context_length == 100


def test_a_head_dim_that_keeps_off_the_neural_engine_is_said():
    spec = DecoderSpec(
        hidden_size=64,
        intermediate_size=64,
        vocab_size=8,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=48,
        rms_norm_eps=1e-5,
        rotaries=(),
        layer_rotaries=(),
        max_positions=8,
        sliding_windows=(None,),
    )
    assert "head_dim 48" in _placement(spec, load_target("iphone"))[0]
    assert not _placement(spec, load_target("coreml"))
    assert not _placement(replace(spec, head_dim=64), load_target("iphone"))
