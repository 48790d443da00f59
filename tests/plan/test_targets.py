"""Target files: the shipped ones are sound, and every unsound one is refused in one helpful sentence."""

from __future__ import annotations

import importlib.util
import re
import shutil
import tomllib
from pathlib import Path

import pytest
from pydantic import ValidationError

from scale_export.core import resources
from scale_export.core.errors import UserError
from scale_export.core.words import FOLD_MODES, PRECISIONS
from scale_export.plan.targets import (
    BACKEND_KEYS,
    ParityLimits,
    Target,
    load_recorded_target,
    load_target,
    target_names,
)

CPU = (resources.resource_dir("targets") / "cpu.toml").read_text()


def refused(path: Path, text: str) -> str:
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load_target(path)
    sentence = str(caught.value)
    assert "\n" not in sentence and len(sentence) < 900
    return sentence


def edited(pattern: str, replacement: str) -> str:
    text, count = re.subn(pattern, replacement, CPU, count=1, flags=re.MULTILINE)
    assert count == 1, pattern
    return text


@pytest.mark.parametrize("name", target_names())
def test_shipped_target_is_sound(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    assert target.parity.of(target.default_precision)
    for precision in target.precisions:
        assert 0 <= target.parity.of(precision).near_tie_budget < 0.5


@pytest.mark.parametrize("name", target_names())
def test_shipped_target_explains_every_limit(name: str) -> None:
    lines = (resources.resource_dir("targets") / f"{name}.toml").read_text().splitlines()
    comments = "\n".join(line for line in lines if line.startswith("#"))
    for key in ParityLimits.model_fields:
        assert key in comments, key


def test_cpu_takes_every_precision_and_fold_mode() -> None:
    cpu = load_target("cpu")
    assert cpu.precisions == PRECISIONS
    assert cpu.fold_modes == FOLD_MODES
    assert (cpu.default_precision, cpu.block_size, cpu.accuracy_level) == ("int8", 32, 4)
    assert cpu.max_package_bytes is None and cpu.max_memory_bytes is None
    assert cpu.parity.of("float32").max_kl is None


def test_target_is_frozen_and_hashable() -> None:
    cpu = load_target("cpu")
    assert hash(cpu) == hash(load_target("cpu"))
    with pytest.raises(ValidationError):
        cpu.block_size = 64  # type: ignore[misc]
    with pytest.raises(ValidationError):
        cpu.parity.of("int8").max_kl = 1.0  # type: ignore[misc]


def test_own_file_is_read_by_path(tmp_path: Path) -> None:
    path = tmp_path / "board.toml"
    text = edited('^name = "cpu"', 'name = "board"')
    path.write_text(text.replace("# max_package_bytes", "max_package_bytes"))
    target = load_target(str(path))
    assert target.name == "board"
    assert target.max_package_bytes == 4_000_000_000
    assert load_target(path) == target


def test_unknown_name_suggests_a_known_one() -> None:
    with pytest.raises(UserError, match=r"unknown target 'cpuu' \(did you mean 'cpu'\?\); known targets: "):
        load_target("cpuu")


FOREIGN = {key for backend, keys in BACKEND_KEYS.items() if backend != "onnxruntime" for key in keys}


@pytest.mark.parametrize(
    "key",
    [k for k in Target.model_fields if not k.startswith("max_") and k not in {*FOREIGN, "counts_positions"}],
)
def test_every_setting_must_be_stated(key: str, tmp_path: Path) -> None:
    text = CPU[: CPU.index("[parity")] if key == "parity" else edited(rf"^{key} = .*\n", "")
    assert f"the key '{key}' is missing" in refused(tmp_path / "cpu.toml", text)


@pytest.mark.parametrize("key", ["near_tie_budget"])
def test_every_required_limit_must_be_stated(key: str, tmp_path: Path) -> None:
    sentence = refused(tmp_path / "cpu.toml", edited(rf"^{key} = .*\n", ""))
    assert f"the key '{key}' in [parity.float32] is missing" in sentence


@pytest.mark.parametrize(
    ("pattern", "replacement", "expected"),
    [
        ("^block_size", "blocksize", "unknown key 'blocksize' (did you mean 'block_size'?)"),
        ("^max_kl", "max_lk", "unknown key 'max_lk' in [parity.int8] (did you mean 'max_kl'?)"),
        (r"^\[parity.int4\]", "[parity.in4]", "unknown key 'in4' in [parity] (did you mean 'int4'?)"),
        ('"gate"', '"gates"', "fold_modes cannot be 'gates' (did you mean 'gate'?); known: weights,"),
        ('"CPUExec', '"CPUexec', "(did you mean 'CPUExecutionProvider'?)"),
        ('= "onnxruntime"', '= "onnx"', "backend cannot be 'onnx'"),
        ("= 32$", "= 48", "block_size 48 is none that kernels take: use one of 16, 32"),
        ("= 32$", "= 512", "block_size 512 is none that kernels take"),
        ("= 32$", "= 8", "block_size = 8 is wrong"),
        ("= 32$", '= "32"', "block_size = '32' is wrong"),
        ("= 32$", "= true", "block_size = True is wrong"),
        ("= 32$", "= 2026-01-01", "block_size = datetime.date(2026, 1, 1) is wrong"),
        ("= 4$", "= 2", "accuracy_level cannot be 2"),
        ("= 4096", "= 0", "context_length = 0 is wrong"),
        ("^near_tie_budget = .*", "near_tie_budget = 1.5", "parity.float32.near_tie_budget = 1.5 is wrong"),
        ("^near_tie_budget = .*", "near_tie_budget = nan", "parity.float32.near_tie_budget = nan is wrong"),
        ("^runtime_max_kl = .*", "runtime_max_kl = inf", "parity.int8.runtime_max_kl = inf is wrong"),
        ("^runtime_max_kl = .*", "runtime_max_kl = -1", "parity.int8.runtime_max_kl = -1 is wrong"),
        ("^min_gain_retention = .*", "min_gain_retention = 0", "float32.min_gain_retention = 0 is wrong"),
        ('^name = "cpu"', 'name = "gpu"', "call the file gpu.toml or set name = 'cpu'"),
        ('^name = "cpu"', 'name = "../cpu"', "name = '../cpu' is wrong"),
        ('^default_precision = "int8"', 'default_precision = "int2"', "default_precision cannot be 'int2'"),
        (r"\[parity.int4\]", "[[parity.int4]]", "parity.int4"),
        ("^block_size", "block size", "is not valid TOML"),
        ("^block_size.*", "extra = " + "[" * 5000, "is not valid TOML"),
        ('^title = ".*"', 'title = ""', "title = '' is wrong"),
    ],
)
def test_wrong_setting_is_refused(pattern: str, replacement: str, expected: str, tmp_path: Path) -> None:
    assert expected in refused(tmp_path / "cpu.toml", edited(pattern, replacement))


@pytest.mark.parametrize(
    ("pattern", "replacement", "expected"),
    [
        (r'"float16", "int8", "int4"', '"float16", "int4"', "default_precision 'int8' is not among"),
        (r'"int8", "int4", "w8a8"\]', '"int8", "int4", "w8a8", "int4"]', "precisions lists 'int4' twice"),
        (r'"gate", "two-phase"', '"gate", "gate"', "fold_modes lists 'gate' twice"),
        (r'"float16", "int8", "int4"', '"float16", "int8"', "section [parity.int4], but precisions"),
        (r"^\[parity.int4\](.|\n)*", "", "no section [parity.int4] limits it"),
        (r"^near_tie_budget = 0.01", "near_tie_budget = 0.01\nmax_kl = 0.1", "float32 is not quantized"),
        (r"^max_kl = .*\n", "", "[parity.int8] lacks max_kl"),
        (r"^min_top1_agreement = .*\n", "", "[parity.int8] lacks min_top1_agreement"),
        (r"^runtime_max_kl = .*\n", "", "[parity.int8] lacks runtime_max_kl"),
        (r"^runtime_min_top1_agreement = .*\n", "", "[parity.int8] lacks runtime_min_top1_agreement"),
        (r"ExecutionProvider\"\]", 'ExecutionProvider", "CUDAExecutionProvider"]', "put it last"),
        (r"\[\"CPUExecutionProvider\"\]", "[]", "execution_providers = [] is wrong"),
        (
            r"^block_size",
            'compute_units = "all"\nblock_size',
            "compute_units is a setting of backend 'coreml'",
        ),
        (
            r"^block_size",
            "max_part_bytes = 5\nblock_size",
            "max_part_bytes splits decoders of backend 'coreml'",
        ),
        (r'^activations = "float32"', 'activations = "float16"', "set activations and kv_cache alike"),
    ],
)
def test_contradiction_is_refused(pattern: str, replacement: str, expected: str, tmp_path: Path) -> None:
    assert expected in refused(tmp_path / "cpu.toml", edited(pattern, replacement))


@pytest.mark.parametrize(
    ("pattern", "replacement", "expected"),
    [
        (
            r'^backend = "checkpoint"',
            'backend = "checkpoint"\nblock_size = 32',
            "block_size is a setting of graphs",
        ),
        (r'\["weights"\]', '["weights", "gate"]', "a checkpoint folds into weights as stored"),
        (r'= \["stored"\]', '= ["stored", "float32"]', "a checkpoint folds into weights as stored"),
        (r'^backend = "checkpoint"', 'backend = "coreai"', "the key 'block_size' is missing"),
    ],
)
def test_a_checkpoint_has_no_settings_of_graphs(
    pattern: str, replacement: str, expected: str, tmp_path: Path
) -> None:
    text = (resources.resource_dir("targets") / "checkpoint.toml").read_text()
    text, count = re.subn(pattern, replacement, text, count=1, flags=re.MULTILINE)
    assert count == 1 and expected in refused(tmp_path / "checkpoint.toml", text)


def test_graphs_are_not_as_stored(tmp_path: Path) -> None:
    text = (
        edited(r'"int4", "w8a8"\]', '"int4", "w8a8", "stored"]')
        + "\n[parity.stored]\nnear_tie_budget = 0.1\n"
    )
    assert "precision 'stored' is a checkpoint's" in refused(tmp_path / "cpu.toml", text)


def test_rounded_activations_are_of_onnx_runtime(tmp_path: Path) -> None:
    text = (
        (resources.resource_dir("targets") / "coreml.toml").read_text().replace('"int4"]', '"int4", "w8a8"]')
    )
    limits = "max_kl = 1\nmin_top1_agreement = 0\nruntime_max_kl = 1\nruntime_min_top1_agreement = 0\n"
    text += f"\n[parity.w8a8]\nnear_tie_budget = 0.1\n{limits}"
    assert "'w8a8' is emitted for ONNX Runtime, and not by backend 'coreml'" in refused(
        tmp_path / "coreml.toml", text
    )


def test_accuracy_level_without_integer_weights_is_refused(tmp_path: Path) -> None:
    text = edited(r"^\[parity.int8\](.|\n)*", "")
    text = text.replace(', "int8", "int4", "w8a8"]', "]").replace('= "int8"', '= "float16"')
    assert "accuracy_level 4 acts on int8 and int4 weights only" in refused(tmp_path / "cpu.toml", text)
    (tmp_path / "cpu.toml").write_text(text.replace("accuracy_level = 4", "accuracy_level = 0"))
    target = load_target(tmp_path / "cpu.toml")
    with pytest.raises(UserError, match=r"the target does not take int8 weights; known: float32, float16$"):
        target.parity.of("int8")


def test_every_problem_is_counted(tmp_path: Path) -> None:
    sentence = refused(tmp_path / "cpu.toml", edited("^fold_modes", "fold_mode"))
    assert sentence.endswith("(and 1 more)")


def test_a_recorded_target_is_a_shipped_ones_plain_name(tmp_path: Path) -> None:
    (tmp_path / "cpu.toml").write_text(CPU)
    assert load_recorded_target("cpu") == load_target("cpu")
    for name in (str(tmp_path / "cpu.toml"), "cpu.toml", "./cpu", "../targets/cpu", "mine", ""):
        with pytest.raises(UserError, match="--target"):
            load_recorded_target(name)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_target(tmp_path / "absent.toml")
    with pytest.raises(UserError, match="cannot be read"):
        load_target(tmp_path)
    assert "larger than" in refused(tmp_path / "cpu.toml", CPU + "#" * 70_000)
    (tmp_path / "cpu.toml").write_bytes(b'name = "\xff"')
    with pytest.raises(UserError, match="not valid TOML"):
        load_target(tmp_path / "cpu.toml")


@pytest.mark.parametrize("name", ["targets", "calib"])
def test_resources_lie_in_the_checkout_or_in_the_wheel(name: str, tmp_path: Path) -> None:
    checkout = Path(resources.__file__).parents[2]
    assert resources.resource_dir(name) == checkout / name  # type: ignore[arg-type]

    package = tmp_path / "site" / "scale_export"
    (package / "core").mkdir(parents=True)
    copy = shutil.copy(resources.__file__, package / "core")
    spec = importlib.util.spec_from_file_location("copied_resources", copy)
    assert spec and spec.loader
    installed = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(installed)
    with pytest.raises(FileNotFoundError, match=name):
        installed.resource_dir(name)
    (package / "_data" / name).mkdir(parents=True)
    (tmp_path / "site" / name).mkdir()
    assert installed.resource_dir(name) == package / "_data" / name


def test_cpu_file_holds_no_key_that_the_record_drops() -> None:
    table = tomllib.loads(CPU)
    assert load_target("cpu").model_dump(mode="json", exclude_none=True) == table
