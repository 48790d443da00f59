"""A function made ready to run: constants resolved, operations bound to their arguments, lifetimes known."""

from __future__ import annotations

import functools
import itertools
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter

import numpy as np
from numpy.typing import ArrayLike

from scale_export.core.errors import UserError
from scale_export.core.records import Array

from .constants import Constant, Constants
from .dtypes import MAX_ELEMENTS, Arithmetic, TensorType, holder
from .ops import CONVERTERS, MOVES, REGISTRY, Argument, Arrays, Bound, elements_of, parameters
from .ops import Function as Apply
from .program import Function, Literal, Operation

Environment = list[Array]
_EMPTY: Array = np.empty(0)
"""What a slot holds before its value is computed, and after its last reader."""
Getter = Callable[[Environment], Argument]
"""Reads an argument from an environment."""
Observe = Callable[[str, Array], None]
"""Told of every result that is computed: the name that the program gives it, and its value."""


@dataclass(frozen=True, slots=True)
class Call:
    """An operation's function and the bound of what it makes, with the constants among its arguments in place."""

    type: str
    name: str
    function: Apply
    elements: Bound

    def results(self, arguments: Mapping[str, Argument], holds: Sequence[Hold]) -> list[Array]:
        """What the operation makes of the other arguments, as it is held.

        Raises:
            UserError: it would be too large, has another count or shape than is declared, or can't be computed.
        """
        try:
            self._check_size(self.elements(**arguments))
            made = self.function(**arguments)
            listed = made if isinstance(made, tuple | list) else (made,)
            return [self._held(result, hold) for result, hold in zip(listed, holds, strict=True)]
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"operation {self.name} ({self.type}) fails on what the program gives it ({error}):"
                " the package is damaged, or the interpreter misreads it"
            ) from error

    def _check_size(self, elements: int) -> None:
        if elements > MAX_ELEMENTS:
            raise UserError(
                f"operation {self.name} ({self.type}) makes {elements:,} elements, and the interpreter holds at"
                f" most {MAX_ELEMENTS:,} in one value: the package is damaged, or split the value"
            )

    def _held(self, result: Array, hold: Hold) -> Array:
        value = hold.cast(result)
        if value.shape != hold.declared.shape and not hold.declared.holds(value.shape):
            raise UserError(
                f"operation {self.name} gives shape {list(value.shape)} where the program declares"
                f" {hold.declared}: the package is damaged, or the interpreter misreads it"
            )
        return value


@dataclass(frozen=True, slots=True)
class Hold:
    """A result's declared type, and what makes it the array that is held for that type."""

    declared: TensorType
    cast: Callable[[ArrayLike], Array]


@dataclass(frozen=True, slots=True)
class Output:
    """The name of a result, and where it goes."""

    name: str
    slot: int


@dataclass(frozen=True, slots=True)
class Step:
    """One operation, ready: arguments come from slots of an environment, and results go to slots."""

    call: Call
    arguments: tuple[tuple[str, Getter], ...]
    reads: frozenset[int]
    outputs: tuple[Output, ...]
    holds: tuple[Hold, ...]
    release: tuple[int, ...] = ()

    def run(self, environment: Environment, observe: Observe | None) -> None:
        """Compute the results into their slots, and empty the slots that no later step reads."""
        results = self.call.results({name: get(environment) for name, get in self.arguments}, self.holds)
        for output, value in zip(self.outputs, results, strict=True):
            environment[output.slot] = value
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
        return Constant(self._constants.node((operand.key, operand.type), lambda _: (hold(operand.read()),)))

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
        call, arguments = self._bound(operation, operands)
        reads = frozenset(
            operand for given in operands.values() for operand in given if isinstance(operand, int)
        )
        return Step(call, arguments, reads, *self._results(operation, function))

    def _bound(
        self, operation: Operation, operands: Mapping[str, tuple[int | Constant, ...]]
    ) -> tuple[Call, tuple[tuple[str, Getter], ...]]:
        """An operation's function with its constants in place, and what reads its other arguments."""
        annotations = parameters(operation.type)
        fixed: dict[str, Argument] = {}
        arguments = []
        for name, given in operands.items():
            annotation, first = annotations[name], given[0]
            if annotation == Arrays or isinstance(first, int):
                arguments.append((name, _getter([self._filled(operand) for operand in given], annotation)))
            else:
                fixed[name] = _converted(self._constants.value(first), annotation)
        function, elements = REGISTRY[operation.type], elements_of(operation.type)
        bound = (functools.partial(function, **fixed), functools.partial(elements, **fixed))
        return Call(operation.type, operation.name, *bound), tuple(arguments)

    def _results(
        self, operation: Operation, function: Function
    ) -> tuple[tuple[Output, ...], tuple[Hold, ...]]:
        """Where an operation's results go, new slots or the slot of the state that it writes, and as what."""
        arithmetic: Arithmetic = "float32" if operation.type in MOVES else self._arithmetic
        if operation.type == "write_state":
            state = typing.cast(str, operation.inputs["input"][0])
            kind = function.states[state]
            return (Output(state, self._states[state]),), (Hold(kind, holder(kind.dtype, arithmetic)),)
        outputs = []
        for name, _ in operation.outputs:
            self._values[name] = slot = self._slot()
            outputs.append(Output(name, slot))
        return tuple(outputs), _holds(operation, arithmetic)

    def _fold(self, operation: Operation, operands: Mapping[str, tuple[Constant, ...]]) -> None:
        """Register the results of an operation whose inputs are all constants as constants."""
        annotations = parameters(operation.type)
        call = Call(operation.type, operation.name, REGISTRY[operation.type], elements_of(operation.type))
        holds = _holds(operation, self._arithmetic)

        def compute(values: Sequence[Array]) -> Sequence[Array]:
            rest = iter(values)
            arguments: dict[str, Argument] = {}
            for name, given in operands.items():
                arrays = tuple(itertools.islice(rest, len(given)))
                annotation = annotations[name]
                arguments[name] = arrays if annotation == Arrays else _converted(arrays[0], annotation)
            with np.errstate(all="ignore"):
                return call.results(arguments, holds)

        key = (operation.type, tuple(sorted(operands.items())), tuple(hold.declared for hold in holds))
        flat = tuple(constant for given in operands.values() for constant in given)
        node = self._constants.node(key, compute, flat)
        for index, (name, _) in enumerate(operation.outputs):
            self._values[name] = Constant(node, index)


def _holds(operation: Operation, arithmetic: Arithmetic) -> tuple[Hold, ...]:
    return tuple(Hold(kind, holder(kind.dtype, arithmetic)) for _, kind in operation.outputs)


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
