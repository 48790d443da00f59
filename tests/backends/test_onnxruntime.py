"""The emitted graphs against the portable decoder: contract, precisions, fold modes, padding, and sabotage."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from scale_export.backends.onnxruntime.backend import ADAPTER
from scale_export.backends.onnxruntime.backend import BACKEND as backend
from scale_export.backends.onnxruntime.defaults import FILE as DEFAULTS
from scale_export.backends.onnxruntime.graphs import write_adapter
from scale_export.backends.onnxruntime.trace import traced_anew
from scale_export.core import limits
from scale_export.core.compare import relative_error
from scale_export.core.words import FoldMode, Precision
from scale_export.device.engine import Scalars, Step
from scale_export.device.onnxruntime.engine import OnnxEngine, open_session
from scale_export.device.onnxruntime.host import SCALARS
from scale_export.device.prompts import encode_messages, user_message
from tests.helpers.emission import (
    TOKENS,
    Emit,
    decoder_session,
    emission_of,
    emitting,
    generator,
    prompt,
    reference,
)

CPU = ["CPUExecutionProvider"]


@pytest.fixture(scope="module")
def emitted(base_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Emit:
    return emitting("cpu", backend, base_of, tmp_path_factory)


EQUAL = [
    ("llava", "llama", "float32", "gate", "last"),
    ("llava", "llama-biased", "float32", "weights", "all"),
    ("llava", "llama3-rope", "float32", "gate", "all"),
    ("llava", "mistral-window", "float32", "gate", "last"),
    ("llava", "qwen2", "float32", "two-phase", "last"),
    ("llava", "qwen2", "float16", "gate", "last"),
    ("llava_next", "llama", "float32", "gate", "last"),
    ("llava_next", "mistral-window", "float16", "two-phase", "last"),
    *(("llava_onevision", "qwen2", precision, "gate", "last") for precision in ("float32", "float16")),
    *(("internvl", "qwen2", precision, "gate", "last") for precision in ("float32", "float16")),
    *(("smolvlm", "llama", precision, "gate", "last") for precision in ("float32", "float16")),
    ("idefics3", "llama3-rope", "float32", "two-phase", "last"),
    ("gemma3", "own", "float32", "two-phase", "last"),
    ("gemma3", "own", "float32", "weights", "all"),
    ("gemma3", "own", "float16", "gate", "last"),
    ("paligemma", "own", "float16", "gate", "last"),
    ("llava", "qwen3", "float32", "gate", "last"),
]


@pytest.mark.parametrize("case", EQUAL, ids="-".join)
def test_graphs_equal_the_portable_decoder_with_a_picture(emitted: Any, case: tuple[str, ...]):
    plan, folded, graphs = emitted(*case)
    inputs = prompt(plan.base)
    engine = OnnxEngine(graphs, context_length=96, providers=CPU)
    expected = reference(plan, folded).forced_logits(inputs, TOKENS)
    found = generator(engine, plan.base, plan.fold).forced_logits(inputs, TOKENS)
    assert relative_error(expected, found) <= limits.LOWERING_RELATIVE[plan.precision]


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (96, 48), (40, 120)])
def test_llava_next_tiles_of_any_shape(emitted: Any, size: tuple[int, int]):
    plan, folded, graphs = emitted("llava_next", "llama", "float32", "gate", "last")
    inputs = prompt(plan.base, size)
    engine = OnnxEngine(graphs, context_length=128, providers=CPU)
    expected = reference(plan, folded).forced_logits(inputs, TOKENS)
    found = generator(engine, plan.base, plan.fold).forced_logits(inputs, TOKENS)
    assert relative_error(expected, found) <= limits.LOWERING_RELATIVE["float32"]


@pytest.mark.parametrize(
    ("precision", "mode", "scope"),
    [("int4", "gate", "last"), ("int8", "weights", "all"), ("int4", "two-phase", "last")],
)
def test_quantized_graphs_equal_their_dequantized_weights_on_strict_kernels(
    emitted: Any, precision: Precision, mode: FoldMode, scope: Any
):
    plan, folded, graphs = emitted("llava", "qwen2", precision, mode, scope)
    inputs = prompt(plan.base)
    strict = OnnxEngine(graphs, context_length=96, providers=CPU, strict=True)
    expected = reference(plan, folded).forced_logits(inputs, TOKENS)
    found = generator(strict, plan.base, plan.fold).forced_logits(inputs, TOKENS)
    assert relative_error(expected, found) <= limits.LOWERING_RELATIVE["float32"]


@pytest.mark.parametrize(("mode", "scope"), [("weights", "all"), ("two-phase", "last")])
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_folding_leaves_every_integer_code(emitted: Any, precision: Precision, mode: FoldMode, scope: Any):
    plan, folded, graphs = emitted("llava", "qwen2", precision, mode, scope)
    _, plain, base_graphs = emitted("llava", "qwen2", precision, "gate", scope)
    names = list(folded.factors)
    assert len(names) == 2 * plan.base.spec.num_layers
    assert backend.code_hashes(graphs, names) == backend.code_hashes(base_graphs, names)
    assert all(folded.factors[name].columns.size for name in names)
    assert not np.array_equal(
        (folded.scaled or folded.weights).block(names[0]).scales, plain.weights.block(names[0]).scales
    )


def test_two_phase_shares_its_codes_on_disk(emitted: Any):
    _, _, graphs = emitted("llava", "qwen2", "int4", "two-phase", "last")
    first, second = (Path(f"{graphs[role]}.data").stat().st_size for role in ("decoder", "decoder_folded"))
    assert second < 0.2 * first


def test_signature_is_the_contract(emitted: Any):
    plan, _, graphs = emitted()
    spec = plan.base.spec
    session = open_session(graphs["decoder"], providers=CPU)
    inputs = {i.name: (i.type, i.shape) for i in session.get_inputs()}
    cache = ["batch", spec.num_kv_heads, "past_length", spec.head_dim]
    expected = {
        "inputs_embeds": ("tensor(float)", ["batch", "tokens", spec.hidden_size]),
        "attention_mask": ("tensor(int64)", ["batch", "total_length"]),
        "position_ids": ("tensor(int64)", ["batch", "tokens"]),
        "gate": ("tensor(float)", ["batch", "tokens"]),
        "attn_scale": ("tensor(float)", [spec.num_layers, spec.num_heads]),
        "mlp_scale": ("tensor(float)", [spec.num_layers]),
    }
    for i in range(spec.num_layers):
        expected |= {f"past_key_values.{i}.{part}": ("tensor(float)", cache) for part in ("key", "value")}
    assert inputs == expected
    assert not session.get_overridable_initializers(), "some runtimes ignore inputs that may be left out"
    outputs = [o.name for o in session.get_outputs()]
    assert outputs == [
        "logits",
        *(f"present.{i}.{p}" for i in range(spec.num_layers) for p in ("key", "value")),
    ]
    operators = {node.op_type for node in onnx.load(graphs["decoder"], load_external_data=False).graph.node}
    assert {
        "GroupQueryAttention",
        "SimplifiedLayerNormalization",
        "SkipSimplifiedLayerNormalization",
    } <= operators
    assert "RotaryEmbedding" not in operators, "the rotary embedding is part of the attention operator"


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_the_gate_is_plain_arithmetic_of_four_axes_at_most(emitted: Any, precision: Precision):
    """Qualcomm's HTP chooses wrongly between tensors of five axes, and says nothing."""
    _, _, graphs = emitted("llava", "qwen2", precision)
    model = onnx.load(graphs["decoder"], load_external_data=False)
    inferred = onnx.shape_inference.infer_shapes(model).graph
    ranks = {
        v.name: len(v.type.tensor_type.shape.dim)
        for v in inferred.value_info
        if v.type.tensor_type.HasField("shape")
    }
    reached, gated = {"gate", "attn_scale", "mlp_scale"}, []
    for node in model.graph.node:
        if reached & {*node.input} and node.op_type in GATE_OPERATORS:
            reached |= {*node.output}
            gated.append(node)
    operators = {node.op_type for node in gated}
    assert operators == GATE_OPERATORS - ({"Cast"} if precision == "float32" else set())
    assert "Where" not in {node.op_type for node in model.graph.node}
    assert max(ranks[name] for node in gated for name in node.output if name in ranks) <= 4


GATE_OPERATORS = {"Sub", "Reshape", "Split", "Unsqueeze", "Mul", "Add", "Cast"}
"""What the scalars and the gate go through before the heads and the MLP are multiplied."""


def test_weights_live_outside_the_graph_file(emitted: Any):
    _, _, graphs = emitted()
    for path in (path for path in graphs.values() if path.suffix == ".onnx"):
        assert path.stat().st_size < 400_000
        assert Path(f"{path}.data").exists()


def run_plain(
    session: ort.InferenceSession,
    embeds: Any,
    mask: Any,
    position: int,
    spec: Any,
    past: Any = None,
    **more: Any,
) -> list[Any]:
    """One forward with growing caches, as the contract's plainest client would: the last token is gated."""
    rows, tokens = embeds.shape[:2]
    feeds = {
        "gate": np.tile(np.arange(tokens) == tokens - 1, (rows, 1)).astype(np.float32),
        "inputs_embeds": embeds,
        "attention_mask": mask,
        "position_ids": np.tile(np.arange(position, position + tokens), (rows, 1)),
        **more,
    }
    empty = np.zeros((rows, spec.num_kv_heads, 0, spec.head_dim), np.float32)
    for i in range(spec.num_layers):
        for j, part in enumerate(("key", "value")):
            feeds[f"past_key_values.{i}.{part}"] = empty if past is None else past[2 * i + j]
    return session.run(None, feeds)


def test_growing_caches_chunks_and_gate_positions(emitted: Any):
    """Chunked prefill with the gate held back until the last chunk equals one prefill."""
    plan, folded, graphs = emitted()
    spec = plan.base.spec
    scalars = dict(zip(SCALARS, folded.dense(), strict=True))
    held = np.zeros((1, 5), np.float32)
    session = open_session(graphs["decoder"], providers=CPU)
    embeds = np.random.default_rng(0).standard_normal((1, 9, spec.hidden_size)).astype(np.float32)
    whole = run_plain(session, embeds, np.ones((1, 9), np.int64), 0, spec, **scalars)
    first = run_plain(session, embeds[:, :5], np.ones((1, 5), np.int64), 0, spec, **scalars | {"gate": held})
    second = run_plain(session, embeds[:, 5:], np.ones((1, 9), np.int64), 5, spec, first[1:], **scalars)
    for expected, found in zip(whole, second, strict=True):
        assert relative_error(expected, found) <= limits.LOWERING_RELATIVE["float32"]
    forgot = run_plain(session, embeds[:, :5], np.ones((1, 5), np.int64), 0, spec, **scalars)
    wrong = run_plain(session, embeds[:, 5:], np.ones((1, 9), np.int64), 5, spec, forgot[1:], **scalars)
    assert relative_error(whole[0], wrong[0]) > 100 * limits.LOWERING_RELATIVE["float32"]


def test_right_padded_batch_equals_its_rows_alone_over_a_shared_cache(emitted: Any):
    plan, _, graphs = emitted()
    decoder = decoder_session(graphs, 32)
    rng = np.random.default_rng(1)
    embeds = rng.standard_normal((2, 8, plan.base.spec.hidden_size)).astype(np.float32)
    after = rng.standard_normal((2, 1, plan.base.spec.hidden_size)).astype(np.float32)
    lengths = np.array([5, 8])
    positions = np.tile(np.arange(8), (2, 1))

    def answer(rows: slice, tokens: int) -> Any:
        cache = decoder.new_cache(len(lengths[rows]))
        step = Step(
            inputs_embeds=embeds[rows, :tokens], lengths=lengths[rows], position_ids=positions[rows, :tokens]
        )
        logits = [decoder.forward(cache, step, None)]
        one = Step(
            inputs_embeds=after[rows], lengths=np.ones_like(lengths[rows]), position_ids=lengths[rows, None]
        )
        logits.append(decoder.forward(cache, one, None))
        return np.stack(logits)

    together = answer(slice(0, 2), 8)
    for row in range(2):
        alone = answer(slice(row, row + 1), int(lengths[row]))
        assert relative_error(alone[:, 0], together[:, row]) <= limits.LOWERING_RELATIVE["float32"]


def test_scalars_override_live_and_ones_are_the_base_model(emitted: Any):
    plan, folded, graphs = emitted()
    inputs = prompt(plan.base)
    engine = OnnxEngine(graphs, context_length=96, providers=CPU)
    asked = generator(engine, plan.base, plan.fold)
    trained = asked.forced_logits(inputs, TOKENS)
    attn, mlp = folded.dense()
    asked.scalars = Scalars(attn=np.ones_like(attn), mlp=np.ones_like(mlp))
    base = asked.forced_logits(inputs, TOKENS)
    oracle = reference(plan, folded)
    oracle.scalars = asked.scalars
    assert relative_error(oracle.forced_logits(inputs, TOKENS), base) <= limits.LOWERING_RELATIVE["float32"]
    assert relative_error(trained, base) > 100 * limits.LOWERING_RELATIVE["float32"]
    asked.scalars = Scalars(attn=attn, mlp=mlp)
    np.testing.assert_array_equal(asked.forced_logits(inputs, TOKENS), trained)


def test_adapter_file_carries_the_scalars(emitted: Any):
    """``.onnx_adapter``: loaded by the runtime, it does what overriding by hand does."""
    plan, _folded, graphs = emitted()
    spec = plan.base.spec
    session = open_session(graphs["decoder"].with_name(DEFAULTS), providers=CPU)
    embeds = np.random.default_rng(0).standard_normal((1, 6, spec.hidden_size)).astype(np.float32)
    mask = np.ones((1, 6), np.int64)
    ones = {
        "attn_scale": np.ones((spec.num_layers, spec.num_heads), np.float32),
        "mlp_scale": np.ones(spec.num_layers, np.float32),
    }
    adapter = ort.LoraAdapter()
    adapter.Load(str(graphs["decoder"].with_name(ADAPTER)))
    options = ort.RunOptions()
    options.add_active_adapter(adapter)
    empty = np.zeros((1, spec.num_kv_heads, 0, spec.head_dim), np.float32)
    feeds = {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": np.arange(6)[None]}
    feeds |= {f"past_key_values.{i}.{p}": empty for i in range(spec.num_layers) for p in ("key", "value")}
    adapted = session.run(["logits"], feeds, options)[0]
    np.testing.assert_array_equal(adapted, session.run(["logits"], feeds)[0])
    base = session.run(["logits"], feeds | ones)[0]
    assert not np.allclose(adapted, base, rtol=1e-2)
    told = run_plain(open_session(graphs["decoder"], providers=CPU), embeds, mask, 0, spec, **ones)[0]
    np.testing.assert_array_equal(base, told)


def test_an_adapter_of_other_scalars_swaps_them(emitted: Any, tmp_path: Path):
    plan, folded, graphs = emitted()
    spec, (attn, mlp) = plan.base.spec, folded.dense()
    other, file = {"attn_scale": attn[::-1].copy(), "mlp_scale": mlp * 0.5}, tmp_path / "other.onnx_adapter"
    write_adapter(other["attn_scale"], other["mlp_scale"], file)
    adapter, options = ort.LoraAdapter(), ort.RunOptions()
    adapter.Load(str(file))
    options.add_active_adapter(adapter)
    embeds = np.random.default_rng(0).standard_normal((2, 6, spec.hidden_size)).astype(np.float32)
    mask = np.ones((2, 6), np.int64)
    session = open_session(graphs["decoder"].with_name(DEFAULTS), providers=CPU)
    names = {i.name for i in session.get_inputs()}
    empty = np.zeros((2, spec.num_kv_heads, 0, spec.head_dim), np.float32)
    feeds = {"inputs_embeds": embeds, "attention_mask": mask, "position_ids": np.tile(np.arange(6), (2, 1))}
    feeds |= {name: empty for name in names if name.startswith("past_key_values.")}
    told = run_plain(open_session(graphs["decoder"], providers=CPU), embeds, mask, 0, spec, **other)[0]
    np.testing.assert_array_equal(session.run(["logits"], feeds, options)[0], told)


def test_two_emissions_are_byte_identical(emitted: Any, tmp_path: Path):
    plan, folded, graphs = emitted("llava", "qwen2", "int4", "two-phase", "last")
    with traced_anew():
        backend.emit(emission_of(plan, folded, precision="int4", vision_precision="float32"), tmp_path)
    for path in graphs.values():
        for name in (path.name, f"{path.name}.data") if path.suffix == ".onnx" else (path.name,):
            assert (tmp_path / name).read_bytes() == path.with_name(name).read_bytes(), name


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_vision_precisions(emitted: Any, tmp_path: Path, precision: Precision):
    from scale_export.backends.onnxruntime.vision import emit_vision

    plan, _, graphs = emitted()
    before = copy.deepcopy(plan.base.vision.tower.state_dict())
    pixels = np.random.default_rng(0).standard_normal((3, 3, 48, 48)).astype(np.float32)
    exact = open_session(graphs["vision"], providers=CPU).run(None, {"pixel_values": pixels})[0]
    emit_vision(
        plan.base.vision,
        plan.tower_inputs,
        tmp_path / "vision.onnx",
        patched=False,
        precision=precision,
    )
    after = plan.base.vision.tower.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before), "the reference model was rounded"
    session = open_session(tmp_path / "vision.onnx", providers=CPU)
    assert session.get_inputs()[0].shape == ["tiles", 3, 48, 48]
    assert relative_error(exact, session.run(None, {"pixel_values": pixels})[0]) < 0.05


def test_a_prompt_without_picture_and_a_generated_image_token(emitted: Any):
    plan, folded, graphs = emitted()
    inputs = encode_messages(plan.base.processor, [user_message([], "where is the circle ?")])
    token = plan.base.family.image_token_id(plan.base.config)
    engine = OnnxEngine(graphs, context_length=96, providers=CPU)
    expected = reference(plan, folded).forced_logits(inputs, (token, 5))
    found = generator(engine, plan.base, plan.fold).forced_logits(inputs, (token, 5))
    assert relative_error(expected, found) <= limits.LOWERING_RELATIVE["float32"]
