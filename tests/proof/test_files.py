"""Every file of a package of every backend, tampered with in turn and its hashes renewed: found, measured, or named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from scale_export import verify
from scale_export.backends.interface import load_backend
from scale_export.coefficients.file import load_coefficients
from scale_export.core.progress import WorkLog
from scale_export.package.manifest import open_package_files
from scale_export.plan.again import plan_again
from scale_export.plan.options import Origins
from scale_export.plan.weights import PlannedWeights, plan_statistics
from scale_export.proof.contents import CONFIGS
from scale_export.proof.files import RECORDS, SELFTEST, FileCheck
from tests.helpers.coefficients import random_coefficients, saved
from tests.helpers.folds import fold_on
from tests.helpers.packages import plant, reseal

Look = Callable[[Path], tuple[list[str], list[str]]]


@pytest.fixture(scope="module")
def look(base_of: Any) -> Look:
    """Of a package: what is wrong with its files, and the files that were not compared."""

    def run(package: Path, family: str = "llava") -> tuple[list[str], list[str]]:
        files = open_package_files(package)
        coefficients = load_coefficients(files.path(files.manifest.coefficients))
        plan = plan_again(files, coefficients, Origins(model=str(base_of(family, "llama").directory)))
        statements, unchecked = FileCheck(
            files=files,
            plan=plan,
            weights=PlannedWeights.of(plan, plan_statistics(plan, WorkLog(quiet=True))),
            backend=load_backend(plan.target.backend),
        ).run()
        return [s.name for s in statements if not s.right], [found.subject for found in unchecked]

    return run


@pytest.fixture(scope="module")
def sealed(base_of: Any, package: Path, phone_package: Path, tmp_path_factory: Any) -> Callable[[str], Path]:
    """A sound package of a backend, or of one with onnxruntime-genai's files."""

    def folded(family: str, target: str, scope: Any, **asked: Any) -> Path:
        base, place = base_of(family, "llama"), tmp_path_factory.mktemp("sealed")
        file = saved(random_coefficients(base, scope), place)
        outcome = fold_on(base, file, target, out=place / "out", evaluation="none", **asked)
        assert outcome.passed, outcome.parity
        return outcome.path

    makers: dict[str, Callable[[], Path]] = {
        "onnxruntime": lambda: package,
        "coreml": lambda: phone_package,
        "coreai": lambda: folded("llava", "coreai", "last", precision="float32"),
        "checkpoint": lambda: folded("llava", "checkpoint", "all"),
        "genai": lambda: folded("gemma3", "cpu", "last", precision="float32"),
    }
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = makers[name]()
        return made[name]

    return get


def tampered(raw: bytes, name: str) -> bytes:
    """The file with another key where it is a JSON object, else with some bytes flipped in its middle."""
    if name.endswith(".json"):
        table = json.loads(raw)
        return json.dumps(table | {"planted": 1} if isinstance(table, dict) else [*table, 1]).encode()
    middle = len(raw) // 2
    return raw[:middle] + bytes(byte ^ 0x55 for byte in raw[middle : middle + 8]) + raw[middle + 8 :]


HELD = {
    "onnxruntime": ("decoder.onnx", "vision.onnx", "embedding.onnx", "runtime.json"),
    "genai": ("decoder.onnx", "vision.onnx", "embedding.onnx", "runtime.json"),
    "coreml": ("decoder.mlpackage/", "vision.mlpackage/"),
    "coreai": ("decoder.aimodel", "embed.aimodel", "vision.aimodel"),
    "checkpoint": ("model.safetensors",),
}
"""What legs and statements of their own hold; tests of each plant faults in them."""


@pytest.mark.parametrize("backend", HELD)
def test_each_file_is_made_anew_or_held_by_a_leg_or_named(
    sealed: Callable[[str], Path], look: Look, tmp_path: Path, backend: str
) -> None:
    package, family = sealed(backend), "gemma3" if backend == "genai" else "llava"
    assert look(package, family) == ([], list(RECORDS)), "a sound package"
    names = set(open_package_files(package).manifest.files)
    own = open_package_files(package).manifest.coefficients
    held = {n for n in names if n.startswith((*HELD[backend], SELFTEST)) or n in (*CONFIGS, *RECORDS, own)}
    assert len(names - held) >= 4 and {"parity.json", "report.html"} <= held
    if backend == "genai":
        assert {"genai_config.json", "genai_vision.onnx", "genai_decoder.onnx"} <= names - held
    if backend == "coreml":
        assert {"runtime.json", "ScaleExportModel.swift", "tables.safetensors"} <= names - held
    forged = Path(shutil.copytree(package, tmp_path / "package"))
    for name in names - held:
        plant(forged, name, tampered((forged / name).read_bytes(), name))
    assert look(forged, family)[0] == sorted(names - held)


def test_another_rule_for_pictures_in_runtime_json_is_wrong(
    package: Path, look: Look, tmp_path: Path
) -> None:
    forged = Path(shutil.copytree(package, tmp_path / "package"))
    table = json.loads((forged / "runtime.json").read_text(encoding="utf-8"))
    table["image"]["normalize"]["mean"][0] += 0.01
    plant(forged, "runtime.json", json.dumps(table).encode())
    assert look(forged)[0] == ["runtime.json"]


def test_a_file_that_no_export_writes_is_wrong(package: Path, look: Look, tmp_path: Path) -> None:
    forged = Path(shutil.copytree(package, tmp_path / "package"))
    plant(forged, "Helper.swift", b"import Foundation")
    assert look(forged)[0] == ["Helper.swift"]


def test_a_missing_file_is_wrong(package: Path, look: Look, tmp_path: Path) -> None:
    forged = Path(shutil.copytree(package, tmp_path / "package"))
    (forged / "chat_template.jinja").unlink()
    reseal(forged, lambda table: table["files"].pop("chat_template.jinja"))
    assert look(forged)[0] == ["chat_template.jinja"]


def test_what_another_version_wrote_is_named_and_the_bases_own_files_are_compared(
    phone_package: Path, look: Look, tmp_path: Path
) -> None:
    forged = Path(shutil.copytree(phone_package, tmp_path / "package"))
    for name in ("ScaleExportModel.swift", "chat_template.jinja"):
        plant(forged, name, tampered((forged / name).read_bytes(), name))
    reseal(forged, lambda table: table["tool"].update(version="0.0.1"))
    assert look(forged) == (["chat_template.jinja"], [*RECORDS, "ScaleExportModel.swift"])


def initializer(package: Path, graph: str, name: str, change: Callable[[Any], None]) -> None:
    """Change a tensor of a graph, wherever its bytes lie."""
    model = onnx.load(package / graph)
    tensor = next(t for t in model.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor).copy()
    change(values)
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(model, package / graph)
    plant(package, graph, (package / graph).read_bytes())


def test_words_that_no_prompt_holds_are_compared(package: Path, look: Look, tmp_path: Path) -> None:
    forged = Path(shutil.copytree(package, tmp_path / "package"))
    model = onnx.load(forged / "embedding.onnx")
    table = max(model.graph.initializer, key=lambda t: int(np.prod(t.dims)))
    initializer(
        forged, "embedding.onnx", table.name, lambda rows: np.negative(rows[301:302], out=rows[301:302])
    )
    assert look(forged)[0] == ["wrong rows of the embedding of all words", "runtime.json"], (
        "which has the sizes of files"
    )


@pytest.mark.parametrize(
    ("name", "change"),
    [("fold", "weights"), ("execution_providers", ["CUDAExecutionProvider"]), ("block_size", 64)],
)
def test_verify_holds_what_else_a_manifest_decides(
    package: Path, base_of: Any, tmp_path: Path, name: str, change: Any
) -> None:
    forged = Path(shutil.copytree(package, tmp_path / "package"))
    reseal(forged, lambda table: table.update({name: change}))
    try:
        found = verify(forged, model=str(base_of("llava", "llama").directory), evaluation="none")
    except Exception as error:
        assert type(error).__name__ == "UserError", error
        return
    assert not found.passed


def test_verify_compares_files_and_golden_cases(package: Path, base_of: Any, tmp_path: Path) -> None:
    """Through the door: a file made anew, an answer, and what is said of files that are not compared."""
    model = str(base_of("llava", "llama").directory)
    sound = verify(package, model=model, evaluation="none")
    assert sound.passed and sound.contents is not None
    assert [found.subject for found in sound.contents.not_compared] == list(RECORDS)
    forged = Path(shutil.copytree(package, tmp_path / "package"))
    table = json.loads((forged / "selftest/cases.json").read_text(encoding="utf-8"))
    table["cases"][1]["prompt"] += " ?"
    plant(forged, "selftest/cases.json", json.dumps(table).encode())
    plant(forged, "chat_template.jinja", (forged / "chat_template.jinja").read_bytes() + b"\n")
    found = verify(forged, model=model, evaluation="none")
    assert not found.passed and found.contents is not None
    wrong = [statement.name for statement in found.contents.wrong]
    assert "chat_template.jinja" in wrong and "the prompt of case 1 in selftest/cases.json" in wrong
