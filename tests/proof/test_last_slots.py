"""The end of the context is held: what short prompts never touch is broken on purpose, on every backend."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from scale_export.backends.coreai import decoder as coreai_decoder
from scale_export.backends.coreml.kernels import HIDDEN, CoreMLKernels
from scale_export.backends.interface import graph_backend
from scale_export.backends.onnxruntime import decoder as onnx_decoder
from scale_export.backends.onnxruntime.kernels import AttentionInputs, OnnxKernels
from scale_export.backends.onnxruntime.trace import traced_anew
from scale_export.core.compare import relative_error
from scale_export.core.errors import EXIT_PARITY_FAILED
from scale_export.core.limits import LOWERING_RELATIVE
from scale_export.core.records import Float32
from scale_export.core.words import FoldMode
from scale_export.device.coreml.host import read_host_config, write_host_config
from scale_export.device.engine import Held
from scale_export.model.folding import fold
from scale_export.plan.make import make_plan
from scale_export.plan.options import ExportOptions
from scale_export.plan.targets import load_target
from scale_export.proof.last_slots import LAST, MOST_BYTES, POSITIONS, LastSlots, end_of_context
from scale_export.proof.report import ParityReport
from tests.helpers.cli import last_json, run
from tests.helpers.coefficients import random_coefficients
from tests.helpers.emission import TOKENS, emission_of, generator, opened, prompt, reference
from tests.helpers.packages import plant

CONTEXT = 512
"""Of every random model."""

LIMIT = LOWERING_RELATIVE["float32"]

Found = dict[str, float]
Measure = Callable[..., Found]


@pytest.fixture
def measure(base_of: Any, tmp_path: Path) -> Measure:
    """``measure(target, family, variant, mode)``: the errors of a float32 export made now, by name.

    ``anew``: traced again, for what is planted in the tracing; ``change`` is given the written files.
    """

    def build(
        target: str,
        family: str = "llava",
        variant: str = "mistral-window",
        mode: FoldMode = "gate",
        *,
        anew: bool = False,
        change: Callable[[dict[str, Path]], None] | None = None,
    ) -> Found:
        base, chosen = base_of(family, variant), load_target(target)
        options = ExportOptions(precision=chosen.precisions[0], fold=mode)
        plan = make_plan(random_coefficients(base), base, chosen, options)
        assert plan.context_length == CONTEXT
        folded = fold(base.weights, plan.coefficients, mode)
        backend = graph_backend(chosen.backend)
        shutil.rmtree(tmp_path / "graphs", ignore_errors=True)
        (tmp_path / "graphs").mkdir()
        with traced_anew() if anew else nullcontext():
            made = emission_of(plan, folded, precision="float32", vision_precision="float32")
            names = backend.emit(made, tmp_path / "graphs")
        graphs = {role: tmp_path / "graphs" / name for role, name in names.items()}
        if change is not None:
            change(graphs)
        asked = generator(opened(backend, graphs, plan, strict=True), base, mode)
        oracle, inputs = reference(plan, folded), prompt(base)
        report = ParityReport(executed_by="")
        found = end_of_context(report, plan, oracle, asked, "float32")
        assert all(error.limit == LIMIT for error in found) and not report.not_checked
        short = relative_error(oracle.forced_logits(inputs, TOKENS), asked.forced_logits(inputs, TOKENS))
        return {"short": short, **{error.metric: error.value for error in found}}

    return build


SOUND = [
    ("cpu", "llava", "mistral-window", "gate", {LAST, POSITIONS}),
    ("cpu", "gemma3", "own", "two-phase", {LAST, POSITIONS}),
    ("cpu", "qwen2_vl", "own", "gate", {LAST}),
    ("coreml", "gemma3", "own", "gate", {LAST}),
    ("coreml", "qwen2_vl", "own", "two-phase", {LAST}),
    ("coreai", "llava", "mistral-window", "gate", {LAST}),
]


@pytest.mark.parametrize("case", SOUND, ids=lambda case: "-".join(case[:4]))
def test_a_sound_export_is_right_to_its_last_slot(measure: Measure, case: tuple[Any, ...]):
    if case[0] == "coreai":
        pytest.importorskip("coreai_torch")
    found = measure(*case[:4])
    assert found.keys() == {"short", *case[4]}
    assert max(found.values()) <= LIMIT, found


def caught(found: Found, *by: str) -> None:
    """That short prompts see nothing, and that these errors, no others, are beyond the limit by far."""
    assert found["short"] <= LIMIT
    for name in (LAST, POSITIONS):
        if name in found:
            assert found[name] > 10 * LIMIT if name in by else found[name] <= LIMIT, (name, found)


def rows_turned(monkeypatch: pytest.MonkeyPatch, table: str, rows: slice) -> None:
    """Rotary rows that are their neighbours'."""
    true = onnx_decoder.tensor_values

    def values(*args: Any) -> Any:
        value = true(*args)

        def wrong(name: str) -> Any:
            array = np.array(value(name))
            if name == table:
                array[rows] = array[rows.start - 1]
            return array

        return wrong

    monkeypatch.setattr(onnx_decoder, "tensor_values", values)


def test_the_last_rotary_rows(measure: Measure, monkeypatch: pytest.MonkeyPatch):
    rows_turned(monkeypatch, "sin_cache.0", slice(CONTEXT - 1, CONTEXT))
    caught(measure("cpu"), LAST, POSITIONS)


def test_rotary_rows_that_neither_prompts_nor_the_last_slots_reach(
    measure: Measure, monkeypatch: pytest.MonkeyPatch
):
    rows_turned(monkeypatch, "cos_cache.1", slice(300, 302))  # the second rotary embedding, of a later layer
    caught(measure("cpu", "gemma3", "own"), POSITIONS)


def test_rotary_rows_of_the_second_phase_alone(measure: Measure):
    def change(graphs: dict[str, Path]) -> None:
        model = ir.load(graphs["decoder_folded"])
        table = model.graph.initializers["cos_cache.0"]
        assert table.const_value is not None
        rows = table.const_value.numpy().copy()
        rows[300] *= -1
        table.const_value = ir.tensor(rows, name=table.name)
        ir.save(model, graphs["decoder_folded"])

    caught(measure("cpu", "llava", "llama", "two-phase", change=change), POSITIONS)


def test_a_cache_slot_off_by_one_at_the_end(measure: Measure, monkeypatch: pytest.MonkeyPatch):
    begin = OnnxKernels.begin

    def short(self: Any, *args: Any) -> AttentionInputs:
        shared = begin(self, *args)
        return replace(shared, past_lengths=shared.past_lengths.clamp(max=CONTEXT - 2))

    monkeypatch.setattr(OnnxKernels, "begin", short)
    caught(measure("cpu", "llava", "llama", anew=True), LAST)


def test_a_mask_that_hides_the_slot_before_the_last(measure: Measure, monkeypatch: pytest.MonkeyPatch):
    biases = OnnxKernels._biases

    def narrow(self: Any, *args: Any) -> dict[int | None, Tensor]:
        places = torch.arange(args[1].shape[1])
        return {
            window: bias - 1e9 * (places == CONTEXT - 2).to(bias.dtype)
            for window, bias in biases(self, *args).items()
        }

    monkeypatch.setattr(OnnxKernels, "_biases", narrow)
    caught(measure("cpu", "paligemma", "own", anew=True), LAST)


def test_core_ml_masks_and_slots_at_the_end(measure: Measure, monkeypatch: pytest.MonkeyPatch):
    mask = CoreMLKernels._mask

    def early(self: Any, cache: Tensor, *args: Any) -> Tensor:
        kept = torch.logical_or(torch.arange(cache.shape[2]) < CONTEXT - 1, self.placement.position < 300)
        return mask(self, cache, *args) * kept  # the last slot is seen before it is written

    def hidden(self: Any, cache: Tensor, *args: Any) -> Tensor:
        last = torch.arange(cache.shape[2]) == CONTEXT - 1
        return mask(self, cache, *args) + last * HIDDEN

    for wrong in (early, hidden):
        with monkeypatch.context() as planted:
            planted.setattr(CoreMLKernels, "_mask", wrong)
            caught(measure("coreml", "llava", "llama"), LAST)


def test_core_ai_turns_at_the_end(measure: Measure, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("coreai_torch")
    tables = coreai_decoder.rotary_tables
    monkeypatch.setattr(
        coreai_decoder,
        "rotary_tables",
        lambda spec, positions, dtype: tables(spec, positions.clamp(max=CONTEXT - 2), dtype),
    )
    caught(measure("coreai"), LAST)


def test_verify_finds_a_rotary_row_that_was_tampered_with(
    package: Path, base_of: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    forged = Path(shutil.copytree(package, tmp_path / "package"))
    graph = ir.load(forged / "decoder.onnx").graph
    table = graph.initializers["cos_cache.0"].const_value
    assert isinstance(table, ir.ExternalTensor) and table.offset is not None
    data = bytearray((forged / table.location).read_bytes())
    width = 4 * int(table.shape[1])
    row = slice(table.offset + 300 * width, table.offset + 301 * width)
    data[row] = np.flip(np.frombuffer(data[row], np.float32)).tobytes()
    plant(forged, str(table.location), bytes(data))
    model = str(base_of("llava", "llama").directory)
    assert run("verify", str(forged), "--model", model, "--eval", "none", "--json") == EXIT_PARITY_FAILED
    lowering = last_json(capsys)["parity"]["legs"]["lowering"]
    last, positions = lowering["context"]
    assert lowering["passed"] is False and lowering["value"] <= lowering["limit"]
    assert last["metric"] == LAST and last["value"] <= last["limit"]
    assert positions["metric"] == POSITIONS and positions["value"] > 10 * positions["limit"]


def test_a_package_that_says_it_holds_less_fails(measure: Measure):
    def change(graphs: dict[str, Path]) -> None:
        runtime = read_host_config(graphs["runtime"])
        less = runtime.model_copy(update={"context_length": CONTEXT - 1})
        write_host_config(less, graphs["runtime"])

    found = measure("coreml", "llava", "llama", change=change)
    assert found["short"] <= LIMIT and found[LAST] == float("inf")


def test_caches_too_large_to_look_at_are_named(base_of: Any):
    base = base_of("llava", "llama")
    plan = make_plan(random_coefficients(base), base, load_target("cpu"), ExportOptions(precision="float32"))
    large = replace(plan, context_length=2**24)
    case = LastSlots(spec=base.spec, context_length=large.context_length)
    assert case.cache_bytes > MOST_BYTES
    report = ParityReport(executed_by="")
    unused: Any = None
    assert end_of_context(report, large, unused, unused, "float32") == ()
    assert [missing.subject for missing in report.not_checked] == ["end of the context"]


@pytest.mark.parametrize("context", [1, 2, 3, 40, 127, 4096])
def test_the_case_ends_with_the_context(base_of: Any, context: int):
    case = LastSlots(spec=base_of("llava", "llama").spec, context_length=context)
    assert case.held.tokens + case.tokens == context == case.held.slots


def test_held_numbers_are_the_same_for_every_engine_and_exact_in_float16():
    def numbers() -> tuple[Float32, Float32]:
        return Held(tokens=3, slots=5).layer(1, 2, 8)

    for first, second in zip(numbers(), numbers(), strict=True):
        np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(first, first.astype(np.float16).astype(np.float32))
    assert not np.array_equal(numbers()[0], Held(tokens=3, slots=5).layer(0, 2, 8)[0])
