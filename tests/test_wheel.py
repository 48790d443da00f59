"""The built wheel in empty environments: ``[ort]`` and ``[coreml]`` run packages, ``[export]`` makes them."""

from __future__ import annotations

import email
import json
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

from scale_export import __version__
from tests.helpers.pictures import picture

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_it_carries_its_annotations_and_says_what_it_is(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = email.message_from_bytes(archive.read(next(n for n in names if n.endswith("/METADATA"))))
    assert "scale_export/py.typed" in names
    assert metadata["Version"] == __version__ and metadata["Author"]
    assert "Typing :: Typed" in (metadata.get_all("Classifier") or [])
    assert metadata.get_payload().startswith("# scale-export")


def environment(wheel: Path, extra: str, directory: Path) -> Path:
    """A fresh virtual environment with the wheel and one extra, without pip; its ``bin``."""
    venv.create(directory)
    # Compiling every module of every library takes longer than all that is asked of them here.
    asked = [
        "install",
        "--quiet",
        "--no-compile",
        "--constraint",
        str(ROOT / "constraints.txt"),
        f"{wheel}[{extra}]",
    ]
    pip(directory / "bin", *asked)
    return directory / "bin"


def pip(bin_directory: Path, *arguments: str) -> str:
    """What this environment's pip says of another one."""
    command = [sys.executable, "-m", "pip", "--python", str(bin_directory / "python"), *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def ask(bin_directory: Path, *arguments: str, cwd: Path, code: int = 0) -> Any:
    done = subprocess.run(
        [bin_directory / "scale-export", *arguments, "--json"],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_the_device_environment_runs_benches_and_checks_itself_without_torch(
    wheel: Path, package: Path, coefficient_file: Path, base_of: Any, tmp_path: Path
):
    bin_directory = environment(wheel, "ort", tmp_path / "env")
    installed = pip(bin_directory, "list").split()
    assert "onnxruntime" in installed and not {"torch", "onnx", "scipy", "matplotlib"} & set(installed)
    picture().save(tmp_path / "scene.png")
    asked = ["run", str(package), "--image", "scene.png", "--prompt", "where ?", "--max-new-tokens", "3"]
    full = ask(bin_directory, *asked, cwd=tmp_path)
    assert isinstance(full["answer"], str)
    ask(bin_directory, *asked, "--scale", "0.5", cwd=tmp_path)
    ask(bin_directory, *asked, "--coeffs", str(coefficient_file), cwd=tmp_path)
    selftest = ask(bin_directory, "verify", str(package), "--selftest", cwd=tmp_path)["selftest"]
    assert selftest["passed"] and selftest["value"] <= selftest["limit"]
    bench = ask(
        bin_directory, "bench", str(package), "--prompt-tokens", "8", "--new-tokens", "2", cwd=tmp_path
    )
    assert bench["decode_ms"] > 0
    assert ask(bin_directory, "inspect", str(package), cwd=tmp_path)["scope"] == "last"
    assert "cpu" in [target["name"] for target in ask(bin_directory, "targets", cwd=tmp_path)]
    refusal = ask(
        bin_directory, "fold", "--coeffs", str(coefficient_file), "--target", "cpu", cwd=tmp_path, code=2
    )
    assert "scale-export[onnx]" in refusal["error"]


def test_core_ml_packages_run_and_check_themselves_without_torch(
    wheel: Path, phone_package: Path, tmp_path: Path
):
    shutil.copytree(phone_package, tmp_path / "package")
    bin_directory = environment(wheel, "coreml", tmp_path / "env")
    asked = ["run", "package", "--prompt", "where ?", "--max-new-tokens", "3"]
    refusal = subprocess.run(
        [bin_directory / "python", "-c", "import torch"], capture_output=True, check=False
    )
    assert refusal.returncode == 1, "torch came along"
    assert isinstance(ask(bin_directory, *asked, cwd=tmp_path)["answer"], str)
    assert ask(bin_directory, "verify", "package", "--selftest", cwd=tmp_path)["selftest"]["passed"]
    bench = ask(bin_directory, "bench", "package", "--prompt-tokens", "8", "--new-tokens", "2", cwd=tmp_path)
    assert bench["decode_ms"] > 0
    command = [bin_directory / "python", "-m", "scale_export.mil", "show", "package/decoder.mlpackage"]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True).stdout
    assert "prefill" in shown and "scaled_dot_product_attention" in shown


def test_the_export_environment_folds(wheel: Path, coefficient_file: Path, base_of: Any, tmp_path: Path):
    bin_directory = environment(wheel, "export", tmp_path / "env")
    base = str(base_of("llava", "llama").directory)
    fold = ["fold", "--coeffs", str(coefficient_file), "--target", "cpu", "--model", base, "--eval", "none"]
    outcome = ask(bin_directory, *fold, "--precision", "float32", "--out", "package", cwd=tmp_path)
    assert outcome["passed"] and (tmp_path / "package/manifest.json").exists()
    done = subprocess.run(
        [bin_directory / "optimum-cli", "export", "scale", *fold[1:], "--dry-run"], cwd=tmp_path, check=False
    )
    assert done.returncode == 0
