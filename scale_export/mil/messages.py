"""What is read of Core ML's protobuf messages (``Model.proto``, ``MIL.proto``), whose Python classes have no types.

Members are named as there; so is ``WhichOneof``, which tells the one that is set of a group of members.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol


class _Choice(Protocol):
    """A message that holds one of several members."""

    def WhichOneof(self, oneof_group: str) -> str | None: ...


class _Size(Protocol):
    size: int


class DimensionMessage(_Choice, Protocol):
    """``dimension``: ``constant``, or ``unknown`` where it is flexible."""

    constant: _Size


class TensorTypeMessage(Protocol):
    """An element type by its number, and the dimensions."""

    dataType: int
    dimensions: Sequence[DimensionMessage]


class _StateType(Protocol):
    wrappedType: ValueTypeMessage


class ValueTypeMessage(_Choice, Protocol):
    """``type``: ``tensorType``, ``stateType`` and others."""

    tensorType: TensorTypeMessage
    stateType: _StateType


class NamedTypeMessage(Protocol):
    """The name and the type of a function's input or of an operation's output."""

    name: str
    type: ValueTypeMessage


class _Strings(Protocol):
    values: Sequence[str]


class TensorValueMessage(Protocol):
    """``value``: ``strings``, ``floats``, ``ints``, ``bytes`` and others, each with its ``values``."""

    strings: _Strings

    def WhichOneof(self, oneof_group: str) -> str: ...


class _ImmediateValue(Protocol):
    tensor: TensorValueMessage


class _BlobFileValue(Protocol):
    fileName: str
    offset: int


class ValueMessage(_Choice, Protocol):
    """A constant; ``value``: ``immediateValue`` in the program itself, or ``blobFileValue`` in a weight file."""

    type: ValueTypeMessage
    immediateValue: _ImmediateValue
    blobFileValue: _BlobFileValue

    def SerializeToString(self, *, deterministic: bool) -> bytes: ...


class _Binding(_Choice, Protocol):
    name: str
    value: ValueMessage


class _Argument(Protocol):
    arguments: Sequence[_Binding]


class OperationMessage(Protocol):
    """One operation."""

    type: str
    inputs: Mapping[str, _Argument]
    outputs: Sequence[NamedTypeMessage]
    attributes: Mapping[str, ValueMessage]


class _Block(Protocol):
    operations: Sequence[OperationMessage]
    outputs: Sequence[str]


class FunctionMessage(Protocol):
    """A function; its block is that of its operation set."""

    inputs: Sequence[NamedTypeMessage]
    opset: str
    block_specializations: Mapping[str, _Block]


class ProgramMessage(Protocol):
    """An ML program."""

    functions: Mapping[str, FunctionMessage]


class _Description(Protocol):
    defaultFunctionName: str


class ModelMessage(_Choice, Protocol):
    """A model; ``Type``: ``mlProgram`` and others."""

    mlProgram: ProgramMessage
    description: _Description

    def ParseFromString(self, serialized: bytes) -> int: ...
