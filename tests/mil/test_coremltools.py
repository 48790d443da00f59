"""The cases once more: as coremltools evaluates them on constants, and through packages that coremltools saved."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil.mil import Builder as mb
from coremltools.converters.mil.mil import Function, Program, types
from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

from scale_export import mil

from .cases import CASES, Case, close

STATES = {"read_state", "write_state"}
UNSIGNED = {
    "downscale_factor": np.uint32,
    "resized_dims": np.uint32,
    "indices": types.np_uint2_dtype,
    "indices_nonzero_data": types.np_uint2_dtype,
    "indices_mask": types.np_uint1_dtype,
    "data_mask": types.np_uint1_dtype,
    "mask": types.np_uint1_dtype,
}
"""What coremltools wants of parameters that the cases give as plain integers; ``indices`` only of look-up tables."""

DISAGREEMENTS = {
    "argsort": "the order of equals is open, and uint8 is refused",
    "concat": "its constant evaluation ignores interleave",
    "cumsum": "its constant evaluation of exclusive sums fails",
    "dequantize": "refuses an axis for scalars, and vectors without one",
    "gather": "its constant evaluation fails on a negative axis with batch_dims",
    "layer_norm": "its default axes fail",
    "quantize": "refuses vectors without an axis",
    "scatter_along_axis": "its constant evaluation knows no mode but update",
    "squeeze": "its constant evaluation fails on axes longer than 1",
    "topk": "the order of equals is open, and its constant evaluation takes k = -1 as a slice",
}
"""Where coremltools 9 does not evaluate a case as its own documentation says, and why."""


def target(case: Case) -> Any:
    return (
        ct.target.iOS16
        if "shape" in case.inputs and {"lut", "mask"} & case.inputs.keys()
        else ct.target.iOS18
    )


def argument(type: str, case: Case, name: str) -> Any:
    """A case's input as coremltools' builder takes it."""
    value = case.inputs[name]
    if type.startswith("constexpr"):
        if name == "shape":
            return np.array(value, np.uint32)
        if name in UNSIGNED and target(case) is ct.target.iOS18:
            return value.astype(UNSIGNED[name])
    elif name in ("downscale_factor", "resized_dims"):
        return np.uint32(value)
    return (
        list(value)
        if isinstance(value, tuple)
        else np.copy(value)
        if isinstance(value, np.ndarray)
        else value
    )


def results(operation: Any) -> list[Any]:
    return list(operation) if isinstance(operation, list | tuple) else [operation]


def evaluated(type: str, case: Case) -> list[Any] | None:
    """The values that coremltools computes of a case, None where it computes none."""
    with Function({}, opset_version=target(case)):
        variables = results(getattr(mb, type)(**{name: argument(type, case, name) for name in case.inputs}))
    if variables[0].val is None and hasattr(variables[0].op, "materialized_val_inference"):
        values = variables[0].op.materialized_val_inference()
        return list(values) if isinstance(values, tuple) else [values]
    return None if variables[0].val is None else [variable.val for variable in variables]


@pytest.mark.parametrize("type", sorted(CASES.keys() - STATES))
def test_coremltools_evaluates_constants_alike(type: str):
    agreed = True
    for case in CASES[type]:
        try:
            values = evaluated(type, case)
        except (ValueError, TypeError, np.exceptions.AxisError):
            agreed = False
            continue
        agreed &= values is None or all(map(close, values, case.expected))
    assert agreed == (type not in DISAGREEMENTS)


REFUSED = {
    "argsort": "uint8",
    "constexpr_lut_to_sparse": "its results feed only constexpr operations",
    "constexpr_sparse_blockwise_shift_scale": "its results feed only constexpr operations",
    "dequantize": "an axis for scalars, and vectors without one",
    "layer_norm": "its default axes",
    "quantize": "vectors without an axis",
    "topk": "k = -1",
}
"""What coremltools 9 does not build, and why."""

CONSTANT = {"pad": {"pad"}, "conv": {"weight"}}
"""Inputs that MIL lets vary, but not in the forms that the cases have."""


def varying(type: str, case: Case) -> Iterable[str]:
    """The inputs of a case that a program may take as its own inputs."""
    spec = SSAOpRegistry.core_ops[type][target(case)].input_spec.input_types
    for name, value in case.inputs.items():
        scalars = isinstance(value, tuple) and isinstance(value[0], np.generic)
        if not (spec[name].const or scalars or name in CONSTANT.get(type, ())):
            yield name


class Saved:
    """Cases in one program: on its inputs where MIL lets them vary, and on constants elsewhere."""

    def __init__(self, cases: list[tuple[str, Case]], opset: Any) -> None:
        self.opset = opset
        self.feeds: dict[str, np.ndarray] = {}
        self.outputs: list[tuple[Any, np.ndarray]] = []
        fed = [{name: self.feed(case.inputs[name]) for name in varying(type, case)} for type, case in cases]
        placeholders = {
            name: mb.placeholder(value.shape, types.fp32 if value.dtype.kind == "f" else types.int32)
            for name, value in self.feeds.items()
        }
        with Function(placeholders, opset_version=opset) as self.function:
            for (type, case), feeds in zip(cases, fed, strict=True):
                self.add(type, case, feeds)
            self.function.set_outputs([variable for variable, _ in self.outputs])
        self.expected = {variable.name: value for variable, value in self.outputs}

    def feed(self, value: Any) -> Any:
        """Names of program inputs for an array, or for each of several."""
        if isinstance(value, tuple) and isinstance(value[0], np.ndarray):
            return tuple(map(self.feed, value))
        array = np.atleast_1d(np.asarray(value))
        name = f"input_{len(self.feeds)}"
        self.feeds[name] = array.astype(np.float32 if array.dtype.kind == "f" else np.int32)
        return name

    def add(self, type: str, case: Case, feeds: dict[str, Any]) -> None:
        given = {
            name: self.variable(feeds[name], case.inputs[name])
            if name in feeds
            else argument(type, case, name)
            for name in case.inputs
        }
        for variable, expected in zip(results(getattr(mb, type)(**given)), case.expected, strict=True):
            if -1 in variable.shape:
                raise ValueError(f"{type} is given a size of -1")
            plain = variable.dtype in (types.fp32, types.int32)
            output = mb.identity(x=variable) if plain else mb.cast(x=variable, dtype="int32")
            self.outputs.append((output, expected))

    def variable(self, name: Any, value: Any) -> Any:
        """A program input in the type and shape that a case wants."""
        if isinstance(name, tuple):
            return [self.variable(part, array) for part, array in zip(name, value, strict=True)]
        variable, value = self.function.inputs[name], np.asarray(value)
        if value.ndim == 0:
            variable = mb.squeeze(x=variable, axes=[0])
        if value.dtype.kind == "b" or value.dtype.itemsize < 4:
            variable = mb.cast(x=variable, dtype=str(value.dtype))
        return variable

    def package(self, path: Path) -> Path:
        program = Program()
        program.add_function("main", self.function)
        program.opset_version = self.opset
        ct.convert(
            program,
            convert_to="mlprogram",
            source="milinternal",
            pass_pipeline=ct.PassPipeline.EMPTY,
            minimum_deployment_target=self.opset,
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        ).save(str(path))
        return path


def is_refused(type: str, case: Case) -> bool:
    try:
        Saved([(type, case)], target(case))
    except ValueError:
        return True
    return False


@pytest.mark.parametrize("opset", [ct.target.iOS16, ct.target.iOS18], ids=["iOS16", "iOS18"])
def test_cases_come_out_of_a_saved_package(opset: Any, tmp_path: Path):
    cases = [
        (type, case)
        for type in sorted(CASES.keys() - STATES)
        for case in CASES[type]
        if target(case) is opset
    ]
    refused = {type for type, case in cases if is_refused(type, case)}
    assert refused == (REFUSED.keys() if opset is ct.target.iOS18 else set())
    saved = Saved([given for given in cases if not is_refused(*given)], opset)
    outputs = mil.load(saved.package(tmp_path / "cases.mlpackage")).run(None, saved.feeds)
    assert outputs.keys() == saved.expected.keys()
    wrong = [
        name
        for name, expected in saved.expected.items()
        if not close(outputs[name], expected if expected.dtype.kind == "f" else expected.astype(np.int32))
    ]
    assert not wrong
