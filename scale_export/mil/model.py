"""Loading a package and running its functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import ArrayLike

from scale_export.core.errors import UserError, did_you_mean
from scale_export.core.records import Array

from .check import check_function
from .constants import Constants
from .dtypes import BY_NAME, Arithmetic, TensorType, holder
from .package import read_model
from .program import Function, read_functions
from .schedule import Observe, Schedule

State = dict[str, Array]
"""Name → float32 array. ``Model.run`` replaces arrays and never writes into them: ``dict(state)`` is a snapshot."""


class Model:
    """A Core ML package that runs anywhere.

    Attributes:
        functions: name → what it takes and gives.
        default_function: the function that ``run`` runs where none is named; None where the choice is open.
        arithmetic: how floats are computed, see ``load``.
    """

    def __init__(
        self, functions: Mapping[str, Function], default_function: str | None, arithmetic: Arithmetic
    ) -> None:
        self.functions = functions
        self.default_function = default_function
        self.arithmetic: Arithmetic = arithmetic
        self._constants = Constants()
        self._schedules: dict[str, Schedule] = {}

    def new_state(self) -> State:
        """Zeros for every state of the model; functions share states by name."""
        return {
            name: np.zeros([size or 0 for size in kind.shape], BY_NAME[kind.dtype].held)
            for function in self.functions.values()
            for name, kind in function.states.items()
        }

    def run(
        self,
        function: str | None = None,
        inputs: Mapping[str, ArrayLike] | None = None,
        state: State | None = None,
        observe: Observe | None = None,
    ) -> dict[str, Array]:
        """Run a function.

        Args:
            function: its name; by default the package's only or default one.
            inputs: an array for each input, cast to the declared type.
            state: from ``new_state``; updated in place. Left out for functions without states.
            observe: told of every result on the way, by the name that the program gives it.

        Returns:
            An array for each output: floats in float32, other types as declared.

        Raises:
            UserError: an unknown function; an input that is missing, unknown, of another shape, or not to be
                represented in its declared type; a state that is missing or of another shape.
        """
        chosen = self._function(function)
        given = _inputs(chosen, inputs or {})
        held = _states(chosen, state)
        if chosen.name not in self._schedules:
            self._schedules[chosen.name] = Schedule(chosen, self.arithmetic, self._constants)
        outputs, after = self._schedules[chosen.name].run(
            {name: _cast(name, value, chosen.inputs[name], self.arithmetic) for name, value in given.items()},
            held,
            observe,
        )
        if state is not None:
            state.update(after)
        return outputs

    def operations(self) -> dict[str, int]:
        """Operation type → how often it occurs in all functions, the most frequent first."""
        counts = Counter(
            operation.type for function in self.functions.values() for operation in function.operations
        )
        return dict(counts.most_common())

    def _function(self, name: str | None) -> Function:
        name = name or self.default_function
        if name is None:
            raise UserError(f"the package has several functions: name one of {', '.join(self.functions)}")
        if name in self.functions:
            return self.functions[name]
        raise UserError(
            f"the package has no function {name!r}{did_you_mean(name, self.functions)}:"
            f" its functions are {', '.join(self.functions)}"
        )


def load(path: str | Path, arithmetic: Arithmetic = "float32") -> Model:
    """Open a ``.mlpackage`` for running.

    Args:
        path: the package's folder.
        arithmetic: ``float32`` computes and holds every float in float32, whatever the program declares: the error of
            the translation alone. ``float16`` computes each operation in float32 and rounds results, casts, inputs and
            states that the program declares as float16: what a device with float32 accumulation does.

    Raises:
        UserError: no ML program is there, its files are missing or damaged, it uses unknown operations, or it does
            not hold together.
    """
    if arithmetic not in get_args(Arithmetic):
        raise UserError(f"arithmetic {arithmetic!r} is unknown: choose float32 or float16")
    message, folder = read_model(Path(path))
    functions = read_functions(message, folder)
    for function in functions.values():
        check_function(function)
    default = message.description.defaultFunctionName or (
        next(iter(functions)) if len(functions) == 1 else None
    )
    return Model(functions, default, arithmetic)


def _inputs(function: Function, inputs: Mapping[str, ArrayLike]) -> dict[str, Array]:
    for fault, names in (
        ("lacks", function.inputs.keys() - inputs.keys()),
        ("does not take", inputs.keys() - function.inputs.keys()),
    ):
        if names:
            raise UserError(
                f"function {function.name} {fault} input {', '.join(sorted(names))}: it takes "
                + ", ".join(f"{name} {kind}" for name, kind in function.inputs.items())
            )
    arrays = {name: np.asarray(value) for name, value in inputs.items()}
    for name, array in arrays.items():
        _check_shape(f"input {name} of function {function.name}", array, function.inputs[name])
    return arrays


def _states(function: Function, state: State | None) -> dict[str, Array]:
    if not function.states:
        return {}
    if state is None or not function.states.keys() <= state.keys():
        missing = sorted(function.states.keys() - (state or {}).keys())
        raise UserError(
            f"function {function.name} needs state {', '.join(missing)}: pass what Model.new_state() gives"
        )
    for name, kind in function.states.items():
        _check_shape(f"state {name} of function {function.name}", state[name], kind)
    return {name: state[name] for name in function.states}


def _check_shape(what: str, array: Array, declared: TensorType) -> None:
    if not declared.holds(array.shape):
        raise UserError(f"{what} has shape {list(array.shape)}: give {declared}, where ? is any size")


def _cast(name: str, value: Array, declared: TensorType, arithmetic: Arithmetic) -> Array:
    """A copy of an input in its declared type."""
    real = BY_NAME[declared.dtype].held.kind == "f"
    if value.dtype.kind in ("biuf" if real else "biu"):
        with np.errstate(all="ignore"):
            cast = holder(declared.dtype, arithmetic)(value)
        if real or np.array_equal(cast, value):
            return cast.copy()
    raise UserError(
        f"input {name} has values that {declared.dtype} cannot hold: cast {value.dtype} to it first"
    )
