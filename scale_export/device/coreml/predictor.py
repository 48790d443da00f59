"""What runs an ``.mlpackage``: Core ML itself on a Mac, the reference interpreter everywhere."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from scale_export import mil
from scale_export.core.records import Array
from scale_export.core.words import ComputeUnits

Arithmetic = Literal["float32", "float16"]


class Predictor(Protocol):
    """One loaded package."""

    executed_by: str
    """What computes, in words."""

    def inputs(self, function: str) -> Mapping[str, tuple[int, ...]]:
        """What ``predict`` takes for that function: name → shape."""
        ...

    def new_state(self) -> object:
        """An empty state that every function of the package shares."""
        ...

    def states(self) -> Mapping[str, tuple[int, ...]]:
        """What a state holds: name → shape."""
        ...

    def write_state(self, state: Any, name: str, value: Array) -> None:
        """Put a whole array into a state."""
        ...

    def predict(self, function: str, feeds: Mapping[str, Array], state: Any) -> Mapping[str, Array]:
        """Run a function, updating ``state``, which is of this predictor's own kind, in place."""
        ...


Products = Callable[[Array, Array], None]
"""Told of the products of a function's matrices in the order in which they run: input and output."""


class Interpreter:
    """``scale_export.mil``: float16 rounded after every operation, or float32 throughout."""

    def __init__(self, path: Path, arithmetic: Arithmetic) -> None:
        rounding = "float16 rounded after every operation" if arithmetic == "float16" else "float32"
        self.executed_by = f"the reference interpreter for ML programs, {rounding}"
        self._model = mil.load(path, arithmetic=arithmetic)

    def inputs(self, function: str) -> Mapping[str, tuple[int, ...]]:
        return _shapes(self._model.functions[function])

    def new_state(self) -> mil.State:
        return self._model.new_state()

    def states(self) -> Mapping[str, tuple[int, ...]]:
        return _states(self._model)

    def write_state(self, state: mil.State, name: str, value: Array) -> None:
        state[name] = value.astype(state[name].dtype)

    def predict(
        self,
        function: str,
        feeds: Mapping[str, Array],
        state: mil.State | None,
        products: Products | None = None,
    ) -> Mapping[str, Array]:
        observe = None if products is None else self._observe(function, products)
        outputs: Mapping[str, Array] = self._model.run(function, feeds, state, observe)
        return outputs

    def _observe(self, function: str, products: Products) -> Callable[[str, Array], None]:
        """Keep what goes into the function's ``linear`` operations until they ran."""
        inputs = {
            operation.outputs[0][0]: str(operation.inputs["x"][0])
            for operation in self._model.functions[function].operations
            if operation.type == "linear"
        }
        wanted, values = set(inputs.values()), dict[str, Array]()

        def observe(name: str, value: Array) -> None:
            if name in wanted:
                values[name] = value
            if name in inputs:
                products(values[inputs[name]], value)

        return observe


class Device:
    """Core ML through coremltools, on macOS."""

    def __init__(self, path: Path, units: ComputeUnits) -> None:
        import coremltools as ct

        self.executed_by = f"Core ML on macOS {platform.mac_ver()[0]}, {platform.machine()}, {units}"
        self._described = mil.load(path)
        names = list(self._described.functions)
        compute = getattr(ct.ComputeUnit, units.upper())
        chosen = [{"function_name": name} for name in names] if len(names) > 1 else [{}]
        self._models = {
            name: ct.models.MLModel(str(path), compute_units=compute, **keywords)
            for name, keywords in zip(names, chosen, strict=True)
        }

    def inputs(self, function: str) -> Mapping[str, tuple[int, ...]]:
        return _shapes(self._described.functions[function])

    def new_state(self) -> object:
        return next(iter(self._models.values())).make_state()

    def states(self) -> Mapping[str, tuple[int, ...]]:
        return _states(self._described)

    def write_state(self, state: Any, name: str, value: Array) -> None:
        state.write_state(name, value.astype(np.float16))

    def predict(self, function: str, feeds: Mapping[str, Array], state: object) -> Mapping[str, Array]:
        typed = {
            name: value.astype(np.int32 if value.dtype.kind == "i" else np.float32)
            for name, value in feeds.items()
        }
        keywords = {} if state is None else {"state": state}
        outputs: Mapping[str, Array] = self._models[function].predict(typed, **keywords)
        return outputs


def _shapes(function: mil.Function) -> Mapping[str, tuple[int, ...]]:
    return {
        name: tuple(length for length in kind.shape if length is not None)
        for name, kind in function.inputs.items()
    }


def _states(model: mil.Model) -> Mapping[str, tuple[int, ...]]:
    return {
        name: tuple(length for length in kind.shape if length is not None)
        for function in model.functions.values()
        for name, kind in function.states.items()
    }


def on_device() -> bool:
    """Whether this machine has Core ML itself."""
    return sys.platform == "darwin"


def open_predictor(path: Path, units: ComputeUnits, *, strict: bool) -> Predictor:
    """Core ML where there is one, else the interpreter; ``strict`` is the interpreter in float32 anywhere."""
    if strict:
        return Interpreter(path, "float32")
    return Device(path, units) if on_device() else Interpreter(path, "float16")
