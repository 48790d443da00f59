"""Weight files of every element type, and what is said of packages and inputs that are wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import coremltools as ct
import numpy as np
import pytest
from coremltools.converters.mil.mil import Builder as mb
from coremltools.libmilstoragepython import _BlobStorageWriter
from typer.testing import CliRunner

from scale_export import mil
from scale_export.core.errors import UserError
from scale_export.mil.blob import BlobFile
from scale_export.mil.cli import app, describe
from scale_export.mil.dtypes import BY_NAME
from tests.helpers import mil_packages as packages
from tests.helpers.mil_packages import PREFILL, edited, operations
from tests.helpers.trees import place

WRITERS = {"float32": "float", "float16": "fp16"}
"""Element type → what coremltools' writer calls it, where that differs."""


@pytest.mark.parametrize("name", [name for name, dtype in BY_NAME.items() if dtype.blob and name != "bool"])
def test_blobs_that_coremltools_wrote(name: str, tmp_path: Path):
    dtype = BY_NAME[name]
    low = -(2 ** (dtype.bits - 1)) if name.startswith("int") else 0
    values = np.random.default_rng(dtype.bits).integers(low, low + 2 ** min(dtype.bits, 30), 21)
    values = values.astype(dtype.held if dtype.bits < 8 else name)
    writer = _BlobStorageWriter(str(tmp_path / "weight.bin"))
    write = getattr(writer, f"write_{WRITERS.get(name, name)}_data")
    parts = (values, values[:5])
    offsets = [write(part.view(np.uint16) if name == "float16" else part) for part in parts]
    del writer
    file = BlobFile(tmp_path / "weight.bin")
    for offset, part in zip(offsets, parts, strict=True):
        read = file.blob(offset, name, len(part)).read(len(part))
        assert read.dtype == dtype.held
        assert np.array_equal(read, part)


def rename(model: Any) -> None:
    operations(model, "linear")[0].type = "spline"
    operations(model, "silu")[0].type = "cubist"


def drop_input(model: Any) -> None:
    del operations(model, "linear")[0].inputs["weight"]


def add_input(model: Any) -> None:
    linear = operations(model, "linear")[0]
    linear.inputs["scale"].CopyFrom(linear.inputs["weight"])


def change_type(model: Any) -> None:
    constant = next(c for c in operations(model, "const") if c.attributes["val"].HasField("blobFileValue"))
    constant.attributes["val"].type.tensorType.dataType = 11


def move_blob(model: Any) -> None:
    constant = next(c for c in operations(model, "const") if c.attributes["val"].HasField("blobFileValue"))
    constant.attributes["val"].blobFileValue.offset += 64


def make_network(model: Any) -> None:
    model.neuralNetwork.SetInParent()


EDITS = {
    rename: r"does not know \(cubist, spline\)",
    drop_input: r"\(linear\) lacks inputs \['weight'\]",
    add_input: r"\(linear\) has inputs \['scale'\]",
    change_type: "where float32 is declared",
    move_blob: "holds no tensor at byte",
    make_network: "holds a neuralNetwork, and only ML programs",
}


@pytest.mark.parametrize("change", EDITS, ids=lambda change: change.__name__)
def test_a_program_that_cannot_run_is_refused_at_load(
    change: Callable[[Any], None], decoder_package: Path, tmp_path: Path
):
    with pytest.raises(UserError, match=EDITS[change]):
        mil.load(edited(decoder_package, tmp_path, change))


def truncate(package: Path) -> None:
    file = package / "Data/com.apple.CoreML/weights/weight.bin"
    file.write_bytes(file.read_bytes()[:-100])


def empty(package: Path) -> None:
    (package / "Data/com.apple.CoreML/weights/weight.bin").write_bytes(b"")


def remove_weights(package: Path) -> None:
    (package / "Data/com.apple.CoreML/weights/weight.bin").unlink()


def remove_model(package: Path) -> None:
    (package / "Data/com.apple.CoreML/model.mlmodel").unlink()


def garble_model(package: Path) -> None:
    (package / "Data/com.apple.CoreML/model.mlmodel").write_bytes(b"\xff\xff\xffnot a model")


def garble_manifest(package: Path) -> None:
    (package / "Manifest.json").write_text("{}")


def remove_manifest(package: Path) -> None:
    (package / "Manifest.json").unlink()


DAMAGES = {
    truncate: "is truncated|ends before the metadata",
    empty: "ends before the metadata",
    remove_weights: r"weight\.bin is missing",
    remove_model: r"model\.mlmodel is missing",
    garble_model: "is not a Core ML model",
    garble_manifest: "names no model",
    remove_manifest: "is not an .mlpackage",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_package_is_refused(damage: Callable[[Path], None], decoder_package: Path, tmp_path: Path):
    copy = tmp_path / "damaged.mlpackage"
    shutil.copytree(decoder_package, copy)
    damage(copy)
    with pytest.raises(UserError, match=DAMAGES[damage]):
        mil.load(copy)


def outside(package: Path) -> list[str]:
    """Names that lead to a whole file outside the package's folder of data, and some that lead to none."""
    file = package.parent / "outside"
    file.write_bytes(b"secret")
    return [
        str(file),
        "../../outside",
        "../../../outside",
        "..\\..\\outside",
        "C:outside",
        "",
        "./x",
        "a/../x",
    ]


@pytest.mark.parametrize("number", range(8))
def test_a_manifest_that_names_a_file_outside_is_refused(number: int, decoder_package: Path, tmp_path: Path):
    copy = tmp_path / "named.mlpackage"
    shutil.copytree(decoder_package, copy)
    listing = json.loads((copy / "Manifest.json").read_text())
    for item in listing["itemInfoEntries"].values():
        item["path"] = outside(copy)[number]
    (copy / "Manifest.json").write_text(json.dumps(listing))
    with pytest.raises(UserError, match="none inside"):
        mil.load(copy)


@pytest.mark.parametrize("number", range(8))
def test_a_program_that_names_weights_outside_is_refused(number: int, decoder_package: Path, tmp_path: Path):
    weights = decoder_package / "Data/com.apple.CoreML/weights/weight.bin"
    (tmp_path / "outside").write_bytes(weights.read_bytes())

    def leave(model: Any) -> None:
        for constant in operations(model, "const"):
            if constant.attributes["val"].HasField("blobFileValue"):
                name = outside(tmp_path / "edited.mlpackage")[number]
                constant.attributes["val"].blobFileValue.fileName = f"@model_path/{name}"

    with pytest.raises(UserError, match="none inside"):
        mil.load(edited(decoder_package, tmp_path, leave))


FILES = ("Manifest.json", "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["link", "fifo", "directory", "loop"])
def test_what_is_no_file_inside_the_package_is_refused(
    kind: str, name: str, decoder_package: Path, tmp_path: Path
):
    copy = tmp_path / "copy.mlpackage"
    shutil.copytree(decoder_package, copy)
    place(copy / name, kind, tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"leads out|not a regular file|is missing"):
        mil.load(copy)


X, AT = np.zeros((1, PREFILL, packages.HIDDEN), np.float32), np.zeros(1, np.int32)
CALLS: dict[str, tuple[str | None, dict[str, Any], str]] = {
    "unknown function": ("prefil", {}, r"no function 'prefil' \(did you mean 'prefill'\?\)"),
    "missing input": ("prefill", {"x": X}, "lacks input position"),
    "extra input": ("prefill", {"x": X, "position": AT, "mask": X}, "does not take input mask"),
    "wrong shape": (
        "prefill",
        {"x": X[:, 1:], "position": AT},
        r"shape \[1, 5, 64\]: give float16\[1, 6, 64\]",
    ),
    "wrong rank": ("prefill", {"x": X, "position": 0}, r"shape \[\]: give int32\[1\]"),
    "float for int": ("prefill", {"x": X, "position": [0.5]}, "position has values that int32 cannot hold"),
    "text": ("prefill", {"x": X.astype(str), "position": AT}, "x has values that float16 cannot hold"),
    "too large": ("prefill", {"x": X, "position": [2**40]}, "position has values that int32 cannot hold"),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_call_is_refused(call: str, decoder_package: Path):
    function, inputs, message = CALLS[call]
    model = mil.load(decoder_package)
    with pytest.raises(UserError, match=message):
        model.run(function, inputs, model.new_state())


def test_a_wrong_state_is_refused(decoder_package: Path):
    model, inputs = mil.load(decoder_package), {"x": X, "position": AT}
    with pytest.raises(UserError, match=r"needs state k_cache, v_cache: pass what Model.new_state\(\) gives"):
        model.run("prefill", inputs)
    state = model.new_state()
    with pytest.raises(UserError, match="state k_cache of function prefill has shape"):
        model.run("prefill", inputs, state | {"k_cache": state["k_cache"][:1]})


def test_an_unknown_arithmetic_is_refused(decoder_package: Path):
    with pytest.raises(UserError, match="choose float32 or float16"):
        mil.load(decoder_package, "float8")  # type: ignore[arg-type]


def test_a_result_of_another_shape_is_refused(decoder_package: Path, tmp_path: Path):
    def misdeclare(model: Any) -> None:
        for linear in operations(model, "linear"):
            linear.outputs[0].type.tensorType.dimensions[0].constant.size = 7

    model = mil.load(edited(decoder_package, tmp_path, misdeclare))
    with pytest.raises(UserError, match=r"gives shape \[.*\] where the program declares float16\[7, "):
        model.run("prefill", {"x": X, "position": AT}, model.new_state())


def test_values_are_rounded_where_they_are_declared_as_float16(tmp_path: Path):
    @mb.program(input_specs=[mb.TensorSpec((3,))], opset_version=ct.target.iOS18)
    def program(x):  # type: ignore[no-untyped-def]
        return mb.add(x=mb.cast(x=mb.cast(x=x, dtype="fp16"), dtype="fp32"), y=np.float32(1e-4), name="y")

    model = ct.convert(program, convert_to="mlprogram", source="milinternal", skip_model_load=True,
                       minimum_deployment_target=ct.target.iOS18, compute_precision=ct.precision.FLOAT32,
                       pass_pipeline=ct.PassPipeline.EMPTY)  # fmt: skip
    model.save(str(tmp_path / "cast.mlpackage"))
    x = np.array([1 / 3, 1e-9, 1e5], np.float32)
    exact = mil.load(tmp_path / "cast.mlpackage").run(inputs={"x": x})["y"]
    assert np.array_equal(exact, x + np.float32(1e-4))
    rounded = mil.load(tmp_path / "cast.mlpackage", "float16").run(inputs={"x": x})["y"]
    with np.errstate(over="ignore"):
        assert np.array_equal(rounded, x.astype(np.float16).astype(np.float32) + np.float32(1e-4))


def invoke(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scale_export.mil", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_run_from_a_shell(decoder_package: Path, tmp_path: Path, tokens: np.ndarray):
    inputs = {"x": tokens[:, :1], "position": [0]}
    np.savez(tmp_path / "x.npz", **inputs)
    arguments = ["run", decoder_package, "--inputs", tmp_path / "x.npz", "--function", "decode"]
    done = invoke(*arguments, "--arithmetic", "float16", "--output", tmp_path / "y.npz")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"y  float32[1, 1, {packages.VOCABULARY}]  from -")
    model = mil.load(decoder_package, "float16")
    expected = model.run("decode", inputs, model.new_state())
    assert np.array_equal(np.load(tmp_path / "y.npz")["y"], expected["y"])


def test_a_mistake_at_a_shell_is_one_sentence(decoder_package: Path, tmp_path: Path):
    done = invoke("run", decoder_package, "--inputs", tmp_path / "none.npz")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_show(decoder_package: Path):
    shown = CliRunner().invoke(app, ["show", str(decoder_package), "--json"])
    described = json.loads(shown.stdout)
    assert described == describe(mil.load(decoder_package))
    assert described["functions"]["decode"]["inputs"] == {"x": "float16[1, 1, 64]", "position": "int32[1]"}
    assert described["functions"]["decode"]["states"].keys() == set(packages.STATES)
    weights = decoder_package / "Data/com.apple.CoreML/weights/weight.bin"
    assert 0.9 < described["constant_bytes"]["float16"] / weights.stat().st_size < 1
    text = CliRunner().invoke(app, ["show", str(decoder_package)]).stdout
    assert "prefill (default)\n  input x: float16[1, 6, 64]" in text
    assert "linear 10" in text


def test_nothing_but_numpy_and_protobuf_is_needed(decoder_package: Path):
    code = (
        "import sys\n"
        "sys.modules |= dict.fromkeys(('torch', 'scipy', 'transformers'))\n"
        "from scale_export import mil\n"
        f"mil.load({str(decoder_package)!r})\n"
        "assert 'coremltools' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
