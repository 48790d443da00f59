"""The readers that take files from strangers, each with whole files to damage."""

from __future__ import annotations

import functools
import io
import json
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from coremltools.proto import Model_pb2
from PIL import Image

from scale_export import mil
from scale_export.coefficients.file import load_coefficients
from scale_export.core.pictures import load_picture
from scale_export.device.package import open_package
from scale_export.device.selftest import run_selftest
from scale_export.package.manifest import canonical_json, open_package_files
from scale_export.plan.targets import load_target
from tests.helpers import mil_packages
from tests.helpers.packages import plant, reseal, write

from . import text_targets as small
from .mutation import damaged_bytes, damaged_json, damaged_message

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One reader.

    Attributes:
        seeds: makes whole files, name → bytes, in a folder of its own.
        damage: a changed copy of one of them.
        read: reads the file of that name with these bytes, in that folder; raises ``UserError`` or nothing.
        cost: of so many inputs of the quickest readers it takes one, so that a run's time is shared.
    """

    seeds: Callable[[Path], dict[str, bytes]]
    damage: Callable[[Random, str, bytes], bytes]
    read: Callable[[Path, str, bytes], object]
    cost: int = 1


def _coefficient_seeds(_: Path) -> dict[str, bytes]:
    folder = ROOT / "examples/tiny_vlm"
    return {name: (folder / name).read_bytes() for name in ("spatial.pt", "spatial.safetensors")}


def _damaged_coefficients(rng: Random, name: str, data: bytes) -> bytes:
    """Members of the archive, and fields of the header, are damaged within a whole frame."""
    if name.endswith(".pt") and rng.random() < 0.6:
        return _rezipped(rng, data)
    if name.endswith(".safetensors") and rng.random() < 0.6:
        size = int.from_bytes(data[:8], "little")
        header = damaged_json(rng, data[8 : 8 + size])
        return len(header).to_bytes(8, "little") + header + data[8 + size :]
    return damaged_bytes(rng, data)


def _rezipped(rng: Random, data: bytes) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(made, "w") as new:
        chosen = rng.choice(old.namelist())
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, damaged_bytes(rng, content) if name == chosen else content)
    return made.getvalue()


def _read_coefficients(folder: Path, name: str, data: bytes) -> object:
    (folder / name).write_bytes(data)
    return load_coefficients(folder / name)


def _bytes_damage(rng: Random, _: str, data: bytes) -> bytes:
    return damaged_bytes(rng, data)


def _json_damage(rng: Random, _: str, data: bytes) -> bytes:
    return damaged_json(rng, data)


def _manifest_seeds(folder: Path) -> dict[str, bytes]:
    return {"manifest.json": (write(folder / "package") / "manifest.json").read_bytes()}


def _read_manifest(folder: Path, name: str, data: bytes) -> object:
    package = folder / "package"
    try:
        table = json.loads(data)
    except (ValueError, RecursionError):
        (package / name).write_bytes(data)
        return open_package_files(package)
    if isinstance(table, dict):
        (package / name).write_bytes(canonical_json({"manifest_sha256": ""}))

        def replace(own: dict[str, Any]) -> None:
            own.clear()
            own.update((key, value) for key, value in table.items() if key != "manifest_sha256")

        try:
            reseal(package, replace)
        except UnicodeEncodeError:
            (package / name).write_bytes(data)
    return open_package_files(package)


def _target_seeds(_: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((ROOT / "targets").glob("*.toml"))}


def _read_target(folder: Path, name: str, data: bytes) -> object:
    (folder / name).write_bytes(data)
    return load_target(folder / name)


def _picture_seeds(_: Path) -> dict[str, bytes]:
    grid = np.random.default_rng(0).integers(0, 255, (24, 32, 4), np.uint8)
    picture = Image.fromarray(grid)
    files = {}
    for kind, mode in (("PNG", "RGBA"), ("JPEG", "RGB"), ("WEBP", "RGB"), ("GIF", "P"), ("BMP", "RGB"),
                       ("TIFF", "RGB"), ("PNG", "I;16"), ("JPEG", "CMYK"), ("PNG", "P")):  # fmt: skip
        content = io.BytesIO()
        converted = picture.convert("L").convert(mode) if mode == "I;16" else picture.convert(mode)
        converted.save(content, kind)
        files[f"{mode.replace(';', '')}.{kind.lower()}"] = content.getvalue()
    return files


def _read_picture(_: Path, name: str, data: bytes) -> object:
    return load_picture(data, name)


PROGRAM = Path("Data/com.apple.CoreML/model.mlmodel")


def _core_ml_seeds(folder: Path) -> dict[str, bytes]:
    models = {"prefill": mil_packages.convert_decoder(2), "decode": mil_packages.convert_decoder(1)}
    package = mil_packages.save_functions(folder, models, "prefill")
    shutil.move(package, folder / "package.mlpackage")
    package = folder / "package.mlpackage"
    names = ("Manifest.json", str(PROGRAM), str(PROGRAM.parent / "weights/weight.bin"))
    return {name: (package / name).read_bytes() for name in names}


@functools.cache
def _message(data: bytes) -> Any:
    message = Model_pb2.Model()
    message.ParseFromString(data)
    return message


def _damaged_core_ml(rng: Random, name: str, data: bytes) -> bytes:
    if name == "Manifest.json":
        return damaged_json(rng, data)
    if name != str(PROGRAM) or rng.random() < 0.1:
        return damaged_bytes(rng, data)
    message = Model_pb2.Model()
    message.CopyFrom(_message(data))
    damaged_message(rng, message)
    return bytes(message.SerializeToString())


def _read_core_ml(folder: Path, name: str, data: bytes) -> object:
    package = folder / "package.mlpackage"
    whole = (package / name).read_bytes()
    try:
        (package / name).write_bytes(data)
        model = mil.load(package)
        for function in model.functions.values():
            inputs = {
                key: np.zeros([size or 1 for size in kind.shape]) if "float" in kind.dtype
                else np.zeros([size or 1 for size in kind.shape], np.int32)
                for key, kind in function.inputs.items()
            }  # fmt: skip
            model.run(function.name, inputs, model.new_state())
        return model
    finally:
        (package / name).write_bytes(whole)


QUESTION = "where is the red circle ?"
SAFE = ("manifest.json", "report.html", "parity.json", "ScaleExportModel.swift")
"""What no device reads, and the manifest, which is a target of its own."""
NATIVE = (".onnx", ".onnx.data", ".onnx_adapter")
"""Read by ONNX Runtime's own code."""


def _package_seeds(target: str, precision: str | None = None) -> Callable[[Path], dict[str, bytes]]:
    """The files of a random LLaVA's package that are read in Python."""

    def seeds(folder: Path) -> dict[str, bytes]:
        package = small.fold(folder, target, precision)
        files = (path for path in package.rglob("*") if path.is_file() and ".mlpackage" not in str(path))
        names = (path.relative_to(package).as_posix() for path in files)
        return {n: (package / n).read_bytes() for n in names if n not in SAFE and not n.endswith(NATIVE)}

    return seeds


def _damaged_package(rng: Random, name: str, data: bytes) -> bytes:
    if name.endswith(".json"):
        return damaged_json(rng, data)
    if name.endswith(".safetensors"):
        return _damaged_coefficients(rng, name, data)
    return damaged_bytes(rng, data)


def _read_package(folder: Path, name: str, data: bytes) -> object:
    directory = folder / "package"
    whole = (directory / name).read_bytes()
    try:
        plant(directory, name, data)
        package = open_package(directory)
        if name.startswith("selftest/"):
            return run_selftest(package)
        return package.answer([Image.new("RGB", (60, 40), "red")], QUESTION, max_new_tokens=2)
    finally:
        plant(directory, name, whole)


TARGETS: dict[str, Target] = {
    "coefficients": Target(
        seeds=_coefficient_seeds, damage=_damaged_coefficients, read=_read_coefficients, cost=4
    ),
    "manifest": Target(seeds=_manifest_seeds, damage=_json_damage, read=_read_manifest, cost=5),
    "target": Target(seeds=_target_seeds, damage=_bytes_damage, read=_read_target, cost=2),
    "picture": Target(seeds=_picture_seeds, damage=_bytes_damage, read=_read_picture),
    "package": Target(
        seeds=_package_seeds("cpu", "float32"), damage=_damaged_package, read=_read_package, cost=1500
    ),
    "phone": Target(seeds=_package_seeds("iphone"), damage=_damaged_package, read=_read_package, cost=3000),
    "runtime": Target(seeds=small.runtime_seeds, damage=_json_damage, read=small.read_runtime, cost=2),
    "device-result": Target(
        seeds=small.result_seeds, damage=_json_damage, read=small.read_device_result, cost=3
    ),
    "report": Target(seeds=small.report_seeds, damage=_json_damage, read=small.read_parity, cost=60),
    "questions": Target(
        seeds=small.question_seeds, damage=small.damaged_lines, read=small.read_questions, cost=4
    ),
    "base": Target(seeds=small.base_seeds, damage=small.damaged_base, read=small.read_base, cost=60),
    "signature": Target(
        seeds=small.signature_seeds, damage=small.damaged_signature, read=small.read_signature, cost=4
    ),
    "calibration": Target(seeds=small.cache_seeds, damage=_damaged_package, read=small.read_cache, cost=4),
    "import": Target(seeds=small.state_seeds, damage=_damaged_coefficients, read=small.read_state, cost=10),
    "core-ml": Target(seeds=_core_ml_seeds, damage=_damaged_core_ml, read=_read_core_ml, cost=600),
}


def names(chosen: Sequence[str]) -> list[str]:
    """The targets of those names, all where none is named."""
    return list(chosen) or list(TARGETS)
