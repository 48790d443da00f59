"""The program of a package as plain records, checked before anything runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scale_export.core.errors import UserError
from scale_export.core.inside import file_inside
from scale_export.core.records import Array

from .blob import BlobFile
from .dtypes import BY_NAME, DTYPES, MAX_ELEMENTS, MAX_RANK, TensorType
from .messages import (
    FunctionMessage,
    ModelMessage,
    OperationMessage,
    ProgramMessage,
    TensorValueMessage,
    ValueMessage,
    ValueTypeMessage,
)
from .ops import REGISTRY


@dataclass(frozen=True, slots=True)
class Literal:
    """A constant as the file has it: equal keys mean equal values; ``size`` is its bytes in the file."""

    key: Hashable
    type: TensorType
    size: int
    read: Callable[[], Array]


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation: each input is the names of values, or literals; each output a name and a type."""

    type: str
    name: str
    inputs: Mapping[str, tuple[str | Literal, ...]]
    outputs: tuple[tuple[str, TensorType], ...]


@dataclass(frozen=True, slots=True)
class Function:
    """A function of a package.

    Attributes:
        name: what ``Model.run`` calls it.
        inputs: name → type; flexible dimensions are None.
        outputs: name → type.
        states: name → type; ``Model.new_state`` makes them.
        operations: in the order of execution, constants among them.
    """

    name: str
    inputs: Mapping[str, TensorType]
    outputs: Mapping[str, TensorType]
    states: Mapping[str, TensorType]
    operations: tuple[Operation, ...]


class _Reader:
    """Turns protobuf messages into records; opens each weight file once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, BlobFile] = {}

    def type(self, message: ValueTypeMessage) -> TensorType:
        tensor = message.tensorType
        if tensor.dataType not in DTYPES:
            raise UserError(
                f"a value has type {message.WhichOneof('type')} {tensor.dataType}, which cannot be run:"
                " convert the model with tensors of floats, integers or booleans"
            )
        shape = tuple(
            dim.constant.size if dim.WhichOneof("dimension") == "constant" else None
            for dim in tensor.dimensions
        )
        kind = TensorType(DTYPES[tensor.dataType].name, shape)
        if len(shape) > MAX_RANK or math.prod(size or 1 for size in shape) > MAX_ELEMENTS:
            raise UserError(
                f"a value of {len(shape)} dimensions and {math.prod(size or 1 for size in shape):,} elements is"
                f" declared, and the interpreter holds at most {MAX_RANK} and {MAX_ELEMENTS:,}:"
                " the package is damaged, or split the value"
            )
        return kind

    def literal(self, value: ValueMessage) -> Literal:
        kind = self.type(value.type)
        count = kind.elements
        if count is None:
            raise damaged(f"a constant is declared as {kind}, without its sizes")
        shape = tuple(size or 0 for size in kind.shape)
        size = BY_NAME[kind.dtype].bytes_for(count)
        if value.WhichOneof("value") == "immediateValue":
            array = _immediate(value.immediateValue.tensor, kind.dtype, count).reshape(shape)
            return Literal(value.SerializeToString(deterministic=True), kind, size, lambda: array)
        place = value.blobFileValue
        if place.fileName not in self._files:
            name = place.fileName.removeprefix("@model_path/")
            self._files[place.fileName] = BlobFile(file_inside(self._folder, name, "the program"))
        blob = self._files[place.fileName].blob(place.offset, kind.dtype, count)
        key = (place.fileName, place.offset)
        return Literal(key, kind, size, lambda: blob.read(count).reshape(shape))

    def operation(self, message: OperationMessage) -> Operation:
        inputs: dict[str, tuple[str | Literal, ...]] = {
            name: tuple(
                binding.name if binding.WhichOneof("binding") == "name" else self.literal(binding.value)
                for binding in argument.arguments
            )
            for name, argument in message.inputs.items()
        }
        attributes = dict(message.attributes)
        name = _text(attributes.pop("name")) if "name" in attributes else ""
        inputs |= {key: (self.literal(value),) for key, value in attributes.items()}
        outputs = tuple((output.name, self.type(output.type)) for output in message.outputs)
        return Operation(message.type, name, inputs, outputs)

    def function(self, name: str, message: FunctionMessage) -> Function:
        if message.opset not in message.block_specializations:
            raise damaged(f"function {name} has no program for its operation set {message.opset!r}")
        block = message.block_specializations[message.opset]
        inputs = {
            value.name: self.type(value.type)
            for value in message.inputs
            if value.type.WhichOneof("type") == "tensorType"
        }
        states = {
            value.name: self.type(value.type.stateType.wrappedType)
            for value in message.inputs
            if value.type.WhichOneof("type") == "stateType"
        }
        operations = tuple(self.operation(operation) for operation in block.operations)
        types = inputs | dict(output for operation in operations for output in operation.outputs)
        missing = sorted(set(block.outputs) - types.keys())
        if missing:
            raise damaged(f"function {name} gives {', '.join(missing)}, which nothing in it makes")
        outputs = {output: types[output] for output in block.outputs}
        return Function(name, inputs, outputs, states, operations)


def damaged(fault: str) -> UserError:
    """The refusal of a program that no converter writes."""
    return UserError(f"{fault}, so the package is damaged: convert or export it again")


def _text(value: ValueMessage) -> str:
    """The text of an attribute."""
    strings = value.immediateValue.tensor.strings.values
    return strings[0] if strings else ""


def _immediate(tensor: TensorValueMessage, dtype: str, count: int) -> Array:
    """A constant that lies in the program itself, 1-D; types without a field of their own lie as bytes."""
    member = tensor.WhichOneof("value")
    values = getattr(tensor, member).values if member else ()
    if isinstance(values, bytes):
        whole = len(values) == BY_NAME[dtype].bytes_for(count) and dtype != "str"
        array = BY_NAME[dtype].decode(np.frombuffer(values, np.uint8))[:count] if whole else None
    else:
        fits = len(values) == count and (member == "strings") == (dtype == "str")
        array = np.array(values, np.dtype(str) if dtype == "str" else BY_NAME[dtype].held) if fits else None
    if array is None:
        raise damaged(f"a constant of {count:,} {dtype} holds {len(values):,} {member or 'values'}")
    return array


def _unknown(program: ProgramMessage) -> Iterator[str]:
    for function in program.functions.values():
        for block in function.block_specializations.values():
            for operation in block.operations:
                if operation.type != "const" and operation.type not in REGISTRY:
                    yield operation.type


def read_functions(model: ModelMessage, folder: Path) -> dict[str, Function]:
    """The functions of a ``Model`` message, every operation known and every constant in its file.

    Raises:
        UserError: operations that the interpreter does not know, a weight file that is missing or damaged, or a
            program that does not hold together.
    """
    unknown = sorted(set(_unknown(model.mlProgram)))
    if unknown:
        raise UserError(
            f"the package uses operations that the interpreter does not know ({', '.join(unknown)}):"
            " convert the model without them, or add them to scale_export/mil/ops"
        )
    reader = _Reader(folder)
    return {
        name: reader.function(name, message) for name, message in sorted(model.mlProgram.functions.items())
    }
