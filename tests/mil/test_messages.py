"""The protocols of Core ML's messages name fields that the messages have."""

from __future__ import annotations

import pytest

from scale_export.mil import messages
from scale_export.mil.package import _model_pb2

MESSAGES = {
    "ModelMessage": "Model",
    "_Description": "ModelDescription",
    "ProgramMessage": "MILSpec.Program",
    "FunctionMessage": "MILSpec.Function",
    "_Block": "MILSpec.Block",
    "OperationMessage": "MILSpec.Operation",
    "_Argument": "MILSpec.Argument",
    "_Binding": "MILSpec.Argument.Binding",
    "ValueMessage": "MILSpec.Value",
    "_ImmediateValue": "MILSpec.Value.ImmediateValue",
    "_BlobFileValue": "MILSpec.Value.BlobFileValue",
    "TensorValueMessage": "MILSpec.TensorValue",
    "_Strings": "MILSpec.TensorValue.RepeatedStrings",
    "NamedTypeMessage": "MILSpec.NamedValueType",
    "ValueTypeMessage": "MILSpec.ValueType",
    "_StateType": "MILSpec.StateType",
    "TensorTypeMessage": "MILSpec.TensorType",
    "DimensionMessage": "MILSpec.Dimension",
    "_Size": "MILSpec.Dimension.ConstantDimension",
}


def fields(name: str) -> set[str]:
    pool = _model_pb2().DESCRIPTOR.pool
    return set(pool.FindMessageTypeByName(f"CoreML.Specification.{name}").fields_by_name)


@pytest.mark.parametrize("protocol", MESSAGES)
def test_every_declared_member_is_a_field(protocol: str) -> None:
    declared = set(vars(vars(messages)[protocol]).get("__annotations__", {}))
    assert declared
    assert declared <= fields(MESSAGES[protocol])


def test_every_protocol_is_held_to_its_message() -> None:
    protocols = {name for name, value in vars(messages).items() if getattr(value, "_is_protocol", False)}
    assert protocols - {"Protocol", "_Choice"} == set(MESSAGES)


def test_a_member_that_is_no_field_would_be_seen() -> None:
    assert not {"no_such_field"} <= fields("MILSpec.Operation")
