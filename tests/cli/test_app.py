"""The command line: exit codes, one-sentence refusals, JSON last lines, fast help."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.main import get_command

from scale_export.cli.app import app
from tests.helpers.cli import last_json, run
from tests.helpers.pictures import picture

COMMANDS = sorted(get_command(app).commands)  # type: ignore[attr-defined]


def test_the_commands_are_the_contracts():
    assert {"fold", "verify", "run", "inspect", "train", "bench", "targets"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_with_an_example(command: str, capsys: pytest.CaptureFixture[str]):
    assert run(command, "--help") == 0
    text = capsys.readouterr().out
    assert "Example:" in text and "--help" in text


def test_help_loads_no_framework():
    code = (
        "import sys\n"
        "from scale_export.cli.app import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'onnx', 'onnxruntime', 'numpy', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(len(heavy))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_the_command_line_and_the_families_load_without_torch():
    """A device lists, verifies and asks with them; what needs torch or an exporting library waits until it is asked."""
    code = (
        "import importlib, pkgutil, sys\n"
        "for name in ('torch', 'onnx', 'onnx_ir', 'onnxscript', 'scipy', 'matplotlib', 'optimum'):\n"
        "    sys.modules[name] = None\n"
        "import scale_export.pipeline.verify, scale_export.plan.targets, scale_export.cli\n"
        "for module in pkgutil.iter_modules(scale_export.cli.__path__, 'scale_export.cli.'):\n"
        "    importlib.import_module(module.name)\n"
        "from scale_export.families import family_names, load_family\n"
        "[load_family(name) for name in family_names()]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


BAD = [
    (["fold", "--coeffs", "nowhere.pt", "--target", "cpu"], "nowhere.pt"),
    (["fold", "--coeffs", "{coeffs}", "--target", "cpuu", "--model", "{base}"], "did you mean 'cpu'"),
    (["fold", "--coeffs", "{coeffs}", "--target", "cpu", "--model", "nowhere"], "nowhere"),
    (["fold", "--coeffs", "{coeffs}", "--target", "cpu", "--model", "{other}"], ""),
    (["fold", "--coeffs", "{coeffs}", "--target", "cpu", "--model", "{base}", "--precision", "int5"], "int5"),
    (
        ["fold", "--coeffs", "{coeffs}", "--target", "cpu", "--model", "{base}", "--fold", "weights"],
        "--fold gate",
    ),
    (
        ["fold", "--coeffs", "{coeffs}", "--target", "cpu", "--model", "{base}", "--out", "{package}"],
        "--force",
    ),
    (
        ["fold", "--coeffs", "{coeffs}", "--target", "cpu", "--model", "{base}", "--eval", "gridwrld"],
        "gridworld",
    ),
    (
        [
            "fold",
            "--coeffs",
            "{coeffs}",
            "--target",
            "cpu",
            "--model",
            "{base}",
            "--eval",
            "spatialeval:nowhere",
        ],
        "no directory",
    ),
    (
        ["fold", "--coeffs", "{coeffs}", "--target", "cpu", "--model", "{base}", "--eval", "coco_qa"],
        "coco_qa:DIR",
    ),
    (["verify", "nowhere"], "nowhere"),
    (["verify", "{package}", "--require", "speed>=1"], "nothing measured is called 'speed'"),
    (["verify", "{package}", "--require", "int4.retention>=0.9"], "this one is float32"),
    (["sign", "nowhere", "--key", "nowhere.pem"], "nowhere"),
    (["run", "{package}"], "--prompt"),
    (["run", "{package}", "--prompt", "hi", "--image", "nowhere.png"], "nowhere.png"),
    (["run", "{package}", "--prompt", "hi", "--image", "{coeffs}"], "cannot be read as a picture"),
    (["run", "{package}", "--prompt", "hi", "--scale", "2"], "between 0"),
    (["run", "{package}", "--prompt", "hi", "--coeffs", "nowhere.safetensors"], "nowhere.safetensors"),
    (["inspect", "nowhere"], "nowhere"),
    (["inspect", "{package}", "--png", "map.gif"], "drawn into .png or .svg files"),
    (["inspect", "{package}", "--png", "{coeffs}/map.png"], "cannot be written to"),
    (
        ["run", "{package}", "--prompt", "hi", "--image", "https://a.org/b.png"],
        "https://a.org/b.png is an address",
    ),
    (["bench", "{package}", "--prompt-tokens", "600"], "context"),
    (["train", "nowhere", "--out", "x.pt"], "nowhere"),
    (["train", "{base}", "--out", "x.pt", "--layers", "one"], "--layers"),
]


@pytest.mark.parametrize(("arguments", "word"), BAD, ids=[" ".join(a)[:60] for a, _ in BAD])
def test_a_mistake_is_one_sentence_and_exit_code_two(
    arguments: list[str],
    word: str,
    package: Path,
    coefficient_file: Path,
    base_of: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.chdir(tmp_path)
    places = {
        "coeffs": str(coefficient_file),
        "package": str(package),
        "base": str(base_of("llava", "llama").directory),
        "other": str(base_of("llava", "qwen2").directory),
    }
    assert run(*(a.format(**places) for a in arguments)) == 2
    error = capsys.readouterr().err.strip().splitlines()
    complaints = [line for line in error if line.startswith("scale-export: ")]
    assert len(complaints) == 1 and word in complaints[0]
    assert "Traceback" not in "\n".join(error)
    assert list(tmp_path.iterdir()) == []


def test_wrong_words_are_a_usage_error_without_traceback(capsys: pytest.CaptureFixture[str]):
    assert run("fold", "--no-such-option") == 2
    assert "Traceback" not in capsys.readouterr().err


def test_dry_run_decides_and_writes_nothing(
    coefficient_file: Path, base_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
):
    monkeypatch.chdir(tmp_path)
    base = str(base_of("llava", "llama").directory)
    arguments = [
        "fold",
        "--coeffs",
        str(coefficient_file),
        "--target",
        "cpu",
        "--model",
        base,
        "--dry-run",
        "--json",
    ]
    assert run(*arguments) == 0
    assert "gate" in last_json(capsys)["decisions"][0]
    assert list(tmp_path.iterdir()) == []


def test_run_inspect_bench_verify_and_targets_speak_json(package: Path, tmp_path: Path, capsys: Any):
    image = tmp_path / "scene.png"
    picture().save(image)
    asked = ["run", str(package), "--image", str(image), "--prompt", "where ?", "--max-new-tokens", "3"]
    assert run(*asked, "--json") == 0
    answer = last_json(capsys)["answer"]
    assert run(*asked) == 0
    assert capsys.readouterr().out.strip() == answer
    assert run("inspect", str(package), "--png", str(tmp_path / "map.png"), "--json") == 0
    facts = last_json(capsys)
    assert facts["fold"] == "gate" and facts["scalars"] == 15
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    assert run("inspect", str(package), "--png", str(tmp_path / "new/map.svg")) == 0
    capsys.readouterr()
    drawing = ElementTree.parse(tmp_path / "new/map.svg").getroot()
    assert drawing.tag == "{http://www.w3.org/2000/svg}svg" and len(list(drawing.iter())) > 15
    bench = [
        "bench",
        str(package),
        "--prompt-tokens",
        "8",
        "--new-tokens",
        "2",
        "--repeats",
        "1",
        "--threads",
        "1",
    ]
    assert run(*bench, "--json") == 0
    measured = last_json(capsys)
    assert measured["decode_ms"] > 0 and measured["bandwidth_share"] is None
    assert run("verify", str(package), "--selftest", "--json") == 0
    assert last_json(capsys)["passed"] is True
    assert run("targets", "--json") == 0
    assert "cpu" in [target["name"] for target in last_json(capsys)]


def test_a_corrupted_package_is_refused_by_every_command_that_opens_one(
    package: Path, tmp_path: Path, capsys: Any
):
    import shutil

    broken = tmp_path / "package"
    shutil.copytree(package, broken)
    data = broken / "decoder.onnx.data"
    raw = bytearray(data.read_bytes())
    raw[len(raw) // 2] ^= 1
    data.write_bytes(raw)
    for arguments in (["run", "--prompt", "x"], ["inspect"], ["bench"], ["verify"], ["verify", "--selftest"]):
        assert run(arguments[0], str(broken), *arguments[1:]) == 2
        assert "decoder.onnx.data" in capsys.readouterr().err


def test_chat_goes_on_until_an_empty_line(package: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    lines = iter(["where ?", "and now ?", ""])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert run("run", str(package), "--chat", "--max-new-tokens", "2", "--json") == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.strip().splitlines()]
    assert [a["prompt"] for a in answers] == ["where ?", "and now ?"]


def test_optimum_runs_the_same_command(coefficient_file: Path, tmp_path: Path):
    command = [str(Path(sys.executable).with_name("optimum-cli")), "export", "scale"]
    command += ["--coeffs", str(coefficient_file), "--target", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "nowhere" in done.stderr and "Traceback" not in done.stderr


def test_help_is_quick():
    """Half a second is the promise on an idle machine; a busy one gets slack, the module test above gets none."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "scale_export", "--help"], capture_output=True, check=True)
    assert time.perf_counter() - started < 3
