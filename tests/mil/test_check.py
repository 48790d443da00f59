"""Programs that no converter writes: refused at load where that can be told, at the run else; none slow, none huge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil.mil import Builder as mb

from scale_export import mil
from scale_export.core.errors import UserError
from scale_export.mil.constants import Constant, Constants
from scale_export.mil.dtypes import MAX_ELEMENTS
from scale_export.mil.ops import REGISTRY, elements_of
from tests.helpers.mil_packages import edited, operations

from .cases import CASES

CONVERTING = {"convert_to": "mlprogram", "source": "milinternal", "skip_model_load": True,
              "minimum_deployment_target": ct.target.iOS18, "compute_precision": ct.precision.FLOAT32,
              "pass_pipeline": ct.PassPipeline.EMPTY}  # fmt: skip


def arguments(case: Any, type: str) -> dict[str, Any]:
    """A case's inputs as the interpreter hands them on: arrays stay arrays, numbers and tuples stay as they are."""
    parameters = REGISTRY[type].__annotations__
    return {
        name: np.asarray(value) if parameters.get(name, "").startswith("Array") and np.isscalar(value) else value
        for name, value in case.inputs.items()
    }  # fmt: skip


@pytest.mark.parametrize("type", sorted(REGISTRY))
def test_no_operation_makes_more_than_its_bound(type: str):
    for case in CASES[type]:
        made = REGISTRY[type](**case.inputs)
        largest = max(np.asarray(one).size for one in (made if isinstance(made, tuple | list) else (made,)))
        bound = elements_of(type)(**arguments(case, type))
        assert largest <= max(bound, 16)


def saved(folder: Path, body: Callable[[Any], Any]) -> Path:
    """A package of one function over ``x [2]``."""

    @mb.program(input_specs=[mb.TensorSpec((2,))], opset_version=ct.target.iOS18)
    def program(x):  # type: ignore[no-untyped-def]
        return mb.identity(x=body(x), name="y")

    ct.convert(program, **CONVERTING).save(str(folder / "program.mlpackage"))
    return folder / "program.mlpackage"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("plain"), lambda x: mb.add(x=x, y=np.float32([1, 2]), name="sum"))


def chained(length: int) -> Callable[[Any], None]:
    """Adds ``length`` constants, each the last one added to itself, and has the program add the last of them."""

    def change(model: Any) -> None:
        (function,) = model.mlProgram.functions.values()
        block = function.block_specializations[function.opset]
        last = next(op for op in block.operations if op.type == "add")
        made = list(block.operations)
        at = made.index(last)
        link, names = last.inputs["y"].arguments[0].name, []
        for number in range(length):
            step = type(last)()
            step.CopyFrom(last)
            step.outputs[0].name = f"link{number}"
            for side in ("x", "y"):
                step.inputs[side].arguments[0].name = link
            link = f"link{number}"
            names.append(step)
        final = type(last)()
        final.CopyFrom(last)
        final.inputs["y"].arguments[0].name = link
        del block.operations[:]
        block.operations.extend([*made[:at], *names, final, *made[at + 1 :]])

    return change


@pytest.mark.parametrize("length", [40, 3000])
def test_chained_constants_are_computed_once_each(length: int, plain: Path, tmp_path: Path):
    model = mil.load(edited(plain, tmp_path, chained(length)))
    found = model.run(inputs={"x": np.zeros(2)})["y"]
    with np.errstate(over="ignore"):
        assert np.array_equal(found, np.float32([1, 2]) * np.float32(2.0) ** np.float32(length))


def test_a_constant_is_computed_once():
    constants, calls = Constants(), []

    def leaf(_: Any) -> Any:
        calls.append("leaf")
        return (np.ones(2),)

    def double(values: Any) -> Any:
        calls.append("double")
        return (values[0] + values[1],)

    first = Constant(constants.node("leaf", leaf))
    for number in range(3):
        first = Constant(constants.node(("double", number), double, (first, first)))
    assert np.array_equal(constants.value(first), np.full(2, 8.0))
    assert np.array_equal(constants.value(first), np.full(2, 8.0))
    assert calls == ["leaf", "double", "double", "double"]


SMALL, HUGE = 7, 60_000
GREEDY: dict[str, Callable[[Any], Any]] = {
    "fill": lambda x: mb.add(x=x, y=mb.reduce_sum(x=mb.fill(shape=[SMALL, SMALL], value=1.0), axes=[0, 1])),
    "tile": lambda x: mb.tile(x=mb.expand_dims(x=x, axes=[0]), reps=[SMALL, SMALL]),
    "broadcast": lambda x: mb.add(
        x=mb.tile(x=mb.expand_dims(x=x, axes=[0]), reps=[SMALL, 1]),
        y=mb.fill(shape=[SMALL, 1, 1], value=1.0),
    ),
    "pad": lambda x: mb.pad(x=mb.expand_dims(x=x, axes=[0]), pad=[0, SMALL, 0, SMALL]),
}


@pytest.mark.parametrize("name", GREEDY)
def test_a_value_larger_than_any_device_holds_is_refused(name: str, tmp_path: Path):
    """What is small as coremltools makes it is made huge in its parameters, and what is declared stays small."""

    def enlarge(model: Any) -> None:
        for constant in operations(model, "const"):
            tensor = constant.attributes["val"].immediateValue.tensor
            if tensor.HasField("ints"):
                tensor.ints.values[:] = [HUGE if value == SMALL else value for value in tensor.ints.values]
        for type in ("fill", "tile"):
            for operation in operations(model, type) if name == "broadcast" else ():
                for dimension in operation.outputs[0].type.tensorType.dimensions:
                    if dimension.constant.size == SMALL:
                        dimension.constant.size = HUGE

    model = mil.load(edited(saved(tmp_path, GREEDY[name]), tmp_path, enlarge))
    with pytest.raises(UserError, match=r"makes [\d,]+ elements, and the interpreter holds at most"):
        model.run(inputs={"x": np.zeros(2)})


def first(model: Any, type: str) -> Any:
    return operations(model, type)[0]


def forget_opset(model: Any) -> None:
    model.mlProgram.functions["main"].opset = "CoreML99"


def lose_output(model: Any) -> None:
    (function,) = model.mlProgram.functions.values()
    function.block_specializations[function.opset].outputs[0] = "nothing"


def read_ahead(model: Any) -> None:
    first(model, "add").inputs["x"].arguments[0].name = "y"


def make_twice(model: Any) -> None:
    (function,) = model.mlProgram.functions.values()
    block = function.block_specializations[function.opset]
    block.outputs[0] = first(model, "identity").outputs[0].name = first(model, "add").outputs[0].name


def many_values(model: Any) -> None:
    argument = first(model, "add").inputs["x"]
    argument.arguments.add().CopyFrom(argument.arguments[0])


def no_value(model: Any) -> None:
    del first(model, "add").inputs["x"].arguments[:]


def unnamed_constant(model: Any) -> None:
    del first(model, "const").outputs[:]


def empty_constant(model: Any) -> None:
    for constant in operations(model, "const"):
        constant.attributes["val"].immediateValue.tensor.ClearField("floats")


def other_constant(model: Any) -> None:
    for constant in operations(model, "const"):
        constant.outputs[0].type.tensorType.dataType = 10


def sizeless_constant(model: Any) -> None:
    for constant in operations(model, "const"):
        for dimension in constant.attributes["val"].type.tensorType.dimensions:
            dimension.unknown.variadic = False


def huge_input(model: Any) -> None:
    (function,) = model.mlProgram.functions.values()
    function.inputs[0].type.tensorType.dimensions[0].constant.size = 2**62


def many_dimensions(model: Any) -> None:
    (function,) = model.mlProgram.functions.values()
    for _ in range(30):
        function.inputs[0].type.tensorType.dimensions.add().constant.size = 1


FAULTS = {
    forget_opset: "has no program for its operation set",
    lose_output: "gives nothing, which nothing in it makes",
    read_ahead: "reads 'y', which nothing gave",
    make_twice: "makes 'sum' twice",
    many_values: "has 2 values",
    no_value: "has 0 values",
    unnamed_constant: "does not hold one value under one name",
    empty_constant: "a constant of 2 float32 holds 0 values",
    other_constant: "is declared as float16",
    sizeless_constant: "without its sizes",
    huge_input: "elements is declared",
    many_dimensions: "31 dimensions",
}


@pytest.mark.parametrize("change", FAULTS, ids=lambda change: change.__name__)
def test_a_program_that_does_not_hold_together_is_refused_at_load(
    change: Callable[[Any], None], plain: Path, tmp_path: Path
):
    with pytest.raises(UserError, match=FAULTS[change]):
        mil.load(edited(plain, tmp_path, change))


def states_too_large(model: Any) -> None:
    for function in model.mlProgram.functions.values():
        for value in function.inputs:
            if value.type.WhichOneof("type") == "stateType":
                value.type.stateType.wrappedType.tensorType.dimensions[0].constant.size = (
                    MAX_ELEMENTS // 2**11
                )


def wrong_state(model: Any) -> None:
    first(model, "write_state").inputs["input"].arguments[0].name = "x"


def vector_for_one(model: Any) -> None:
    softmax = first(model, "concat")
    softmax.inputs["axis"].CopyFrom(first(model, "transpose").inputs["perm"])


STATEFUL = {
    states_too_large: "states of more than",
    wrong_state: "names no state",
    vector_for_one: "and it takes one",
}


@pytest.mark.parametrize("change", STATEFUL, ids=lambda change: change.__name__)
def test_a_stateful_program_that_does_not_hold_together_is_refused(
    change: Callable[[Any], None], decoder_package: Path, tmp_path: Path
):
    with pytest.raises(UserError, match=STATEFUL[change]):
        mil.load(edited(decoder_package, tmp_path, change))


def test_an_operation_that_fails_is_one_sentence(plain: Path, tmp_path: Path):
    def misfit(model: Any) -> None:
        for constant in operations(model, "const"):
            value = constant.attributes["val"]
            if value.immediateValue.tensor.HasField("floats"):
                value.immediateValue.tensor.floats.values.append(3.0)
                value.type.tensorType.dimensions[0].constant.size = 3
                constant.outputs[0].type.tensorType.dimensions[0].constant.size = 3

    model = mil.load(edited(plain, tmp_path, misfit))
    with pytest.raises(
        UserError, match=r"operation sum.* \(add\) fails on what the program gives it"
    ) as caught:
        model.run(inputs={"x": np.zeros(2)})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["Manifest.json", "Data/com.apple.CoreML/model.mlmodel"])
def test_a_file_too_large_to_be_read_whole_is_refused(name: str, plain: Path, tmp_path: Path):
    package = edited(plain, tmp_path, lambda model: None)
    with (package / name).open("r+b") as file:
        file.truncate(1 << 30)
    with pytest.raises(UserError, match=r"1,073,741,824 bytes, and at most"):
        mil.load(package)
