"""Packages inside onnxruntime-genai's runtime: the same tokens and logits as ours, with pictures and without."""

from __future__ import annotations

import functools
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og
import pytest

from scale_export import UserError, open_package
from scale_export.backends.onnxruntime.backend import BACKEND as backend
from scale_export.backends.onnxruntime.genai import FOLLOWED, genai_config
from scale_export.backends.onnxruntime.genai_graphs import fit_graphs
from scale_export.backends.onnxruntime.graphs import write_adapter
from scale_export.core import limits
from scale_export.core.compare import relative_error
from scale_export.core.records import Array, Float32
from scale_export.device.engine import Scalars
from scale_export.device.generation import Generator, Inputs
from scale_export.device.onnxruntime.engine import OnnxEngine
from scale_export.device.onnxruntime.genai import CONFIG, MODEL_TYPES, PLACES, genai_inputs
from scale_export.device.prompts import encode_messages, user_message
from scale_export.device.rules import GenerationRules
from scale_export.package.manifest import open_package_files
from tests.helpers.coefficients import random_coefficients, saved
from tests.helpers.emission import Emit, emission_of, emitting, generator
from tests.helpers.folds import fold_on
from tests.helpers.pictures import picture

pytestmark = pytest.mark.slow

CPU = ["CPUExecutionProvider"]
STEPS = 8
ONE_THREAD = {"intra_op_num_threads": 1}
PICTURES = {
    "wide": [(150, 110)],
    "tall": [(48, 96)],
    "two": [(96, 48), (48, 96)],
    "alike": [(64, 48), (64, 48)],
    "none": [],
}
LIMIT = limits.LOWERING_RELATIVE["float32"]


class Ran:
    """One random model's graphs, with our engine on them and genai's."""

    def __init__(self, plan: Any, graphs: Mapping[str, Path]) -> None:
        self.base, self.plan = plan.base, plan
        self.directory = graphs["decoder"].parent
        engine = OnnxEngine(graphs, context_length=plan.context_length, providers=CPU)
        self.ours: Generator = generator(engine, plan.base, plan.fold)
        self.rules = plan.base.rules
        self.model = opened(self.directory)

    def prepared(self, sizes: list[tuple[int, int]]) -> Inputs:
        pictures = [picture(i, size) for i, size in enumerate(sizes)]
        return encode_messages(self.base.processor, [user_message(pictures, "is the red circle left ?")])

    def named(self, inputs: Inputs) -> dict[str, Array]:
        return genai_inputs(inputs, self.ours.family, self.ours.runtime_config, self.ours.image_token_id)

    def answered(self, inputs: Inputs) -> tuple[list[int], Float32]:
        """Our greedy tokens, and the logits before each and after the last."""
        tokens = list(self.ours.stream(inputs, max_new_tokens=STEPS, rules=self.rules))
        return tokens, self.ours.forced_logits(inputs, tokens)


def opened(directory: Path) -> Any:
    """The runtime on a package's graphs, as its configuration says but for the threads."""
    config = og.Config(str(directory))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": ONE_THREAD}}}))
    return og.Model(config)


def genai_answered(
    model: Any, named: Mapping[str, Array], steps: int = STEPS, adapters: Any = None
) -> tuple[list[int], Float32]:
    """The runtime's greedy tokens without the end token, and its logits before each and after the last."""
    tensors, params = og.NamedTensors(), og.GeneratorParams(model)
    for name, value in named.items():
        tensors[name] = value
    length = named["input_ids"].shape[1]
    params.set_search_options(max_length=length + steps + 1)
    asked = og.Generator(model, params)
    if adapters is not None:
        asked.set_active_adapter(adapters, "other")
    asked.set_inputs(tensors)
    rows, tokens = [asked.get_logits()[0, -1]], []
    for _ in range(steps):
        asked.generate_next_token()
        if asked.is_done():
            break
        tokens.append(int(asked.get_next_tokens()[0]))
        rows.append(asked.get_logits()[0, -1])
    return tokens, np.stack(rows)


@pytest.fixture(scope="module")
def emitted(base_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Emit:
    return emitting("cpu", backend, base_of, tmp_path_factory)


@pytest.fixture(scope="module")
def ran(emitted: Emit) -> Callable[..., Ran]:
    @functools.cache
    def run(family: str, precision: str = "float32", mode: str = "gate", scope: str = "last") -> Ran:
        plan, _, graphs = emitted(family, "llama", precision, mode, scope)
        return Ran(plan, graphs)

    return run


PACKAGES = [
    *((family, precision) for family in sorted(MODEL_TYPES) for precision in ("float32", "int4")),
    ("qwen3_vl", "float16"),  # all three graphs fitted, in both float types
    ("gemma3", "int8"),
]


@pytest.mark.parametrize("pictures", PICTURES)
@pytest.mark.parametrize(("family", "precision"), PACKAGES)
def test_the_same_greedy_tokens_and_logits(
    ran: Callable[..., Ran], family: str, precision: str, pictures: str
):
    asked = ran(family, precision)
    inputs = asked.prepared(PICTURES[pictures])
    tokens, logits = asked.answered(inputs)
    found_tokens, found = genai_answered(asked.model, asked.named(inputs))
    assert found_tokens == tokens
    assert relative_error(logits, found) <= LIMIT


def test_integer_weights_beside_float16_activations(emitted: Emit):
    plan, _, graphs = emitted("gemma3", "own", "int4", activations="float16")
    asked = Ran(plan, graphs)
    inputs = asked.prepared(PICTURES["wide"])
    tokens, logits = asked.answered(inputs)
    found_tokens, found = genai_answered(asked.model, asked.named(inputs))
    assert found_tokens == tokens
    assert relative_error(logits, found) <= LIMIT


def test_folded_weights_answer_alike(ran: Callable[..., Ran]):
    asked = ran("mistral3", "int4", "weights", "all")
    inputs = asked.prepared(PICTURES["wide"])
    assert genai_answered(asked.model, asked.named(inputs))[0] == asked.answered(inputs)[0]


def test_other_scalars_are_ignored_as_the_page_says(ran: Callable[..., Ran], tmp_path: Path):
    asked = ran("qwen2_5_vl")
    spec, file = asked.base.spec, tmp_path / "base.onnx_adapter"
    ones = np.ones((spec.num_layers, spec.num_heads), np.float32)
    write_adapter(ones, ones[:, 0], file)
    adapters = og.Adapters(asked.model)
    adapters.load(str(file), "other")
    inputs = asked.prepared(PICTURES["wide"])
    found = genai_answered(asked.model, asked.named(inputs), adapters=adapters)[1]
    assert relative_error(asked.answered(inputs)[1], found) <= LIMIT
    asked.ours.scalars = Scalars(attn=ones, mlp=ones[:, 0])
    try:
        assert relative_error(asked.answered(inputs)[1][:1], found[:1]) > 10 * LIMIT
    finally:
        asked.ours.scalars = None


def test_no_token_of_a_prompt_counts_as_padding(ran: Callable[..., Ran]):
    asked = ran("qwen2_5_vl")
    inputs = dict(asked.prepared(PICTURES["wide"]))
    inputs["input_ids"] = inputs["input_ids"].copy()
    inputs["input_ids"][0, -4] = asked.base.processor.tokenizer.pad_token_id
    tokens, logits = asked.answered(inputs)
    found_tokens, found = genai_answered(asked.model, asked.named(inputs))
    assert found_tokens == tokens and relative_error(logits, found) <= LIMIT


def test_sabotage_features_in_another_order(ran: Callable[..., Ran]):
    asked = ran("qwen2_5_vl")
    inputs = asked.prepared(PICTURES["wide"])
    named = asked.named(inputs)
    named[PLACES] = np.ascontiguousarray(named[PLACES][np.lexsort(named[PLACES].T[::-1])])
    _, found = genai_answered(asked.model, named, steps=0)
    assert relative_error(asked.answered(inputs)[1][:1], found) > 10 * LIMIT


@pytest.mark.parametrize("family", ["gemma3", "qwen3_vl"])
def test_sabotage_fitted_to_another_image_token(ran: Callable[..., Ran], family: str, tmp_path: Path):
    asked = ran(family)
    broken = tmp_path / "broken"
    shutil.copytree(asked.directory, broken)
    names = fit_graphs(
        broken,
        asked.base.spec,
        asked.ours.image_token_id + 1,
        scope=asked.plan.coefficients.scope,
        scalars=asked.plan.coefficients.dense(asked.base.spec.num_layers, asked.base.spec.num_heads),
    )
    assert names["decoder"] == "genai_decoder.onnx"
    inputs = asked.prepared(PICTURES["wide"])
    _, found = genai_answered(opened(broken), asked.named(inputs), steps=0)
    assert relative_error(asked.answered(inputs)[1][:1], found) > 10 * LIMIT


def test_it_follows_the_rules_that_its_configuration_names(
    ran: Callable[..., Ran], base_of: Any, tmp_path: Path
):
    asked = ran("qwen2_5_vl")
    inputs = asked.prepared(PICTURES["wide"])
    free = asked.answered(inputs)[0]
    length = inputs["input_ids"].shape[1]
    rules = GenerationRules(end_tokens=(free[3],), repetition_penalty=1.5, min_length=length + STEPS - 1)
    assert set(rules.acting) == FOLLOWED
    names = {"decoder": "genai_decoder.onnx", "embedding": "embedding.onnx", "vision": "genai_vision.onnx"}
    config = genai_config(
        asked.base.spec, asked.base.config, names, rules=rules, context_length=asked.plan.context_length,
        image_token_id=asked.ours.image_token_id,
    )  # fmt: skip
    directory = Path(shutil.copytree(asked.directory, tmp_path / "ruled"))
    (directory / CONFIG).write_text(json.dumps(config))
    due = list(asked.ours.stream(inputs, max_new_tokens=STEPS, rules=rules))
    assert due != free
    assert genai_answered(opened(directory), asked.named(inputs))[0] == due


@pytest.mark.parametrize(
    ("rule", "written"), [({"repetition_penalty": 1.05}, True), ({"suppress_tokens": (9,)}, False)]
)
def test_rules_that_it_does_not_follow_leave_it_without_a_configuration(
    emitted: Emit, tmp_path: Path, rule: dict[str, Any], written: bool
):
    plan, folded, graphs = emitted("qwen2_5_vl")
    ruled = replace(plan.base)
    vars(ruled)["rules"] = replace(plan.base.rules, **rule)
    directory = Path(shutil.copytree(graphs["decoder"].parent, tmp_path / "ruled"))
    for file in directory.glob("genai*"):
        file.unlink()
    backend.emit_side_files(replace(emission_of(plan, folded), base=ruled), directory)
    assert (directory / CONFIG).exists() is written


def test_what_the_runtime_cannot_run_gets_no_configuration(emitted: Emit):
    for case in (("qwen2_5_vl", "llama", "float32", "two-phase"), ("llava", "llama", "float32", "gate")):
        _, _, graphs = emitted(*case)
        names = {path.name for path in graphs["decoder"].parent.iterdir()}
        assert not {name for name in names if name.startswith("genai")}


def test_the_documented_way(base_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: Path):
    base = base_of("qwen2_5_vl", "llama")
    coefficients = saved(random_coefficients(base), tmp_path)
    out = tmp_path / "spatial-cpu"
    outcome = fold_on(base, coefficients, "cpu", out=out, precision="float32", evaluation="none")
    assert outcome.passed
    assert {CONFIG, "genai_decoder.onnx", "genai_vision.onnx"} <= set(open_package_files(out).manifest.files)
    page = (Path(__file__).parents[2] / "docs/package.md").read_text(encoding="utf-8")
    code = re.search(r"## In onnxruntime-genai.*?```python\n(.*?)```", page, re.DOTALL)
    assert code
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {"picture": picture(size=(150, 110))}
    exec(code.group(1), found)
    question = "what is left of the red circle ?"
    assert found["answer"].strip() == open_package(out).answer(
        [found["picture"]], question, max_new_tokens=64
    )
    with pytest.raises(UserError, match=CONFIG):
        open_package(package).genai_inputs([found["picture"]], question)
