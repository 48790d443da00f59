"""Whether a function holds together: every name given before it is used, every operation with the inputs it takes.

A program that passes can still fail in the values that it computes; that is a sentence when it runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from scale_export.core.errors import UserError

from .dtypes import MAX_ELEMENTS, TensorType
from .ops import CONVERTERS, REGISTRY, Arrays, Bools, Ints, parameters
from .program import Function, Literal, Operation, damaged

LISTS = (Ints, Bools, Ints | None, Bools | None)
"""Annotations of arguments that are vectors; others that ``CONVERTERS`` knows are single elements."""
TEXTS = (str, str | None)


def check_function(function: Function) -> None:
    """Check one function's states, operations and names, in the order of execution.

    Raises:
        UserError: the first fault.
    """
    if sum(kind.elements or MAX_ELEMENTS for kind in function.states.values()) > MAX_ELEMENTS:
        raise damaged(f"function {function.name} has states of more than {MAX_ELEMENTS:,} elements together")
    known: dict[str, TensorType] = {**function.inputs, **function.states}
    for operation in function.operations:
        given = "".join(f" {name!r}" for name in _names(operation) if name not in known)
        if given:
            raise damaged(f"operation {operation.name} ({operation.type}) reads{given}, which nothing gave")
        if operation.type == "const":
            _check_constant(operation)
        else:
            _check_inputs(operation)
            _check_arguments(operation, known)
        if operation.type in ("read_state", "write_state") and not _reads_state(operation, function):
            raise damaged(f"operation {operation.name} ({operation.type}) names no state of its function")
        for name, kind in operation.outputs:
            if name in known:
                raise damaged(f"function {function.name} makes {name!r} twice")
            known[name] = kind


def _names(operation: Operation) -> Iterator[str]:
    for given in operation.inputs.values():
        yield from (operand for operand in given if isinstance(operand, str))


def _reads_state(operation: Operation, function: Function) -> bool:
    (operand,) = operation.inputs["input"]
    return isinstance(operand, str) and operand in function.states


def _check_constant(operation: Operation) -> None:
    values = operation.inputs.get("val", ())
    if len(values) != 1 or not isinstance(values[0], Literal) or len(operation.outputs) != 1:
        raise damaged(f"constant {operation.name} does not hold one value under one name")
    ((name, kind),) = operation.outputs
    if values[0].type != kind:
        raise damaged(f"constant {name!r} is declared as {kind} and holds {values[0].type}")


def _check_inputs(operation: Operation) -> None:
    """Refuse an operation whose inputs are not those that its function takes."""
    expected = inspect.signature(REGISTRY[operation.type]).parameters.values()
    unknown = operation.inputs.keys() - {parameter.name for parameter in expected}
    missing = {p.name for p in expected if p.default is p.empty} - operation.inputs.keys()
    if unknown or missing:
        fault = f"has inputs {sorted(unknown)}" if unknown else f"lacks inputs {sorted(missing)}"
        raise UserError(
            f"operation {operation.name} ({operation.type}) {fault}, which the interpreter does not expect:"
            " convert the model with coremltools 9, or extend scale_export/mil/ops"
        )


def _check_arguments(operation: Operation, known: dict[str, TensorType]) -> None:
    """Refuse lists where one value is due, and text, vectors and single elements where others are."""
    for name, annotation in parameters(operation.type).items():
        given = operation.inputs.get(name)
        if given is None:
            continue
        where = f"input {name} of operation {operation.name} ({operation.type})"
        if not given or (len(given) > 1 and annotation != Arrays):
            raise damaged(f"{where} has {len(given)} values")
        for operand in given:
            kind = operand.type if isinstance(operand, Literal) else known[operand]
            if (kind.dtype == "str") != (annotation in TEXTS):
                raise damaged(f"{where} is {kind}")
            if annotation in LISTS:
                fits = len(kind.shape) == 1
            else:
                fits = annotation not in CONVERTERS or kind.elements in (None, 1)
            if not fits:
                raise damaged(
                    f"{where} is {kind}, and it takes {'a vector' if annotation in LISTS else 'one'}"
                )
