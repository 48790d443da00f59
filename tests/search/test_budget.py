"""Bits per matrix: plans in files, graphs of two widths, and the search under a budget."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from scale_export import UserError, mil
from scale_export.backends.coreml import decoder as coreml_decoder
from scale_export.backends.coreml.backend import BACKEND as coreml
from scale_export.backends.onnxruntime.backend import BACKEND as backend
from scale_export.core import limits
from scale_export.core.compare import relative_error
from scale_export.core.progress import WorkLog
from scale_export.device.onnxruntime.engine import OnnxEngine
from scale_export.package.manifest import open_package_files
from scale_export.pipeline.fold import bits_by_matrix, within_budget
from scale_export.plan.bits import bits_plan, k_quant_mixed
from scale_export.quantize import QuantizedWeights, read_bits_plan, write_bits_plan
from scale_export.search.budget import Budget, Point, _Bench, _chosen, parse_budget, search_bits
from tests.helpers.emission import (
    TOKENS,
    emission_of,
    generator,
    opened,
    prompt,
    reference,
    stored,
    weights_of,
)
from tests.helpers.folds import fold_on
from tests.helpers.plans import plan_of

QUIET = WorkLog(quiet=True)
CPU = ["CPUExecutionProvider"]


def test_a_graph_of_two_widths_equals_its_dequantized_weights(base_of: Any, tmp_path: Path):
    base = base_of("llava", "qwen2")
    wide = {"layers.0.q_proj": 8, "layers.1.o_proj": 8, "layers.2.down_proj": 8, "embedding": 8, "lm_head": 4}
    plan = plan_of(base, bits=wide)
    assert dict(plan.other_bits) == {name: bits for name, bits in wide.items() if bits == 8}
    assert "4 of" in " ".join(plan.decisions)
    folded = stored(plan)
    names = backend.emit(emission_of(plan, folded, precision="int4", vision_precision="float32"), tmp_path)
    graphs = {role: tmp_path / name for role, name in names.items()}
    engine = OnnxEngine(graphs, context_length=96, providers=CPU, strict=True)
    inputs = prompt(base)
    expected = reference(plan, folded).forced_logits(inputs, TOKENS)
    found = generator(engine, base, "gate").forced_logits(inputs, TOKENS)
    assert relative_error(expected, found) <= limits.LOWERING_RELATIVE["float32"]
    narrow = stored(plan_of(base))
    assert relative_error(expected, reference(plan, narrow).forced_logits(inputs, TOKENS)) > 1e-3


def test_a_size_budget_is_kept_and_its_plan_repeats_it(base_of: Any, tmp_path: Path):
    base = base_of("llava", "llama")
    plan = plan_of(base)
    statistics = weights_of(plan).statistics
    everything = search_bits(plan, statistics, Budget(kind="size", limit=1e12), QUIET)
    assert set(everything.bits.values()) == {8} and everything.chosen.narrow == 0
    sizes = [point.size for point in everything.frontier]
    assert sizes == sorted(sizes, reverse=True)
    assert everything.frontier[0].kl < everything.frontier[-1].kl
    limit = (sizes[0] + sizes[-1]) / 2
    choice = search_bits(plan, statistics, Budget(kind="size", limit=limit), QUIET)
    assert choice.chosen.size <= limit and set(choice.bits.values()) == {4, 8}
    choice.write(tmp_path / "bits.toml")
    assert read_bits_plan(tmp_path / "bits.toml") == dict(choice.bits)
    again = plan_of(base, bits=read_bits_plan(tmp_path / "bits.toml"))
    weights = stored(again).weights
    assert isinstance(weights, QuantizedWeights)
    blocks = [weights.block(name) for name in choice.bits]
    assert sum(b.codes.nbytes + b.scales.nbytes for b in blocks) == choice.chosen.size
    assert [b.bits for b in blocks] == list(choice.bits.values())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_divergence_that_is_not_finite_is_within_no_budget(bad: float):
    points = [Point(narrow=n, size=9 - n, kl=kl, accuracy=1.0) for n, kl in enumerate((0.001, bad))]
    for limit in (0.01, float("inf")):
        with pytest.raises(UserError, match="no choice of bits"):
            _chosen(Budget(kind="kl", limit=limit), points[1:], None, 1.0)
    assert _chosen(Budget(kind="kl", limit=0.01), points, None, 1.0) is points[0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_matrix_that_breaks_the_model_is_narrowed_last(bad: float):
    class Bench:
        """Measures what the one narrow matrix costs."""

        def narrow(self, names: list[str]) -> None:
            self.narrowed = names[0]

        def widen(self, names: list[str]) -> None:
            assert names == [self.narrowed]

        def measure(self) -> tuple[float, float]:
            return {"a": 0.3, "b": bad, "c": 0.1, "d": 0.2}[self.narrowed], 1.0

        def saved(self, name: str) -> int:
            return 1

    bench: Any = Bench()
    assert list(_Bench.sensitivity(bench, list("abcd"), WorkLog(quiet=True))) == ["c", "d", "a", "b"]


def test_a_divergence_budget_stops_where_it_is_passed(base_of: Any):
    plan = plan_of(base_of("llava", "llama"))
    statistics = weights_of(plan).statistics
    frontier = search_bits(plan, statistics, Budget(kind="size", limit=1e12), QUIET).frontier
    limit = (frontier[0].kl + frontier[-1].kl) / 2
    bounded, choice = within_budget(plan, statistics, f"kl<={limit:.12f}", QUIET)
    assert choice is not None and choice.chosen.kl <= limit and choice.chosen.narrow > 0
    assert "--budget" in bounded.decisions[-1]
    with pytest.raises(UserError, match="no choice of bits meets"):
        within_budget(plan, statistics, "kl<=0.000000001", QUIET)
    with pytest.raises(UserError, match="least that 4 bits reach"):
        within_budget(plan, statistics, "size=1kB", QUIET)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("size=1.2MB", Budget(kind="size", limit=1.2e6)),
        ("size <= 3 GB", Budget(kind="size", limit=3e9)),
        ("loss<=1pp", Budget(kind="loss", limit=0.01)),
        ("KL<=0.01", Budget(kind="kl", limit=0.01)),
        ("decode >= 30 tok/s", Budget(kind="decode", limit=30)),
        ("decode=7.5tok/s", Budget(kind="decode", limit=7.5)),
    ],
)
def test_budgets_are_read(text: str, budget: Budget):
    assert parse_budget(text) == budget


@pytest.mark.parametrize(
    "text", ["", "size=1", "size=-1MB", "loss<=1", "kl=0.1", "speed=2", "decode=30", "decode<=30tok/s"]
)
def test_other_budgets_are_refused(text: str):
    with pytest.raises(UserError, match="write size="):
        parse_budget(text)


@pytest.mark.parametrize(
    ("target", "options", "words"),
    [
        ("cpu", {"bits": {"layers.0.q_prj": 8}}, "did you mean 'layers.0.q_proj'"),
        ("cpu", {"bits": {"lm_head": 3}}, "give it 4 or 8"),
        ("cpu", {"bits": {"lm_head": True}}, "give it 4 or 8"),
        ("coreai", {"bits": {"lm_head": 8}}, "the same bits"),
        ("coreai", {"bits": "k_quant_mixed"}, "the same bits"),
        ("coreml", {"bits": {"embedding": 4}}, "keeps it in 8"),
        ("cpu", {"bits": "k_quant_mixd"}, "did you mean 'k_quant_mixed'"),
        ("cpu", {"bits": {"lm_head": 8}, "precision": "float32", "quantizer": "auto"}, "int8 or int4"),
    ],
)
def test_plans_that_cannot_be_are_refused(base_of: Any, target: str, options: Any, words: str):
    with pytest.raises(UserError, match=words):
        plan_of(base_of("llava", "llama"), target, **options)


def test_the_named_mix_widens_what_llama_cpp_widens(base_of: Any):
    spec = base_of("llava", "llama").spec
    published = {  # layers that onnxruntime-genai's builder widens
        1: {0},
        3: {0, 2},
        4: {0, 2},
        16: {0, 1, 4, 7, 10, 13, 14, 15},
        28: {0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 25, 26, 27},
    }
    for layers, wide in published.items():
        found = k_quant_mixed(replace(spec, num_layers=layers))
        parts = {f"layers.{layer}.{part}" for layer in wide for part in ("v_proj", "down_proj")}
        assert {name for name, bits in found.items() if bits == 8} == {"lm_head", *parts}
        assert set(found.values()) <= {4, 8} and len(found) == 7 * layers + 1


@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_a_mix_is_the_same_beside_either_precision(base_of: Any, precision: str):
    plan = plan_of(base_of("llava", "llama"), bits="k_quant_mixed", precision=precision)
    bits = bits_by_matrix(plan)
    assert {n: b for n, b in bits.items() if n != "embedding"} == k_quant_mixed(plan.base.spec)
    assert any("--bits-plan k_quant_mixed" in decision for decision in plan.decisions)


def test_a_mix_is_named_or_a_file(tmp_path: Path):
    assert bits_plan("k_quant_mixed") == "k_quant_mixed"
    write_bits_plan({"lm_head": 8}, tmp_path / "plan")
    assert bits_plan(str(tmp_path / "plan")) == {"lm_head": 8}
    with pytest.raises(UserError, match=r"did you mean 'k_quant_mixed'.*TOML file"):
        bits_plan("k_quant_mix")
    with pytest.raises(UserError, match="cannot be read"):
        bits_plan("nothing.toml")


STORED_BITS = {"int4": 4, "int8": 8, "float16": 16}


def core_ml_bytes(graphs: dict[str, Path]) -> int:
    """Codes and scales in a Core ML decoder's program and in the host's table."""
    operations = mil.load(graphs["decoder"]).functions["decode"].operations
    constants = {op.outputs[0][0]: op.inputs["val"][0] for op in operations if op.type == "const"}
    total = 0
    for operation in operations:
        if operation.type == "constexpr_blockwise_shift_scale":
            for part in ("data", "scale"):
                stored = operation.inputs[part][0]
                literal = constants[stored] if isinstance(stored, str) else stored
                total += literal.read().size * STORED_BITS[literal.type.dtype] // 8
    table = load_file(graphs["tables"])
    return total + table["embedding.codes"].nbytes + table["embedding.scales"].nbytes


def test_core_ml_holds_both_widths_within_the_budget(base_of: Any, tmp_path: Path):
    base = base_of("llava", "llama")
    plan = plan_of(base, "coreml", quantizer="rtn", bits="uniform")
    statistics = weights_of(plan).statistics
    assert plan.other_bits == {"embedding": 8} and any("keeps it in" in said for said in plan.decisions)
    most = search_bits(plan, statistics, Budget(kind="size", limit=1e12), QUIET).frontier
    budget = f"size={(most[0].size + most[-1].size) / 2e3:.0f}kB"
    mixed, choice = within_budget(plan, statistics, budget, QUIET)
    assert choice is not None and set(choice.bits.values()) == {4, 8} and "embedding" not in choice.bits
    assert mixed.other_bits["embedding"] == 8
    folded = stored(mixed)
    names = coreml.emit(emission_of(mixed, folded, precision="int4", vision_precision="float32"), tmp_path)
    graphs = {role: tmp_path / name for role, name in names.items()}
    assert core_ml_bytes(graphs) == choice.chosen.size <= parse_budget(budget).limit
    assert coreml.code_hashes(graphs, list(base.spec.linears())) == {
        name: folded.weights.block(name).codes_sha256 for name in base.spec.linears()
    }
    engine = opened(coreml, graphs, mixed, strict=True)
    inputs = prompt(base)
    expected = reference(mixed, folded).forced_logits(inputs, TOKENS)
    found = generator(engine, base, mixed.fold).forced_logits(inputs, TOKENS)
    assert relative_error(expected, found) <= limits.LOWERING_RELATIVE["float16"]


def test_wide_layers_split_a_core_ml_decoder_sooner(base_of: Any):
    spec = base_of("llava", "llama").spec
    storage = coreml_decoder.Storage(precision="int4", block_size=32)
    wide: dict[str, Any] = dict.fromkeys((n for n in spec.linears() if n.startswith("layers.0.")), 8)
    whole = sum(out * width for out, width, _ in spec.linears().values()) * storage.bytes_per_weight
    assert coreml_decoder.split_layers(spec, storage, int(whole) + 1) == [range(spec.num_layers)]
    assert len(coreml_decoder.split_layers(spec, storage, int(whole) + 1, wide)) > 1
    with pytest.raises(UserError, match="one layer and the head"):
        coreml_decoder.split_layers(spec, storage, int(whole) // 8, wide)


@pytest.mark.parametrize("asked", [{"budget": "size=0.16MB"}, {"bits": "k_quant_mixed"}], ids=str)
def test_a_package_holds_the_plan_that_repeats_it(
    base_of: Any, coefficient_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: Any
):
    path = fold_on(
        base_of("llava", "llama"),
        coefficient_file,
        "cpu",
        out=tmp_path / "package",
        precision="int4",
        quantizer="rtn",
        calib="gridworld",
        calib_limit=3,
        evaluation="none",
        **asked,
    ).path
    bits = read_bits_plan(path / "bits.toml")
    files = open_package_files(path, failed=True)
    assert {4, 8} == set(bits.values()) and files.manifest.files["bits.toml"].size
    assert files.manifest.bits == {name: width for name, width in bits.items() if width == 8}
    page = (path / "report.html").read_text(encoding="utf-8")
    assert ("everywhere, the next larger uniform size" in page) == ("budget" in asked)


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
