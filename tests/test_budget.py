"""Bits per matrix: plans in files, graphs of two widths, and the search under a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scale_export import UserError, tolerances
from scale_export.backends.onnxruntime import backend
from scale_export.backends.onnxruntime.engine import OnnxEngine
from scale_export.budget import Budget, parse_budget, search_bits
from scale_export.folding import fold
from scale_export.metrics import relative_error
from scale_export.pipeline import quantized, within_budget
from scale_export.plan import ExportOptions, make_plan
from scale_export.progress import WorkLog
from scale_export.quantize import QuantizedWeights, read_bits_plan, write_bits_plan
from scale_export.targets import load_target
from tests.backends.emission import TOKENS, generator, prompt, reference
from tests.conftest import random_coefficients

QUIET = WorkLog(quiet=True)
CPU = ["CPUExecutionProvider"]


def plan_of(base: Any, target: str = "cpu", **options: Any) -> Any:
    options = {"precision": "int4", "calib": "gridworld", "calib_limit": 3, "quantizer": "mse", **options}
    return make_plan(random_coefficients(base), base, load_target(target), ExportOptions(**options))


def test_a_graph_of_two_widths_equals_its_dequantized_weights(base_of: Any, tmp_path: Path):
    base = base_of("llava", "qwen2")
    wide = {"layers.0.q_proj": 8, "layers.1.o_proj": 8, "layers.2.down_proj": 8, "embedding": 8, "lm_head": 4}
    plan = plan_of(base, bits=wide)
    assert dict(plan.other_bits) == {name: bits for name, bits in wide.items() if bits == 8}
    assert "4 of" in " ".join(plan.decisions)
    folded = quantized(fold(base.weights, plan.coefficients, "gate"), plan)
    names = backend.emit(
        folded,
        base.family.vision_module(base.model),
        plan,
        tmp_path,
        precision="int4",
        vision_precision="float32",
    )
    graphs = {role: tmp_path / name for role, name in names.items()}
    engine = OnnxEngine(graphs, context_length=96, providers=CPU, strict=True)
    inputs = prompt(base)
    expected = reference(plan, folded).forced_logits(inputs, TOKENS)
    found = generator(engine, base, "gate").forced_logits(inputs, TOKENS)
    assert relative_error(expected, found) <= tolerances.LOWERING_RELATIVE["float32"]
    narrow = quantized(fold(base.weights, plan.coefficients, "gate"), plan_of(base))
    assert relative_error(expected, reference(plan, narrow).forced_logits(inputs, TOKENS)) > 1e-3


def test_a_size_budget_is_kept_and_its_plan_repeats_it(base_of: Any, tmp_path: Path):
    base = base_of("llava", "llama")
    plan = plan_of(base)
    everything = search_bits(plan, Budget(kind="size", limit=1e12), QUIET)
    assert set(everything.bits.values()) == {8} and everything.chosen.narrow == 0
    sizes = [point.size for point in everything.frontier]
    assert sizes == sorted(sizes, reverse=True)
    assert everything.frontier[0].kl < everything.frontier[-1].kl
    limit = (sizes[0] + sizes[-1]) / 2
    choice = search_bits(plan, Budget(kind="size", limit=limit), QUIET)
    assert choice.chosen.size <= limit and set(choice.bits.values()) == {4, 8}
    choice.write(tmp_path / "bits.toml")
    assert read_bits_plan(tmp_path / "bits.toml") == dict(choice.bits)
    again = plan_of(base, bits=read_bits_plan(tmp_path / "bits.toml"))
    weights = quantized(fold(base.weights, again.coefficients, "gate"), again).weights
    assert isinstance(weights, QuantizedWeights)
    blocks = [weights.block(name) for name in choice.bits]
    assert sum(b.codes.nbytes + b.scales.nbytes for b in blocks) == choice.chosen.size
    assert [b.bits for b in blocks] == list(choice.bits.values())


def test_a_divergence_budget_stops_where_it_is_passed(base_of: Any):
    plan = plan_of(base_of("llava", "llama"))
    frontier = search_bits(plan, Budget(kind="size", limit=1e12), QUIET).frontier
    limit = (frontier[0].kl + frontier[-1].kl) / 2
    bounded, choice = within_budget(plan, f"kl<={limit:.12f}", QUIET)
    assert choice is not None and choice.chosen.kl <= limit and choice.chosen.narrow > 0
    assert "--budget" in bounded.decisions[-1]
    with pytest.raises(UserError, match="nothing keeps to"):
        within_budget(plan, "kl<=0.0", QUIET)
    with pytest.raises(UserError, match="least that 4 bits reach"):
        within_budget(plan, "size=1kB", QUIET)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("size=1.2MB", Budget(kind="size", limit=1.2e6)),
        ("size <= 3 GB", Budget(kind="size", limit=3e9)),
        ("loss<=1pp", Budget(kind="loss", limit=0.01)),
        ("KL<=0.01", Budget(kind="kl", limit=0.01)),
    ],
)
def test_budgets_are_read(text: str, budget: Budget):
    assert parse_budget(text) == budget


@pytest.mark.parametrize("text", ["", "size=1", "size=-1MB", "loss<=1", "kl=0.1", "speed=2"])
def test_other_budgets_are_refused(text: str):
    with pytest.raises(UserError, match="write size="):
        parse_budget(text)


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("cpu", {"bits": {"layers.0.q_prj": 8}}, "did you mean 'layers.0.q_proj'"),
        ("cpu", {"bits": {"lm_head": 3}}, "give it 4 or 8"),
        ("cpu", {"bits": {"lm_head": True}}, "give it 4 or 8"),
        ("coreml", {"bits": {"lm_head": 8}}, "the same bits"),
        ("cpu", {"bits": {"lm_head": 8}, "precision": "float32", "quantizer": "auto"}, "int8 and int4"),
    ],
)
def test_plans_that_cannot_be_are_refused(base_of: Any, target: str, options: Any, words: str):
    with pytest.raises(UserError, match=words):
        plan_of(base_of("llava", "llama"), target, **options)


@pytest.mark.parametrize("text", ["[bits", "[other]", "bits = 3", "[bits]\n[more]"])
def test_files_that_are_no_plan_are_refused(tmp_path: Path, text: str):
    path = tmp_path / "bits.toml"
    path.write_text(text)
    with pytest.raises(UserError, match="bits plan"):
        read_bits_plan(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_bits_plan(tmp_path / "nothing.toml")


def test_what_is_written_is_read(tmp_path: Path):
    write_bits_plan({"lm_head": 8, "layers.0.q_proj": 4}, tmp_path / "bits.toml")
    assert read_bits_plan(tmp_path / "bits.toml") == {"lm_head": 8, "layers.0.q_proj": 4}
