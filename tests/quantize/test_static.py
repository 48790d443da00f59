"""w8a8: int8 on both sides of every product. The method, where it folds, its graph, and every way to get it wrong."""

from __future__ import annotations

import collections
import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F

from scale_export.backends.onnxruntime.backend import BACKEND as backend
from scale_export.backends.onnxruntime.decoder import block_codes, signed_codes
from scale_export.backends.onnxruntime.trace import traced_anew
from scale_export.backends.processor import copy_processor
from scale_export.coefficients.file import Coefficients
from scale_export.core import limits
from scale_export.core.compare import relative_error
from scale_export.core.errors import UserError
from scale_export.core.progress import WorkLog
from scale_export.device.engine import Scalars
from scale_export.device.onnxruntime.engine import OnnxEngine
from scale_export.doctor.examine import examine
from scale_export.model.engine import ReferenceEngine
from scale_export.model.folding import fold
from scale_export.pipeline.api import verify
from scale_export.plan.make import make_plan
from scale_export.plan.options import ExportOptions, Origins
from scale_export.plan.record import Plan
from scale_export.plan.targets import load_target
from scale_export.proof.choose import measurement_of
from scale_export.proof.measure import Measurement
from scale_export.quantize import (
    CalibrationOptions,
    StaticKernels,
    StaticWeights,
    calibration,
    load_quantizer,
)
from scale_export.quantize.equalize import EqualizedWeights
from scale_export.quantize.grid import symmetric
from scale_export.quantize.methods.smoothquant import SmoothQuant
from scale_export.quantize.static import input_step, rounded_inputs
from tests.helpers.coefficients import random_coefficients, saved
from tests.helpers.emission import TOKENS, emission_of, generator, prompt, stored, weights_of
from tests.helpers.folds import fold_on, opened_once
from tests.helpers.moments import Correlated, correlated

CPU = ("CPUExecutionProvider",)
QUESTIONS = {"calib": "gridworld", "calib_limit": 4}
EXAMPLE = Path(__file__).parents[2] / "examples/tiny_vlm"

Emit = Callable[..., Measurement]


def mlp_only(coefficients: Coefficients, head: float = 1.0) -> Coefficients:
    """The same MLP scalars, with all heads alike."""
    heads = tuple(np.full_like(row, head) for row in coefficients.head_scale)
    return replace(coefficients, head_scale=heads)


def plan_of(base: Any, scope: Any = "last", *, heads: float | None = None, **options: Any) -> Plan:
    coefficients = random_coefficients(base, scope)
    coefficients = coefficients if heads is None else mlp_only(coefficients, heads)
    return make_plan(
        coefficients, base, load_target("cpu"), ExportOptions(precision="w8a8", **QUESTIONS, **options)
    )


@pytest.fixture(scope="module")
def measurement(base_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Emit:
    """``measurement(mode, scope, heads=…)``: a w8a8 export of a random model, ready to be measured.

    By a streamed reference, which asks few prompts.
    """

    @functools.cache
    def build(mode: str = "gate", scope: Any = "last", **options: Any) -> Measurement:
        base = base_of("llava", "llama-biased")
        plan = plan_of(base, scope, fold=mode, **options)
        directory = tmp_path_factory.mktemp("export")
        names = backend.emit(emission_of(plan, stored(plan), vision_precision="float32"), directory)
        copy_processor(base, directory)
        graphs = {role: directory / name for role, name in names.items()}
        kind, quiet = measurement_of(plan), WorkLog(quiet=True)
        return kind(
            plan=plan,
            weights=weights_of(plan),
            directory=directory,
            graphs=graphs,
            log=quiet,
            parity="streamed",
        )

    return build


def static_weights(found: Measurement) -> StaticWeights:
    weights = stored(found.plan).weights
    assert isinstance(weights, StaticWeights)
    return weights


def report_of(found: Measurement) -> Any:
    return found.run(None, None).report


# The arithmetic.


def test_inputs_round_as_the_operator_does():
    """Halves to even, clipped at −128 and 127: ONNX Runtime's own QuantizeLinear on the same values."""
    step = np.float32(0.25)
    x = np.concatenate([np.arange(-70, 70) * np.float32(0.125), np.random.default_rng(0).normal(0, 12, 400)])
    x = x.astype(np.float32)[None]
    node = onnx.helper.make_node
    graph = onnx.helper.make_graph(
        [node("QuantizeLinear", ["x", "s", "z"], ["q"]), node("DequantizeLinear", ["q", "s", "z"], ["y"])],
        "round",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, list(x.shape))],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, list(x.shape))],
        [onnx.numpy_helper.from_array(step, "s"), onnx.numpy_helper.from_array(np.int8(0), "z")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 22)], ir_version=10)
    expected = ort.InferenceSession(model.SerializeToString(), providers=list(CPU)).run(None, {"x": x})[0]
    found = rounded_inputs(torch.from_numpy(x), float(step)).numpy()
    np.testing.assert_array_equal(found, expected)
    assert found.min() == -32 and found.max() == 31.75  # both ends were reached


def test_a_row_is_rounded_to_127_either_way_and_silence_stays_finite():
    weight = np.random.default_rng(0).standard_t(3, (6, 40)).astype(np.float32)
    weight[2] = 0
    block = symmetric(weight, 8, 40)
    signed = block.codes.astype(np.int16) - 128
    assert (np.abs(signed).max(axis=(1, 2))[[0, 1, 3, 4, 5]] == 127).all()
    assert (block.scales > 0).all() and not block.dequantize()[2].any()
    assert np.abs(block.dequantize() - weight).max() <= 0.5001 * block.scales.max()
    np.testing.assert_array_equal(block_codes(signed_codes(block.codes)), block.codes)
    np.testing.assert_array_equal(signed_codes(block.codes), signed[:, 0].T)
    assert input_step(np.zeros(3, np.float32)) == 1
    assert input_step(np.array([1, 254, 3], np.float32)) == 2


def product_error(weight: Any, x: Any, columns: Any) -> float:
    """‖ŷ − y‖² of rounded inputs times rounded weights, channels scaled by ``columns``."""
    scaled = x / columns
    rounded = rounded_inputs(torch.from_numpy(scaled), float(input_step(np.abs(scaled).max(axis=0)))).numpy()
    made = symmetric(weight * columns, 8, weight.shape[1]).dequantize()
    return float(np.square(rounded @ made.T - x @ weight.T).sum())


def test_smoothing_pays_where_channels_are_loud(base_of: Any):
    """On inputs with three outlier channels, real errors of real products: smoothed, they are a fifth at the most."""
    base = base_of("llava", "llama")
    name, rng = "layers.0.gate_proj", np.random.default_rng(3)
    weight = base.weights.matrix(name).numpy()
    x = rng.standard_normal((500, weight.shape[1])).astype(np.float32)
    x[:, [3, 17, 40]] *= 80
    statistics = _Seen(x)
    equalized, seen = load_quantizer("smoothquant").prepare(base.weights, statistics, 8, 0)
    columns = equalized.columns(name)  # type: ignore[attr-defined]
    plain, smoothed = (product_error(weight, x, c) for c in (np.ones_like(columns), columns))
    assert smoothed < 0.2 * plain
    np.testing.assert_allclose(seen.peaks(name), np.abs(x / columns).max(axis=0), rtol=1e-6)
    fixed = SmoothQuant((0.5,)).prepare(base.weights, statistics, 8, 0)[0].columns(name)  # type: ignore[attr-defined]
    assert smoothed <= 1.1 * product_error(weight, x, fixed)


class _Seen:
    """Statistics of one matrix's inputs, told of every matrix as wide."""

    def __init__(self, x: Any) -> None:
        self.x = x

    def moments(self, name: str) -> Any:
        return correlated(1).__class__((self.x.T @ self.x / len(self.x)).astype(np.float32))

    def peaks(self, name: str) -> Any:
        return np.abs(self.x).max(axis=0)


@pytest.mark.parametrize("method", ["rtn", "smoothquant"])
@pytest.mark.parametrize("variant", ["llama-biased", "qwen2"])
def test_codes_are_byte_identical_before_and_after_folding(base_of: Any, method: str, variant: str):
    """MLP scalars, and heads that are all alike, multiply scales of output channels."""
    base = base_of("llava", variant)
    coefficients = mlp_only(random_coefficients(base, "all"), head=0.7)
    plain = StaticWeights.prepared(
        base.weights, load_quantizer(method), bits=8, block_size=0, statistics=Correlated(base.spec)
    )
    factors = fold(base.weights, coefficients, "weights").factors
    folded = replace(plain, factors=factors)
    for name in base.spec.linears():
        assert folded.block(name).codes_sha256 == plain.block(name).codes_sha256
        assert folded.step(name) == plain.step(name)
        factor = factors[name].columns[0] if name in factors else 1
        np.testing.assert_array_equal(
            folded.block(name).scales, plain.block(name).scales * np.float32(factor)
        )
    assert torch.equal(folded.embedding(), base.weights.embedding())


# What the plan allows.


def test_head_scalars_cannot_fold_and_mlp_scalars_can(base_of: Any):
    base = base_of("llava", "llama")
    gated = plan_of(base, "all")
    assert gated.fold == "gate" and "one scale for each output channel" in gated.decisions[0]
    with pytest.raises(UserError, match=r"can't take heads with different scalars.*use --fold gate$"):
        plan_of(base, "all", fold="weights")
    with pytest.raises(UserError, match="can't take heads with different scalars"):
        plan_of(base, "last", fold="two-phase")
    assert plan_of(base, "all", heads=1.0).fold == "weights"
    assert plan_of(base, "all", heads=0.5).fold == "weights"
    with pytest.raises(UserError, match="not positive"):
        plan_of(base, "all", heads=0.0, fold="weights")
    assert plan_of(base, "all", heads=-1.0).fold == "gate"


def test_the_plan_says_what_both_sides_are(base_of: Any):
    plan = plan_of(base_of("llava", "llama"))
    assert plan.static and plan.quantized and plan.block_size == 0 and plan.bits == 8
    assert any("inputs of their products int8" in said for said in plan.decisions)
    with pytest.raises(UserError, match="no precision 'w8a8'"):
        make_plan(plan.coefficients, plan.base, load_target("coreml"), ExportOptions(precision="w8a8"))


# The graph.


@pytest.mark.parametrize(("mode", "scope", "heads"), [("gate", "last", None), ("weights", "all", 1.0)])
def test_a_graph_holds_standard_operators_around_every_product(
    measurement: Emit, mode: str, scope: str, heads: Any
):
    found = measurement(mode, scope, heads=heads)
    spec, graph = found.plan.base.spec, onnx.load(found.graphs["decoder"]).graph
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    operators = collections.Counter(node.op_type for node in graph.node)
    groups = 4 * spec.num_layers + 1
    assert operators["MatMul"] == len(spec.linears()) and "MatMulNBits" not in operators
    assert operators["QuantizeLinear"] == groups, "matrices that share their inputs share the rounding"
    weights = static_weights(found)
    for product in (node for node in graph.node if node.op_type == "MatMul"):
        inputs, matrix = (makers[name] for name in product.input)
        rounding, name = makers[inputs.input[0]], matrix.input[0].removesuffix(".codes")
        assert {n.domain for n in (inputs, matrix, rounding, product)} == {""}
        assert (inputs.op_type, matrix.op_type, rounding.op_type) == (
            *["DequantizeLinear"] * 2,
            "QuantizeLinear",
        )
        assert list(rounding.input[1:]) == list(inputs.input[1:])
        assert tensors[rounding.input[2]].dtype == np.int8 and tensors[rounding.input[2]] == 0
        assert tensors[rounding.input[1]] == weights.step(name)
        assert [a.i for a in matrix.attribute if a.name == "axis"] == [1]
        codes, scales = (tensors[value] for value in matrix.input)
        assert codes.dtype == np.int8 and codes.shape == spec.linears()[name][1::-1] and codes.min() >= -127
        np.testing.assert_allclose((codes * scales).T, weights.matrix(name).numpy(), rtol=1e-6)
    assert sum(t.nbytes for t in tensors.values() if t.ndim == 2 and t.dtype == np.float32) == 2 * sum(
        t.nbytes for name, t in tensors.items() if name.startswith("cos_cache")
    ) + sum(t.nbytes for name, t in tensors.items() if name == "attn_scale"), "a matrix is stored once"


@pytest.mark.parametrize("mode", ["gate", "weights"])
def test_each_product_on_strict_kernels_is_the_rounded_one(measurement: Emit, mode: str):
    """Scales, zero points and the rounding mode: the very inputs of the graph, rounded here, give its outputs."""
    scope, heads = ("last", None) if mode == "gate" else ("all", 1.0)
    found = measurement(mode, scope, heads=heads)
    plan, weights, errors = found.plan, static_weights(found), dict[str, float]()

    def tap(name: str, given: Any, out: Any) -> None:
        x = torch.from_numpy(given.copy())
        expected = F.linear(
            rounded_inputs(x, float(weights.step(name))), weights.matrix(name), weights.bias(name)
        )
        errors[name] = relative_error(expected.numpy(), out)

    engine = OnnxEngine(found.graphs, context_length=96, providers=CPU, strict=True, tap=tap)
    strict = generator(engine, plan.base, plan.fold).forced_logits(prompt(plan.base), TOKENS)
    assert errors.keys() == plan.base.spec.linears().keys()
    assert max(errors.values()) <= limits.PRODUCT_RELATIVE, errors
    # End to end a last bit may move a code, so the whole is close to the size of a code.
    attn, mlp = plan.coefficients.dense(plan.base.spec.num_layers, plan.base.spec.num_heads)
    portable = ReferenceEngine(
        weights,
        scaled=None,
        vision=plan.base.vision,
        image_token_id=plan.base.family.image_token_id(plan.base.config),
        gate=(plan.coefficients.scope, Scalars(attn=attn, mlp=mlp)) if plan.fold == "gate" else None,
        kernels=StaticKernels,  # type: ignore[arg-type]
    )
    expected = generator(portable, plan.base, plan.fold).forced_logits(prompt(plan.base), TOKENS)
    assert relative_error(expected, strict) <= 1 / 127


def test_shipped_sessions_multiply_integers(
    measurement: Emit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """ONNX Runtime joins rounding and product into integer kernels, on x86 because we ask for it; strict ones don't."""
    path = tmp_path / "decoder.onnx"
    for name in ("decoder.onnx", "decoder.onnx.data"):
        shutil.copy(measurement().directory / name, tmp_path / name)
    honest, seen = ort.InferenceSession, []

    def written(model: Any, options: Any, **more: Any) -> Any:
        options.optimized_model_filepath = str(tmp_path / f"optimized{len(seen)}.onnx")
        session = honest(model, options, **more)
        graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
        seen.append(collections.Counter(node.op_type for node in graph.node))
        return session

    monkeypatch.setattr(ort, "InferenceSession", written)
    from scale_export.device.onnxruntime.engine import open_session

    for strict in (False, True):
        open_session(path, providers=CPU, strict=strict)
    products = len(measurement().plan.base.spec.linears())
    assert seen[0]["MatMulIntegerToFloat"] == products and seen[0]["MatMul"] == 0
    assert seen[1]["MatMulIntegerToFloat"] == 0 and seen[1]["MatMul"] == products


def test_two_emissions_are_byte_identical(measurement: Emit, tmp_path: Path):
    found = measurement()
    folded = stored(found.plan)
    with traced_anew():
        backend.emit(emission_of(found.plan, folded, precision="w8a8", vision_precision="float32"), tmp_path)
    for name in ("decoder.onnx", "decoder.onnx.data"):
        assert (tmp_path / name).read_bytes() == (found.directory / name).read_bytes()


def test_an_mlp_fold_keeps_the_graphs_codes(measurement: Emit):
    """As they lie on disk, in one phase and in two; the report proves it against the unfolded base."""
    folded, phases = measurement("weights", "all", heads=1.0), measurement("two-phase", "last", heads=1.0)
    names = list(folded.plan.base.spec.linears())
    weights = static_weights(folded)
    bare = replace(weights, factors={})
    found = backend.code_hashes(folded.graphs, names)
    assert weights.factors and found == {name: bare.block(name).codes_sha256 for name in names}
    report = report_of(folded)
    assert report.quantization.codes and report.quantization.codes_identical and report.lowering.passed
    first, second = (Path(f"{phases.graphs[role]}.data") for role in ("decoder", "decoder_folded"))
    own = second.stat().st_size if second.exists() else 0  # scales alone may fit into the graph
    assert own < 0.5 * first.stat().st_size
    assert report_of(phases).lowering.products.passed is True


# The legs, and what makes them fail.


def test_a_healthy_export_passes_and_says_what_was_not_run(measurement: Emit):
    report = replace(measurement(), parity="full").run(None, None).report
    leg = report.lowering
    assert leg and leg.passed and leg.products and leg.products.passed and leg.error.passed
    assert leg.products.error.value < 0.2 * leg.products.error.limit and leg.products.matrices == 22
    assert report.runtime
    assert "TensorRT and QNN" in {missing.subject for missing in report.not_checked}
    assert report.attribution and sum(abs(part.kl or 0) for part in report.attribution.parts.values()) > 0


def test_a_streamed_reference_holds_the_products_too(measurement: Emit):
    report = measurement().run(None, None).report
    leg = report.lowering
    assert leg and leg.passed and leg.products and leg.products.passed and leg.error == leg.products.error
    assert len(leg.rows()) == 3 and "rounded products" in leg.rows()[-1].label
    assert len(leg.front) == 2 and all(error.passed for error in leg.front)


def changed(healthy: Measurement, directory: Path, change: Callable[[Any], None]) -> Measurement:
    """The measurement of a decoder whose initializers were changed on disk."""
    for name in ("decoder.onnx", "decoder.onnx.data"):
        shutil.copy(healthy.directory / name, directory / name)
    path = directory / "decoder.onnx"
    model = ir.load(path)
    change(model.graph.initializers)
    ir.save(model, path)
    return replace(healthy, graphs={**healthy.graphs, "decoder": path})


def swap(values: Any, *names: str) -> None:
    arrays = [values[name].const_value.numpy().copy() for name in names]
    for name, array in zip(names, arrays[::-1], strict=True):
        values[name].const_value = ir.tensor(array, name=name)


def scaled_by(name: str, factor: float) -> Callable[[Any], None]:
    def change(values: Any) -> None:
        array = values[name].const_value.numpy() * np.float32(factor)
        values[name].const_value = ir.tensor(np.asarray(array, np.float32), name=name)

    return change


def last_turned(values: Any) -> None:
    table = values["cos_cache.0"].const_value.numpy().copy()
    table[-1] *= -1
    values["cos_cache.0"].const_value = ir.tensor(table, name="cos_cache.0")


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (last_turned, "layers.0.o_proj"),
        (scaled_by("layers.1.down_proj.input_scale", 0.5), "layers.1.down_proj"),
        (scaled_by("layers.0.q_proj.input_scale", 1.01), "layers.0.q_proj"),
        (scaled_by("layers.1.up_proj.scales", 0.5), "layers.1.up_proj"),
        (
            lambda v: swap(v, "layers.0.o_proj.input_scale", "layers.0.down_proj.input_scale"),
            "layers.0.o_proj",
        ),
        (lambda v: swap(v, "layers.0.q_proj.codes", "layers.1.q_proj.codes"), "layers.0.q_proj"),
    ],
    ids=[
        "the last rotary row",
        "a range halved",
        "a range one percent off",
        "weight scales halved",
        "ranges swapped",
        "codes swapped",
    ],
)
def test_wrong_numbers_in_the_graph_fail_the_lowering(
    measurement: Emit, tmp_path: Path, change: Any, place: str
):
    leg = report_of(changed(measurement(), tmp_path, change)).lowering
    assert leg.passed is False and leg.products.passed is False
    assert leg.products.first_departure == place


def test_a_gate_behind_the_rounding_fails(measurement: Emit, tmp_path: Path):
    """Scalars one layer off: what enters o_proj is not what the reference enters, whatever the products do."""

    healthy = measurement()
    told = json.loads(healthy.graphs["runtime"].read_text(encoding="utf-8"))
    scales = told["scalars"]["attn_scale"]
    told["scalars"]["attn_scale"] = [scales[-1], *scales[:-1]]
    rolled = tmp_path / "runtime.json"
    rolled.write_text(json.dumps(told), encoding="utf-8")
    leg = report_of(replace(healthy, graphs={**healthy.graphs, "runtime": rolled})).lowering
    assert leg.products.first_departure == "layers.0.o_proj"


def test_smoothing_absorbed_on_one_side_only_fails(
    measurement: Emit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Graph and reference then share the fault, and the whole model's distance tells it."""
    healthy = measurement()
    plan = healthy.plan
    monkeypatch.setattr(EqualizedWeights, "rows", lambda self, name: None)
    folded = stored(plan)
    names = backend.emit(emission_of(plan, folded, precision="w8a8", vision_precision="float32"), tmp_path)
    broken = replace(healthy, graphs={role: tmp_path / name for role, name in names.items()})
    assert report_of(broken).quantization.passed is False


def test_ranges_of_other_questions_are_said(measurement: Emit):
    """Clipped activations are the quantization leg's: with ranges a tenth as wide, it fails."""
    healthy = measurement()
    steps = StaticWeights.step
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(StaticWeights, "step", lambda self, name: steps(self, name) / np.float32(10))
        plan = healthy.plan
        folded = stored(plan)
        directory = healthy.directory / "narrow"
        directory.mkdir()
        names = backend.emit(
            emission_of(plan, folded, precision="w8a8", vision_precision="float32"), directory
        )
        graphs = {role: directory / name for role, name in names.items()}
        report = report_of(replace(healthy, graphs=graphs))
    assert report.lowering.passed is True and report.quantization.passed is False


def test_statistics_of_an_earlier_schema_are_collected_anew(base_of: Any, tmp_path: Path, monkeypatch: Any):
    base = base_of("llava", "llama")
    options = CalibrationOptions(source="gridworld", limit=2)
    log = WorkLog(quiet=True)
    monkeypatch.setattr(calibration, "SCHEMA", 1)
    earlier = calibration.calibrate(base, random_coefficients(base), options, log, tmp_path)
    monkeypatch.undo()
    assert (
        earlier.directory
        != calibration.calibrate(base, random_coefficients(base), options, log, tmp_path).directory
    )


@pytest.mark.slow
def test_the_doctor_finds_no_fault_in_a_sound_package_and_the_matrix_of_a_broken_one(
    base_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    base = base_of("llava", "llama")
    file = saved(random_coefficients(base), tmp_path)

    def export(name: str) -> Path:
        more: Any = {"evaluation": "none", "precision": "w8a8", **QUESTIONS}
        return fold_on(base, file, "cpu", out=tmp_path / name, **more).path

    def diagnose(path: Path) -> Any:
        return examine(path, Origins(model=str(base.directory)), WorkLog(quiet=True))

    from scale_export.backends.onnxruntime import decoder as emitter

    sound = diagnose(export("sound"))
    roundings = {"quantization", "runtime"} & set(sound.failed_legs)
    if sound.failed_legs == ("answer agreement",):  # a random model's answers hang on rounding
        roundings = {"verify"}
    assert {stage.name for stage in sound.stages if stage.passed is False} == roundings
    true = emitter.static_value

    def halved(weights: Any, owner: str, part: str) -> Any:
        value = true(weights, owner, part)
        return value / 2 if (owner, part) == ("layers.1.o_proj", "input_scale") else value

    monkeypatch.setattr(emitter, "static_value", halved)
    fault = diagnose(export("broken")).fault
    assert fault is not None and (fault.name, fault.place) == ("decoder", "layers.1.o_proj")


@pytest.mark.slow
@pytest.mark.parametrize("quantizer", ["smoothquant", "rtn"])
def test_the_shipped_model_from_end_to_end(tmp_path: Path, quantizer: str):
    out = tmp_path / "package"
    outcome = fold_on(
        opened_once(EXAMPLE / "model"),
        EXAMPLE / "spatial.pt",
        "cpu",
        out=out,
        precision="w8a8",
        quantizer=quantizer,
        eval_limit=200,
    )
    legs = outcome.parity["legs"]
    assert outcome.passed, outcome.parity
    assert outcome.plan.fold == "gate" and outcome.plan.quantizer == quantizer
    assert legs["quantization"]["kl"] < (0.005 if quantizer == "smoothquant" else 0.02)
    assert legs["task"]["agreement"] >= 0.97
    assert any("TensorRT and QNN" in line for line in outcome.parity["not_checked"])
    if quantizer == "smoothquant":
        found = verify(out, model=str(outcome.plan.base.directory), eval_limit=50)
        assert found.passed
