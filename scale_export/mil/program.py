"""The program of a package as plain records, checked before anything runs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scale_export.core.errors import UserError
from scale_export.core.inside import file_inside
from scale_export.core.records import Array

from .blob import BlobFile
from .dtypes import BY_NAME, DTYPES, TensorType
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
        return TensorType(DTYPES[tensor.dataType].name, shape)

    def literal(self, value: ValueMessage) -> Literal:
        kind = self.type(value.type)
        shape = tuple(size or 0 for size in kind.shape)
        count = math.prod(shape)
        size = BY_NAME[kind.dtype].bytes_for(count)
        if value.WhichOneof("value") == "immediateValue":
            tensor = value.immediateValue.tensor
            message = value.SerializeToString(deterministic=True)
            return Literal(message, kind, size, lambda: _immediate(tensor, kind.dtype).reshape(shape))
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
        name = attributes.pop("name").immediateValue.tensor.strings.values[0] if "name" in attributes else ""
        inputs |= {key: (self.literal(value),) for key, value in attributes.items()}
        outputs = tuple((output.name, self.type(output.type)) for output in message.outputs)
        operation = Operation(message.type, name, inputs, outputs)
        if message.type != "const":
            _check_parameters(operation)
        return operation

    def function(self, name: str, message: FunctionMessage) -> Function:
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
        outputs = {output: types[output] for output in block.outputs}
        return Function(name, inputs, outputs, states, operations)


def _check_parameters(operation: Operation) -> None:
    """Refuse an operation whose inputs are not those that its function takes.

    Raises:
        UserError: it has an input too many, or lacks one.
    """
    parameters = inspect.signature(REGISTRY[operation.type]).parameters.values()
    unknown = operation.inputs.keys() - {parameter.name for parameter in parameters}
    missing = {p.name for p in parameters if p.default is p.empty} - operation.inputs.keys()
    if unknown or missing:
        fault = f"has inputs {sorted(unknown)}" if unknown else f"lacks inputs {sorted(missing)}"
        raise UserError(
            f"operation {operation.name} ({operation.type}) {fault}, which the interpreter does not expect:"
            " convert the model with coremltools 9, or extend scale_export/mil/ops"
        )


def _immediate(tensor: TensorValueMessage, dtype: str) -> Array:
    """A constant that lies in the program itself, 1-D; types without a field of their own lie as bytes."""
    values = getattr(tensor, tensor.WhichOneof("value")).values
    if isinstance(values, bytes):
        return BY_NAME[dtype].decode(np.frombuffer(values, np.uint8))
    return np.array(values, np.dtype(str) if dtype == "str" else BY_NAME[dtype].held)


def _unknown(program: ProgramMessage) -> Iterator[str]:
    for function in program.functions.values():
        for operation in function.block_specializations[function.opset].operations:
            if operation.type != "const" and operation.type not in REGISTRY:
                yield operation.type


def read_functions(model: ModelMessage, folder: Path) -> dict[str, Function]:
    """The functions of a ``Model`` message, every operation known and every constant in its file.

    Raises:
        UserError: operations that the interpreter does not know, or a weight file that is missing or damaged.
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
