"""A function made ready to run: constants resolved, operations bound to their arguments, lifetimes known."""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter

import numpy as np
from numpy.typing import ArrayLike

from scale_export.core.errors import UserError
from scale_export.core.records import Array

from .dtypes import Arithmetic, TensorType, holder
from .ops import CONVERTERS, MOVES, REGISTRY, Argument, Arrays, Result
from .ops import Function as Call
from .program import Function, Literal, Operation

Environment = list[Array]
_EMPTY: Array = np.empty(0)
"""What a slot holds before its value is computed, and after its last reader."""
Getter = Callable[[Environment], Argument]
"""Reads an argument from an environment."""
Observe = Callable[[str, Array], None]
"""Told of every result that is computed: the name that the program gives it, and its value."""


@dataclass(frozen=True, slots=True)
class Constant:
    """A value that is known before a run: ``compute`` makes it, and equal keys mean equal values."""

    key: Hashable
    compute: Callable[[], Array]


class Constants:
    """Values of constants, computed when an operation that runs first needs them, and shared between functions."""

    def __init__(self) -> None:
        self._values: dict[Hashable, Array] = {}

    def value(self, constant: Constant) -> Array:
        """The value of a constant, kept for the next that asks."""
        if constant.key not in self._values:
            self._values[constant.key] = constant.compute()
        return self._values[constant.key]


@dataclass(frozen=True, slots=True)
class Output:
    """Where a result goes, its declared type, and what makes it the array that is held for that type."""

    name: str
    slot: int
    type: TensorType
    hold: Callable[[ArrayLike], Array]


@dataclass(frozen=True, slots=True)
class Step:
    """One operation, ready: arguments come from slots of an environment, and results go to slots."""

    name: str
    call: Call
    arguments: tuple[tuple[str, Getter], ...]
    reads: frozenset[int]
    outputs: tuple[Output, ...]
    release: tuple[int, ...] = ()

    def run(self, environment: Environment, observe: Observe | None) -> None:
        """Compute the results into their slots, and empty the slots that no later step reads.

        Raises:
            UserError: a result's shape is not the declared one.
        """
        try:
            results = self.call(**{name: get(environment) for name, get in self.arguments})
        except Exception as error:
            error.add_note(f"in operation {self.name}")
            raise
        for output, result in zip(self.outputs, _listed(results), strict=True):
            value = environment[output.slot] = _checked(output.hold(result), output.type, self.name)
            if observe is not None:
                observe(output.name, value)
        for slot in self.release:
            environment[slot] = _EMPTY


class Schedule:
    """The steps of a function, and the slots of its inputs and states in their environment."""

    def __init__(self, function: Function, arithmetic: Arithmetic, constants: Constants) -> None:
        self._arithmetic: Arithmetic = arithmetic
        self._constants = constants
        self._template: Environment = []
        self._inputs = {name: self._slot() for name in function.inputs}
        self._states = {name: self._slot() for name in function.states}
        self._values: dict[str, int | Constant] = {**self._inputs, **self._states}
        steps = [step for operation in function.operations if (step := self._step(operation, function))]
        self._outputs = {name: self._filled(self._values[name]) for name in function.outputs}
        self._steps = _with_lifetimes(steps, {*self._states.values(), *self._outputs.values()})

    def run(
        self, inputs: Mapping[str, Array], state: Mapping[str, Array], observe: Observe | None = None
    ) -> tuple[dict[str, Array], dict[str, Array]]:
        """Outputs by name, and the states after the run; ``observe`` sees every result under its name."""
        environment = self._template.copy()
        for slots, values in ((self._inputs, inputs), (self._states, state)):
            for name, slot in slots.items():
                environment[slot] = values[name]
        with np.errstate(all="ignore"):
            for step in self._steps:
                step.run(environment, observe)
        outputs = {name: environment[slot] for name, slot in self._outputs.items()}
        return outputs, {name: environment[slot] for name, slot in self._states.items()}

    def _slot(self, value: Array = _EMPTY) -> int:
        self._template.append(value)
        return len(self._template) - 1

    def _filled(self, operand: int | Constant) -> int:
        """The slot of an operand; a constant gets one that holds it from the start."""
        return operand if isinstance(operand, int) else self._slot(self._constants.value(operand))

    def _operand(self, operand: str | Literal) -> int | Constant:
        if isinstance(operand, str):
            return self._values[operand]
        hold = holder(operand.type.dtype, self._arithmetic)
        return Constant((operand.key, operand.type), lambda: hold(operand.read()))

    def _step(self, operation: Operation, function: Function) -> Step | None:
        """The step of an operation; None where its results are constants."""
        if operation.type == "const":
            self._values[operation.outputs[0][0]] = self._operand(operation.inputs["val"][0])
            return None
        operands = {
            name: tuple(self._operand(operand) for operand in given)
            for name, given in operation.inputs.items()
        }
        if all(isinstance(operand, Constant) for given in operands.values() for operand in given):
            self._fold(operation, typing.cast(Mapping[str, tuple[Constant, ...]], operands))
            return None
        call, arguments = self._bound(operation.type, operands)
        reads = frozenset(
            operand for given in operands.values() for operand in given if isinstance(operand, int)
        )
        return Step(operation.name, call, arguments, reads, self._results(operation, function))

    def _bound(
        self, type: str, operands: Mapping[str, tuple[int | Constant, ...]]
    ) -> tuple[Call, tuple[tuple[str, Getter], ...]]:
        """An operation's function with its constants in place, and what reads its other arguments."""
        annotations = _annotations(type)
        fixed: dict[str, Argument] = {}
        arguments = []
        for name, given in operands.items():
            annotation, first = annotations[name], given[0]
            if annotation == Arrays or isinstance(first, int):
                arguments.append((name, _getter([self._filled(operand) for operand in given], annotation)))
            else:
                fixed[name] = _converted(self._constants.value(first), annotation)
        return functools.partial(REGISTRY[type], **fixed), tuple(arguments)

    def _results(self, operation: Operation, function: Function) -> tuple[Output, ...]:
        """Where an operation's results go: new slots, or the slot of the state that it writes."""
        arithmetic: Arithmetic = "float32" if operation.type in MOVES else self._arithmetic
        if operation.type == "write_state":
            (state,) = operation.inputs["input"]
            assert isinstance(state, str)
            kind = function.states[state]
            return (Output(state, self._states[state], kind, holder(kind.dtype, arithmetic)),)
        outputs = []
        for name, kind in operation.outputs:
            self._values[name] = slot = self._slot()
            outputs.append(Output(name, slot, kind, holder(kind.dtype, arithmetic)))
        return tuple(outputs)

    def _fold(self, operation: Operation, operands: Mapping[str, tuple[Constant, ...]]) -> None:
        """Register the results of an operation whose inputs are all constants as constants."""
        annotations = _annotations(operation.type)
        key = (
            operation.type,
            frozenset((name, tuple(c.key for c in given)) for name, given in operands.items()),
        )

        def compute(index: int, declared: TensorType) -> Array:
            arguments = {}
            for name, given in operands.items():
                arrays = tuple(constant.compute() for constant in given)
                annotation = annotations[name]
                arguments[name] = arrays if annotation == Arrays else _converted(arrays[0], annotation)
            with np.errstate(all="ignore"):
                result = _listed(REGISTRY[operation.type](**arguments))[index]
            return _checked(holder(declared.dtype, self._arithmetic)(result), declared, operation.name)

        for index, (name, declared) in enumerate(operation.outputs):
            self._values[name] = Constant((key, index, declared), functools.partial(compute, index, declared))


@functools.cache
def _annotations(type: str) -> Mapping[str, object]:
    return typing.get_type_hints(REGISTRY[type])


def _converted(value: Array, annotation: object) -> Argument:
    return CONVERTERS[annotation](value) if annotation in CONVERTERS else value


def _getter(slots: list[int], annotation: object) -> Getter:
    """What reads an argument from an environment."""
    if annotation == Arrays:
        return lambda environment: tuple(environment[slot] for slot in slots)
    get = itemgetter(slots[0])
    if annotation not in CONVERTERS:
        return get
    convert = CONVERTERS[annotation]
    return lambda environment: convert(get(environment))


def _listed(results: Result) -> Sequence[Array]:
    return results if isinstance(results, tuple | list) else (results,)


def _checked(value: Array, declared: TensorType, name: str) -> Array:
    if value.shape != declared.shape and not declared.holds(value.shape):
        raise UserError(
            f"operation {name} gives shape {list(value.shape)} where the program declares {declared}:"
            " the package is damaged, or the interpreter misreads it"
        )
    return value


def _with_lifetimes(steps: Iterable[Step], kept: set[int]) -> tuple[Step, ...]:
    """The steps, each of which releases the slots that it reads or writes as the last."""
    last: dict[int, int] = {}
    steps = tuple(steps)
    for index, step in enumerate(steps):
        last |= dict.fromkeys((*step.reads, *(output.slot for output in step.outputs)), index)
    released: list[list[int]] = [[] for _ in steps]
    for slot, index in last.items():
        if slot not in kept:
            released[index].append(slot)
    return tuple(replace(step, release=tuple(slots)) for step, slots in zip(steps, released, strict=True))
