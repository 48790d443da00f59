"""The bits of int4 where nobody asks: what 4 bits hurt most has 8, wherever a package can hold both."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from scale_export.plan import again
from scale_export.plan.bits import DEFAULT_MIX, other_bits, spared
from scale_export.plan.make import DEFAULT_BITS, with_bits
from scale_export.plan.options import Origins
from scale_export.plan.targets import load_target
from tests.helpers.plans import plan_of


def wide(spec: Any) -> dict[str, int]:
    return {name: bits for name, bits in spared(spec).items() if bits == 8}


@pytest.mark.parametrize(("target", "fixed"), [("cpu", {}), ("coreml", {"embedding": 8})])
def test_int4_spares_what_it_hurts_most(base_of: Any, target: str, fixed: dict[str, int]):
    base = base_of("llava", "llama")
    plan = plan_of(base, target, quantizer="rtn")
    assert dict(plan.other_bits) == wide(base.spec) | fixed
    assert "lm_head" in plan.other_bits and "layers.1.v_proj" in plan.other_bits
    assert "layers.1.down_proj" not in plan.other_bits and "layers.0.down_proj" in plan.other_bits
    assert any(DEFAULT_BITS in decision for decision in plan.decisions)
    assert plan_of(base, target, quantizer="rtn", bits="uniform").other_bits == fixed
    assert plan_of(base, target, quantizer="rtn", bits=DEFAULT_MIX).other_bits == plan.other_bits


def test_other_precisions_and_backends_have_one_width(base_of: Any):
    base = base_of("llava", "llama")
    assert not plan_of(base, precision="int8", quantizer="rtn").other_bits
    assert not plan_of(base, "coreai", quantizer="rtn").other_bits


def test_a_budget_takes_the_place_of_the_default(base_of: Any):
    plan = plan_of(base_of("llava", "llama"))
    found = with_bits(plan, {"layers.0.q_proj": 8}, "--budget")
    assert found.other_bits == {"layers.0.q_proj": 8}
    assert not any(DEFAULT_BITS in decision for decision in found.decisions)


@pytest.mark.parametrize(("asked", "expected"), [({"lm_head": 8}, 8), ({"lm_head": 8, "embedding": 4}, 4)])
def test_a_tied_table_follows_its_head(base_of: Any, asked: dict[str, int], expected: int):
    spec, cpu = base_of("llava", "llama").spec, load_target("cpu")
    found = other_bits(asked, spec, cpu, "int4", tied=True)
    assert found.get("embedding", 4) == expected
    assert "embedding" not in other_bits({"lm_head": 8}, spec, cpu, "int4", tied=False)


@pytest.mark.parametrize(
    ("precision", "bits", "expected"),
    [("int4", {}, "uniform"), ("int4", {"lm_head": 8}, {"lm_head": 8}), ("int8", {}, None)],
)
def test_a_package_is_planned_again_with_its_own_bits(
    precision: str, bits: dict[str, int], expected: Any, monkeypatch: pytest.MonkeyPatch
):
    """One of an earlier version, or with ``uniform``, records no bits: the default of today is not its own."""
    recorded = SimpleNamespace(
        base_model="m", precision=precision, fold="gate", block_size=32, quantizer="rtn", bits=bits,
        calibration=None, target={}, decoder=SimpleNamespace(activation_dtype=None),
    )  # fmt: skip
    files: Any = SimpleNamespace(manifest=recorded, directory=None)
    monkeypatch.setattr(again, "open_base", lambda *args, **options: None)
    monkeypatch.setattr(again, "holding", lambda base, parity: base)
    monkeypatch.setattr(again, "load_recorded_target", lambda target: load_target("cpu"))
    monkeypatch.setattr(again, "make_plan", lambda coefficients, base, target, options: options)
    planned: Any = again.plan_again(files, SimpleNamespace(), Origins())  # type: ignore[arg-type]
    assert planned.bits == expected
