"""Core ML packages through the reference interpreter: against the portable decoder, on disk, and split."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scale_export import UserError, mil, open_package
from scale_export.backends.coreml import swift
from scale_export.backends.coreml.backend import BACKEND as backend
from scale_export.backends.coreml.convert import convert_function, save_functions
from scale_export.backends.coreml.decoder import Function, Storage, TracedDecoder, matrix_source, split_layers
from scale_export.compat.coremltools import import_coremltools, unheard
from scale_export.core import limits
from scale_export.core.compare import relative_error
from scale_export.core.records import TowerInput
from scale_export.core.words import Precision
from scale_export.device.coreml.engine import CoreMLEngine
from scale_export.device.coreml.host import read_host_config
from scale_export.device.coreml.tables import HostTables
from scale_export.device.engine import Scalars, Step
from scale_export.device.prompts import encode_messages, user_message
from scale_export.device.rules import GenerationRules
from scale_export.plan.make import make_plan
from scale_export.plan.options import ExportOptions
from scale_export.plan.targets import load_target
from tests.helpers.coefficients import random_coefficients
from tests.helpers.emission import TOKENS, Emit, emission_of, emitting, generator, prompt, reference

STRICT = limits.LOWERING_RELATIVE["float32"]
HALF = limits.LOWERING_RELATIVE["float16"]


@pytest.fixture(scope="module")
def emitted(base_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Emit:
    return emitting("coreml", backend, base_of, tmp_path_factory)


def operations(path: Path) -> dict[str, int]:
    return mil.load(path).operations()


def package_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


EQUAL = [
    ("llava", "llama", "float32", "gate", "last"),
    ("llava", "llama-biased", "float32", "weights", "all"),
    ("llava", "llama3-rope", "float32", "gate", "all"),
    ("llava", "mistral-window", "float32", "gate", "last"),
    ("llava", "qwen2", "float32", "two-phase", "last"),
    ("llava_next", "llama", "float32", "gate", "last"),
    ("llava_next", "mistral-window", "float32", "two-phase", "last"),
    ("llava_onevision", "qwen2", "float32", "gate", "last"),
    ("internvl", "qwen2", "float32", "gate", "last"),
    ("smolvlm", "llama", "float32", "gate", "last"),
    ("idefics3", "llama3-rope", "float32", "two-phase", "last"),
    ("gemma3", "own", "float32", "two-phase", "last"),
    ("gemma3", "own", "float32", "weights", "all"),
    ("llava", "qwen3", "float32", "gate", "last"),
]


@pytest.mark.parametrize("case", EQUAL, ids="-".join)
def test_float32_programs_equal_the_portable_decoder_with_a_picture(emitted: Emit, case: tuple[str, ...]):
    plan, folded, graphs = emitted(*case)
    inputs = prompt(plan.base)
    expected = reference(plan, folded).forced_logits(inputs, TOKENS)
    found = generator(CoreMLEngine(graphs, strict=True), plan.base, plan.fold).forced_logits(inputs, TOKENS)
    assert relative_error(expected, found) <= STRICT


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_float16_programs_in_emulated_float16(emitted: Emit, family: str):
    plan, folded, graphs = emitted(family, "qwen2", "float16")
    inputs = prompt(plan.base)
    expected = reference(plan, folded).forced_logits(inputs, TOKENS)
    found = generator(CoreMLEngine(graphs), plan.base, plan.fold).forced_logits(inputs, TOKENS)
    assert 0 < relative_error(expected, found) <= HALF


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_quantized_programs_hold_the_dequantized_weights(
    emitted: Emit, precision: Precision, monkeypatch: pytest.MonkeyPatch
):
    """Up to float16 scales, norms and tower, which the limit is for; the embedding's own precision is set aside."""
    plan, folded, graphs = emitted("llava", "qwen2", precision, "two-phase")
    inputs, opened, oracle = prompt(plan.base), CoreMLEngine(graphs, strict=True), reference(plan, folded)
    monkeypatch.setattr(oracle.engine, "embed", opened.embed)
    expected = oracle.forced_logits(inputs, TOKENS)
    found = generator(opened, plan.base, plan.fold).forced_logits(inputs, TOKENS)
    assert relative_error(expected, found) <= HALF


def test_embedding_rows_are_eight_bit_beside_integers(emitted: Emit):
    plan, _, graphs = emitted("llava", "qwen2", "int4", "two-phase")
    ids = np.array([[5, 7, 5]])
    exact = plan.base.weights.embedding().numpy()[ids]
    assert relative_error(exact, HostTables(graphs["tables"]).embed(ids)) <= 1 / 127


@pytest.mark.parametrize(("mode", "scope"), [("weights", "all"), ("two-phase", "last")])
def test_folding_leaves_every_integer_code(emitted: Emit, mode: str, scope: str):
    _, folded, graphs = emitted("llava", "qwen2", "int4", mode, scope)
    names = list(folded.factors)
    plain = (folded.scaled or folded.weights).base
    unfolded = replace(folded.scaled or folded.weights, factors={})
    assert plain is not None
    found = backend.code_hashes(graphs, names)
    assert found == {name: unfolded.block(name).codes_sha256 for name in names}


WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"


def test_weights_are_stored_once_and_folded_functions_add_scales_alone(emitted: Emit, tmp_path: Path):
    plan, _, graphs = emitted("llava", "qwen2", "int4", "gate")
    _, folded, two_phase = emitted("llava", "qwen2", "int4", "two-phase")
    spec, capacity = plan.base.spec, read_host_config(graphs["runtime"]).cache_slots
    norms = {name: folded.weights.norm(name) for name in spec.norms()}
    decode = TracedDecoder(
        spec, range(spec.num_layers), Function(tokens=1, gate="all"), norms, capacity=capacity
    ).eval()
    program = convert_function(
        decode,
        decode.example(),
        outputs=["logits"],
        states=dict(decode.named_buffers()),
        half=True,
        matrices=matrix_source(folded.weights, Storage(precision="int4", block_size=32)),
    )
    save_functions({"main": program}, tmp_path / "one.mlpackage")
    one, gated, both = (
        (path / WEIGHTS).stat().st_size
        for path in (tmp_path / "one.mlpackage", graphs["decoder"], two_phase["decoder"])
    )
    assert gated <= 1.05 * one
    scales = sum((folded.scaled or folded.weights).block(name).scales.size * 2 for name in folded.factors)
    assert gated < both <= gated + scales + 256 * len(folded.factors)


def test_attention_and_norms_are_fused_operators(emitted: Emit):
    plan, _, graphs = emitted("llava", "qwen2", "int4", "gate")
    counts, layers = operations(graphs["decoder"]), plan.base.spec.num_layers
    assert counts["scaled_dot_product_attention"] == 2 * layers
    assert counts["layer_norm"] == 2 * (2 * layers + 1)
    assert counts["constexpr_blockwise_shift_scale"] == counts["linear"] == 2 * (7 * layers + 1)
    assert "matmul" not in counts and "softmax" not in counts


def test_signature_is_what_the_host_is_told(emitted: Emit):
    plan, _, graphs = emitted("llava", "qwen2", "float16", "gate")
    spec, config = plan.base.spec, read_host_config(graphs["runtime"])
    functions = mil.load(graphs["decoder"]).functions
    assert set(functions) == {"prefill", "decode"}
    for name, tokens in (("prefill", config.prefill_tokens), ("decode", 1)):
        shapes = {key: kind.shape for key, kind in functions[name].inputs.items()}
        assert shapes.pop("inputs_embeds") == (1, tokens, spec.hidden_size)
        assert shapes.pop("cos") == shapes.pop("sin") == (tokens, spec.head_dim)
        assert shapes.pop("position") == (1,)
        assert shapes.pop("attn_scale") == (spec.num_layers, spec.num_heads)
        assert shapes.pop("mlp_scale") == (spec.num_layers,)
        assert shapes == ({"valid_length": (1,)} if tokens > 1 else {})
        cache = (spec.num_layers, spec.num_kv_heads, config.cache_slots, spec.head_dim)
        assert {key: kind.shape for key, kind in functions[name].states.items()} == {
            "k_cache": cache,
            "v_cache": cache,
        }
    assert config.cache_slots % config.prefill_tokens == 0
    assert config.scalars is not None and len(config.scalars.attn_scale) == spec.num_layers


@pytest.mark.parametrize("mode", ["gate", "two-phase"])
def test_prompts_longer_than_a_chunk_and_chunks_at_odd_places(emitted: Emit, mode: str):
    """150 tokens are three padded chunks; a second prompt in the same cache begins in the middle of one."""
    plan, folded, graphs = emitted("llava", "qwen2", "float32", mode)
    rng = np.random.default_rng(0)
    embeds = rng.standard_normal((1, 150, plan.base.spec.hidden_size)).astype(np.float32)
    later = rng.standard_normal((1, 9, plan.base.spec.hidden_size)).astype(np.float32)
    logits = []
    for opened in (reference(plan, folded).engine, CoreMLEngine(graphs, strict=True)):
        cache, start = opened.new_cache(1), 0
        for rows, gated in ((embeds[:, :-1], False), (embeds[:, -1:], True), (later, True))[
            : 2 + (mode == "gate")
        ]:
            positions = np.arange(start, start + rows.shape[1])[None]
            step = Step(
                inputs_embeds=rows, lengths=np.array([rows.shape[1]]), position_ids=positions, gated=gated
            )
            logits.append(opened.forward(cache, step, None, "scaled" if gated else "base"))
            start += rows.shape[1]
    half = len(logits) // 2
    for expected, found in zip(logits[:half], logits[half:], strict=True):
        assert relative_error(expected, found) <= STRICT


def test_a_full_context_is_filled_to_the_last_slot(emitted: Emit):
    plan, _, graphs = emitted("llava", "qwen2", "float32", "gate")
    opened = CoreMLEngine(graphs, strict=True)
    context = opened.config.context_length
    embeds = np.zeros((1, context, opened.hidden_size), np.float32)
    cache = opened.new_cache(1)

    def step(tokens: int) -> Step:
        return Step(
            inputs_embeds=embeds[:, :tokens], lengths=np.array([tokens]), position_ids=np.arange(tokens)[None]
        )

    opened.forward(cache, step(3), None, "scaled")
    opened.forward(cache, step(context - 3), None, "scaled")  # ends by single steps: no chunk fits the rest
    with pytest.raises(UserError, match="do not fit the package's context"):
        opened.forward(cache, step(1), None, "scaled")
    assert plan.context_length == context


def test_scalars_override_live_and_ones_are_the_base_model(emitted: Emit):
    plan, folded, graphs = emitted("llava", "qwen2", "float32", "gate")
    inputs = prompt(plan.base)
    asked, oracle = (
        generator(CoreMLEngine(graphs, strict=True), plan.base, plan.fold),
        reference(plan, folded),
    )
    trained = asked.forced_logits(inputs, TOKENS)
    attn, mlp = folded.dense()
    asked.scalars = oracle.scalars = Scalars(attn=np.ones_like(attn), mlp=np.ones_like(mlp))
    base = asked.forced_logits(inputs, TOKENS)
    assert relative_error(oracle.forced_logits(inputs, TOKENS), base) <= STRICT
    assert relative_error(trained, base) > 100 * STRICT


def test_two_emissions_are_byte_identical(emitted: Emit, tmp_path: Path):
    plan, folded, graphs = emitted("llava", "qwen2", "int4", "two-phase")
    backend.emit(emission_of(plan, folded, precision="int4", vision_precision="float16"), tmp_path)
    first = graphs["runtime"].parent
    files = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    for name in files:
        assert (first / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_a_split_decoder_equals_the_whole_one(base_of: Any, emitted: Emit, tmp_path: Path):
    plan, folded, graphs = emitted("llava", "qwen2", "float32", "gate")
    spec = plan.base.spec
    ranges = split_layers(spec, Storage(precision="float32", block_size=32), None)
    assert ranges == [range(spec.num_layers)]
    smallest = 4 * sum(
        o * i for n, (o, i, _) in spec.linears().items() if n == "lm_head" or n.startswith("layers.0")
    )
    small = replace(plan, target=plan.target.model_copy(update={"max_part_bytes": smallest}))
    names = backend.emit(
        emission_of(small, folded, precision="float32", vision_precision="float32"), tmp_path
    )
    parts = [name for role, name in names.items() if role.startswith("decoder")]
    assert parts == [f"decoder_{i}of{spec.num_layers}.mlpackage" for i in range(1, spec.num_layers + 1)]
    assert all(package_bytes(tmp_path / part) < 0.6 * package_bytes(graphs["decoder"]) for part in parts)
    inputs = prompt(plan.base)
    split = CoreMLEngine({role: tmp_path / name for role, name in names.items()}, strict=True)
    whole = CoreMLEngine(graphs, strict=True)
    expected, found = (
        generator(e, plan.base, plan.fold).forced_logits(inputs, TOKENS) for e in (whole, split)
    )
    assert relative_error(expected, found) <= STRICT


def test_a_layer_larger_than_a_part_is_refused(emitted: Emit):
    plan, _, _ = emitted("llava", "qwen2", "float32", "gate")
    with pytest.raises(UserError, match=r"one layer and the head take .* allows 1,000 in one part"):
        split_layers(plan.base.spec, Storage(precision="int4", block_size=32), 1000)


@pytest.mark.parametrize("mode", ["gate", "two-phase"])
def test_an_answer_stops_at_the_end_of_the_context(emitted: Emit, mode: str):
    plan, _, graphs = emitted("llava", "qwen2", "float32", mode)
    inputs = encode_messages(plan.base.processor, [user_message([], "where is the circle ?")])
    opened = CoreMLEngine(graphs, strict=True)
    opened.config = opened.config.model_copy(update={"context_length": inputs["input_ids"].shape[1] + 2})
    tokens = generator(opened, plan.base, plan.fold).stream(inputs, max_new_tokens=9, rules=GenerationRules())
    found = [next(tokens) for _ in range(3)]
    with pytest.raises(StopIteration) as end:
        next(tokens)
    assert end.value.value == "context" and len(found) == 3


@pytest.mark.parametrize("mode", ["gate", "two-phase"])
def test_the_swift_sample_names_what_the_package_has(emitted: Emit, mode: str):
    _, _, graphs = emitted("llava", "qwen2", "int4", mode)
    source = (graphs["runtime"].parent / "ScaleExportModel.swift").read_text()
    functions = mil.load(graphs["decoder"]).functions
    known = {name for f in functions.values() for name in (*f.inputs, *f.outputs, *f.states)}
    vision = mil.load(graphs["vision"]).functions["main"]
    for name in (known | {*vision.inputs, *vision.outputs}) - {"k_cache", "v_cache"}:
        assert f'"{name}"' in source, name
    for function in functions:
        assert f'"{function}"' in source
    assert f'file: "{graphs["decoder"].stem}"' in source
    assert f"static let gated = {'true' if mode == 'gate' else 'false'}" in source
    assert "kCGImageSourceCreateThumbnailWithTransform: true" in source, "photos are turned upright"
    assert "CGImageSourceCreateImageAtIndex(" not in source, "it ignores the orientation"
    assert "import ImageIO" in source
    assert "filled == Self.contextLength { break }" in source, "the end of the context keeps the answer"
    assert not re.search("«|»", source)
    assert source.count("{") == source.count("}") and source.count("(") == source.count(")")


def test_no_picture_and_a_generated_image_token(emitted: Emit):
    plan, folded, graphs = emitted("llava", "qwen2", "float32", "gate")
    inputs = encode_messages(plan.base.processor, [user_message([], "where is the circle ?")])
    token = plan.base.family.image_token_id(plan.base.config)
    expected = reference(plan, folded).forced_logits(inputs, (token, 5))
    opened = CoreMLEngine(graphs, strict=True)
    found = generator(opened, plan.base, plan.fold).forced_logits(inputs, (token, 5))
    assert relative_error(expected, found) <= STRICT
    with pytest.raises(UserError, match="one prompt at a time"):
        opened.new_cache(2)


def test_a_package_answers_and_says_what_was_not_checked(phone_package: Path):
    parity = json.loads((phone_package / "parity.json").read_text())
    assert "interpreter" in parity["executed_by"]
    assert any("Neural Engine" in line for line in parity["not_checked"])
    assert parity["legs"]["lowering"]["value"] <= STRICT
    opened = open_package(phone_package)
    assert isinstance(opened.answer([], "where is the circle ?", max_new_tokens=3), str)
    opened.scale = 0.5
    assert opened.generator.scalars is not None


def test_opening_by_coremltools_leaves_every_byte(phone_package: Path):
    """It writes a package's manifest anew as it opens it, on a Mac at every use."""
    manifests = sorted(phone_package.glob("*.mlpackage/Manifest.json"))
    before = [manifest.read_bytes() for manifest in manifests]
    with unheard():
        for manifest in manifests:
            import_coremltools().utils.load_spec(str(manifest.parent))
    assert len(manifests) == 2 and [manifest.read_bytes() for manifest in manifests] == before


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"max_tile_side": 32}, r"tiles of 48 × 48 pixels, and target iphone allows 32"),
        ({"context_length": 8}, r"take \d+ tokens, and the context on target iphone holds 8"),
    ],
)
def test_a_target_that_cannot_hold_the_model(base_of: Any, change: dict[str, int], sentence: str):
    base = base_of("llava", "llama")
    with pytest.raises(UserError, match=sentence):
        make_plan(
            random_coefficients(base), base, load_target("iphone").model_copy(update=change), ExportOptions()
        )


def test_no_swift_sample_takes_the_best_token_where_rules_act(base_of: Any) -> None:
    base, rules = base_of("llava", "llama"), GenerationRules(end_tokens=(2,))
    inputs = {"pixel_values": TowerInput(shape=(3, 48, 48))}
    assert swift.covers(base.spec, inputs, rules)
    assert not swift.covers(base.spec, inputs, replace(rules, suppress_tokens=(9,)))
