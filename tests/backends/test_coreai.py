"""Core AI bundles against the portable decoder and Hugging Face, executed by Apple's own runtime.

What this shows is graph parity, not device parity.
"""

from __future__ import annotations

import asyncio
import functools
import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scale_export.backends.coreai import bundle, program
from scale_export.backends.coreai.backend import BACKEND as backend
from scale_export.backends.coreai.decoder import emit_decoder
from scale_export.core.compare import relative_error
from scale_export.core.errors import UserError
from scale_export.core.records import Rotary, TowerInput
from scale_export.core.words import PRECISIONS, FoldMode, Precision, Scope
from scale_export.device.coreai import engine as engine_module
from scale_export.device.coreai.engine import CoreAIEngine
from scale_export.device.engine import Step
from scale_export.model.arithmetic import TorchKernels, empty_cache
from scale_export.model.base import BaseModel
from scale_export.model.decoder import Gate, PortableDecoder
from scale_export.model.folding import FoldedDecoder
from scale_export.plan.make import make_plan
from scale_export.plan.options import ExportOptions
from scale_export.plan.record import Plan
from scale_export.plan.targets import Target, load_target
from scale_export.proof.cases import parity_prompts, reference_cases
from scale_export.proof.paths import path_logits
from tests.helpers.coefficients import random_coefficients
from tests.helpers.emission import TOKENS, emission_of, generator, opened, prompt, reference, stored

GRAPH_RELATIVE = 1e-5  # float32 arithmetic, whatever the weights' storage
WRONG_RELATIVE = 1e-2
FLOAT16_TIMES = (
    10  # of PyTorch's own float16 error: Apple's runtime for Linux sums float16 products in float16
)

Emitted = tuple[Plan, FoldedDecoder, dict[str, Path]]


@pytest.fixture(scope="module")
def emitted(base_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Emitted]:
    """``emitted(variant, precision, mode, scope, activations)``: a bundle on disk, built once each."""
    pytest.importorskip("coreai_torch")

    @functools.cache
    def build(
        variant: str = "llama",
        precision: Precision = "float32",
        mode: FoldMode = "gate",
        scope: Scope = "last",
        activations: Any = "float32",
    ) -> Emitted:
        plan = plan_of(base_of("llava", variant), precision, mode, scope, activations)
        folded = stored(plan)
        return plan, folded, write(folded, plan, tmp_path_factory.mktemp("bundle"))

    return build


def plan_of(
    base: BaseModel,
    precision: Precision = "float32",
    mode: FoldMode = "gate",
    scope: Scope = "last",
    activations: Any = "float32",
) -> Plan:
    options = ExportOptions(precision=precision, fold=mode, calib="none")
    return make_plan(random_coefficients(base, scope), base, target_of(activations), options)


def target_of(activations: Any = "float32") -> Target:
    """The shipped target with every precision, computing in ``activations`` beside integer weights."""
    types = dict.fromkeys(("activations", "kv_cache", "vision_precision"), activations)
    return load_target("coreai").model_copy(update={**types, "precisions": PRECISIONS})


def write(folded: FoldedDecoder, plan: Plan, directory: Path) -> dict[str, Path]:
    graphs = backend.emit(emission_of(plan, folded), directory)
    return {role: directory / name for role, name in graphs.items()}


def logits(emission: Emitted) -> Any:
    """Of the prompt and four tokens after it, by Apple's runtime."""
    plan, _, graphs = emission
    return generator(opened(backend, graphs, plan), plan.base, plan.fold).forced_logits(
        prompt(plan.base), TOKENS
    )


EXACT = [
    ("llama", "float32", "gate", "last"),
    ("llama-biased", "float32", "weights", "all"),
    ("llama3-rope", "float32", "gate", "all"),
    ("mistral-window", "float32", "gate", "last"),
    ("qwen2", "float32", "gate", "last"),
    ("qwen2", "int4", "gate", "last"),
    ("llama-biased", "int4", "weights", "all"),
    ("qwen2", "int8", "gate", "last"),
]


@pytest.mark.parametrize("case", EXACT, ids="-".join)
def test_prefill_and_decode_equal_the_portable_decoder_with_a_picture(emitted: Any, case: tuple[str, ...]):
    plan, folded, _ = emission = emitted(*case)
    expected = reference(plan, folded).forced_logits(prompt(plan.base), TOKENS)
    assert relative_error(expected, logits(emission)) <= GRAPH_RELATIVE


def test_the_program_equals_hugging_face_with_hooks(emitted: Any):
    plan, _, graphs = emitted()
    base = plan.base
    cases = reference_cases(base.model, base.processor, plan.coefficients, parity_prompts(2))
    found = path_logits(generator(opened(backend, graphs, plan), plan.base, plan.fold), cases)
    for case, row in zip(cases, found, strict=True):
        assert relative_error(case.logits, row) <= GRAPH_RELATIVE


@pytest.mark.parametrize("precision", ["float32", "int4"])
def test_another_adapter_is_far_away(emitted: Any, precision: Precision, tmp_path: Path):
    plan, folded, graphs = emission = emitted("qwen2", precision)
    halved = replace(plan.coefficients, head_scale=tuple(0.5 * s for s in plan.coefficients.head_scale))
    twin = shutil.copytree(graphs["decoder"].parent, tmp_path / "twin")
    emit_decoder(replace(folded, coefficients=halved), twin / bundle.DECODER, torch.float32)
    wrong = {role: twin / path.name for role, path in graphs.items()}
    assert relative_error(logits(emission), logits((plan, folded, wrong))) >= WRONG_RELATIVE


def test_only_the_last_token_of_each_forward_is_scaled(emitted: Any):
    """A prompt in two forwards scales two tokens: rightly refused as a chunk, and far from one forward."""
    plan, folded, graphs = emitted()
    engine = opened(backend, graphs, plan)
    whole = generator(engine, plan.base, plan.fold).forced_logits(prompt(plan.base), ())[0]
    embeds = generator(engine, plan.base, plan.fold).embed_prompt(prompt(plan.base)).embeds
    half = embeds.shape[1] // 2
    cache = engine.new_cache(1)
    steps = [step(embeds[:, :half], 0), step(embeds[:, half:], half)]
    with pytest.raises(ValueError, match="constants"):
        engine.forward(cache, replace(steps[0], gated=False), None, "base")
    twice = [engine.forward(cache, s, None, "scaled") for s in steps][-1]
    assert relative_error(whole, twice[0]) >= WRONG_RELATIVE
    assert relative_error(reference_logits(plan, folded, steps), twice) <= GRAPH_RELATIVE


def step(embeds: Any, start: int) -> Step:
    tokens = embeds.shape[1]
    positions = np.arange(start, start + tokens)[None]
    return Step(inputs_embeds=embeds, lengths=np.array([tokens]), position_ids=positions)


def reference_logits(plan: Plan, folded: FoldedDecoder, steps: list[Step]) -> Any:
    engine = reference(plan, folded).engine
    cache = engine.new_cache(1)
    return [engine.forward(cache, s, None, "scaled") for s in steps][-1]


def test_rows_of_unequal_length_and_a_growing_cache(emitted: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(engine_module, "FIRST_SLOTS", 2)
    plan, folded, graphs = emitted()
    engine, expected = opened(backend, graphs, plan), reference(plan, folded).engine
    rng = np.random.default_rng(0)
    caches = engine.new_cache(2), expected.new_cache(2)
    lengths, start = np.array([5, 3]), np.zeros(2, np.int64)
    for width in (5, 1, 1):
        embeds = rng.standard_normal((2, width, engine.hidden_size)).astype(np.float32)
        lengths = np.minimum(lengths, width)
        taken = Step(
            inputs_embeds=embeds, lengths=lengths, position_ids=start[:, None] + np.arange(width)[None]
        )
        found, right = (
            e.forward(c, taken, None, "scaled") for e, c in zip((engine, expected), caches, strict=True)
        )
        assert relative_error(right, found) <= GRAPH_RELATIVE
        start = start + lengths


def test_the_context_is_a_limit(emitted: Any):
    plan, _, graphs = emitted()
    engine = opened(backend, graphs, replace(plan, context_length=4))
    embeds = np.zeros((1, 5, engine.hidden_size), np.float32)
    with pytest.raises(UserError, match="context of 4"):
        engine.forward(engine.new_cache(1), step(embeds, 0), None, "scaled")


def test_vision_and_embeddings_equal_pytorch(emitted: Any):
    plan, folded, graphs = emitted("qwen2", "int4")
    engine, expected = opened(backend, graphs, plan), reference(plan, folded).engine
    pixels = {"pixel_values": prompt(plan.base)["pixel_values"]}
    features = engine.vision(pixels)["image_features"]
    assert relative_error(expected.vision(pixels)["image_features"], features) <= GRAPH_RELATIVE
    ids, none = np.arange(12).reshape(2, 6), np.zeros((0, engine.hidden_size), np.float32)
    np.testing.assert_allclose(engine.embed(ids, none), expected.embed(ids, none), rtol=1e-6)


@pytest.mark.parametrize("precision", ["float16", "int4"])
def test_float16_is_what_the_stock_engine_takes(emitted: Any, precision: Precision):
    plan, folded, graphs = emitted("llama", precision, activations="float16")
    authoring = pytest.importorskip("coreai.authoring")
    ends = {"decoder": "logits", "embedding": "embeddings", "vision": "image_features"}
    for role, name in ends.items():
        summary = authoring.AIModelAsset.load(graphs[role]).summary(include_statistics=False)
        outputs = dict(summary.function_outputs("main"))
        assert list(outputs) == [name] and "Float16" in outputs[name]
    embeds = reference(plan, folded).embed_prompt(prompt(plan.base)).embeds
    engine = opened(backend, graphs, plan)
    found = engine.forward(engine.new_cache(1), step(embeds, 0), None, "scaled")
    exact, rounded = (torch_logits(folded, embeds, dtype) for dtype in (torch.float32, torch.float16))
    assert relative_error(exact, found) <= FLOAT16_TIMES * relative_error(exact, rounded)


@torch.no_grad()
def torch_logits(folded: FoldedDecoder, embeds: Any, dtype: torch.dtype) -> Any:
    """``[1, V]`` after a prompt, by the portable decoder in a type."""
    spec, tokens = folded.weights.spec, embeds.shape[1]
    attn, mlp = (torch.from_numpy(part) for part in folded.dense())
    decoder = PortableDecoder(spec, TorchKernels(folded.weights, dtype), last_logits_only=True)
    found, _ = decoder(
        torch.from_numpy(embeds).to(dtype),
        torch.ones(1, tokens, dtype=torch.int64),
        torch.arange(tokens)[None],
        empty_cache(spec, 1, dtype),
        Gate(scope="last", attn_scale=attn, mlp_scale=mlp),
        torch.tensor([-1]),
    )
    return found[:, -1].float().numpy()


STORED = [("float32", "Float32"), ("float16", "Float16"), ("int8", "Int8"), ("int4", "Int4")]


@pytest.mark.parametrize(("precision", "kind"), STORED)
def test_matrices_are_stored_as_asked(emitted: Any, precision: Precision, kind: str):
    plan, _, graphs = emitted("qwen2", precision)
    authoring = pytest.importorskip("coreai.authoring")
    asset = program.Asset(handle=authoring.AIModelAsset.load(graphs["decoder"]), matrix_values=0)
    shapes = plan.base.spec.linears().values()
    values = sum(rows * columns for rows, columns, _ in shapes)
    packed = len(shapes) if plan.quantized else 0
    program.check_storage(asset, kind, values=values, packed=packed)
    with pytest.raises(RuntimeError, match="should hold"):
        program.check_storage(asset, kind, values=values, packed=packed + 1)
    with pytest.raises(RuntimeError, match="should hold"):
        program.check_storage(asset, "Int2", values=values, packed=packed)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_folding_leaves_every_integer_code(emitted: Any, precision: Precision):
    _, folded, graphs = emitted("llama-biased", precision, "weights", "all")
    names = sorted(folded.factors)
    assert len(names) == 2 * folded.weights.spec.num_layers
    base = replace(folded.weights, factors={})
    assert backend.code_hashes(graphs, names) == {name: base.block(name).codes_sha256 for name in names}


def test_the_bundle_is_what_apples_loader_reads(emitted: Any):
    plan, _, graphs = emitted()
    directory = graphs["decoder"].parent
    metadata = json.loads((directory / bundle.METADATA).read_text(encoding="utf-8"))
    assert (metadata["metadata_version"], metadata["kind"]) == ("0.2", "vlm")
    assert {directory / name for name in metadata["assets"].values()} == set(graphs.values())
    assert set(metadata["language"]) >= {"tokenizer", "vocab_size", "max_context_length", "function_map"}
    assert metadata["vision"]["image_token_count"] == 9
    assert metadata["vision"]["image_strategy"] == "center_crop"
    assert metadata["vision"]["rescale_factor"] == pytest.approx(1.0)
    assert all(isinstance(value, str) for value in metadata["user_data"].values())
    assert (directory / "tokenizer" / "tokenizer.json").exists()
    desc = opened(backend, graphs, plan)._decoder.desc
    assert (desc.input_names, desc.state_names, desc.output_names) == (
        ["inputs_embeds", "position_ids"],
        ["k_cache", "v_cache"],
        ["logits"],
    )


def test_two_runs_write_the_same_bundle(emitted: Any, tmp_path: Path):
    plan, folded, graphs = emitted("qwen2", "int4")
    again = write(folded, plan, tmp_path)
    assert contents(again) == contents(graphs)


def contents(graphs: dict[str, Path]) -> dict[str, str]:
    """What a bundle says; its programs as text, since the converter draws names of helpers by chance."""
    authoring = pytest.importorskip("coreai.authoring")
    directory = graphs["decoder"].parent
    files = [path for path in directory.rglob("*") if path.is_file() and path.stem != "main"]
    texts = {str(path.relative_to(directory)): path.read_text(encoding="utf-8") for path in files}
    programs = {role: str(authoring.AIModelAsset.load(path).program) for role, path in graphs.items()}
    return texts | {role: re.sub(r"@(\w+)_[a-z]{8}\b", r"@\1", text) for role, text in programs.items()}


def test_a_damaged_or_missing_asset_is_named(emitted: Any, tmp_path: Path):
    _, _, graphs = emitted()
    damaged = shutil.copytree(graphs["vision"], tmp_path / bundle.VISION)
    (damaged / "main.mlirb").write_bytes(b"no program")
    for asset in (damaged, tmp_path / "gone.aimodel"):
        with pytest.raises(UserError, match=f"{asset.name} is not a whole Core AI asset"):
            CoreAIEngine({**graphs, "vision": asset}, context_length=8)


def test_it_runs_inside_a_callers_event_loop(emitted: Any):
    async def caller() -> Any:
        return logits(emitted())

    assert asyncio.run(caller()).shape[0] == len(TOKENS) + 1


def test_tiles_are_refused(base_of: Any):
    with pytest.raises(UserError, match="cuts pictures into tiles"):
        bundle.refuse_unserved(plan_of(base_of("llava_next", "llama")))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rotaries": (Rotary(inv_freq=(1.0, 0.5), axes=(0, 2)),)}, "several axes"),
        ({"grouped_attention": True}, "whole group"),
        ({"deepstack_layers": 1}, "first layers"),
    ],
)
def test_decoders_that_the_stock_engine_cannot_feed_are_refused(
    base_of: Any, change: dict[str, Any], reason: str
):
    plan = plan_of(base_of("llava", "llama"))
    bundle.refuse_unserved(plan)
    base = replace(plan.base)
    base.__dict__["spec"] = replace(plan.base.spec, **change)
    with pytest.raises(UserError, match=reason):
        bundle.refuse_unserved(replace(plan, base=base))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tower_inputs": {"pixel_values": TowerInput(shape=(3, 48, 96))}}, "square"),
        ({"fold": "two-phase"}, "two phases"),
    ],
)
def test_what_the_stock_engine_cannot_place_is_refused(base_of: Any, change: dict[str, Any], reason: str):
    with pytest.raises(UserError, match=reason):
        bundle.refuse_unserved(replace(plan_of(base_of("llava", "llama")), **change))


def test_a_missing_extra_is_named(base_of: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for module in ("coreai_torch", "coreai.runtime"):
        monkeypatch.setitem(sys.modules, module, None)
    named = r"pip install 'scale-export\[coreai\]'"
    with pytest.raises(UserError, match=named):
        backend.check(plan_of(base_of("llava", "llama")))
    with pytest.raises(UserError, match=named):
        CoreAIEngine({"decoder": tmp_path}, context_length=8)


def test_the_parity_is_labelled(emitted: Any):
    plan, _, graphs = emitted()
    label = "graph parity, not device parity"
    assert label in CoreAIEngine(graphs, context_length=plan.context_length).executed_by
    assert label in " ".join(map(str, backend.not_checked(load_target("coreai"))))


def test_apples_own_module_unpacks_our_codes_to_our_weights(base_of: Any):
    """The one that coreai-opt leaves in a finalized model."""
    layers = pytest.importorskip("coreai_torch._compression.custom_layers")
    plan = plan_of(base_of("llava", "llama"), "int4")
    folded = stored(plan)
    block = folded.weights.block("layers.0.o_proj")
    ours = program.PackedMatrix(block, torch.float32)
    theirs = layers.WeightDequantizeModule(ours.codes, ours.scales, input_dtype=torch.int4)
    np.testing.assert_array_equal(theirs().numpy(), block.dequantize())
    np.testing.assert_array_equal(ours().numpy(), block.dequantize())
