"""Numbers without sense end in a sentence, at once: none, less than none, and far too many."""

from __future__ import annotations

from pathlib import Path

import pytest

from scale_export import UserError, open_package
from scale_export.core.options import MOST
from scale_export.search.budget import parse_budget
from scale_export.training.options import TrainOptions
from tests.helpers.cli import run

HUGE = 10**20


@pytest.mark.parametrize("threads", [0, -1, 10_000, 99_999, HUGE])
def test_threads_that_no_machine_has_are_refused(threads: int, package: Path) -> None:
    with pytest.raises(
        UserError, match=rf"--threads {threads} is refused on this machine of \d+ cores: give 1 to"
    ):
        open_package(package, threads=threads)


def test_a_few_threads_more_than_cores_are_taken(package: Path) -> None:
    assert open_package(package, threads=16).threads == 16


@pytest.mark.parametrize("command", ["run", "bench"])
def test_threads_are_refused_by_commands(
    command: str, package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = ("--prompt", "hello") if command == "run" else ()
    assert run(command, str(package), *ask, "--threads", "10000") == 2
    assert "--threads 10000 is refused" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"learning_rate": 1e300}, r"--lr 1e\+300 is refused: give 100 or less"),
        ({"learning_rate": float("inf")}, "--lr inf is refused"),
        ({"learning_rate": float("nan")}, "--lr nan is refused"),
        ({"learning_rate": 0.0}, "--lr 0.0 is refused"),
        ({"bound": 1e300}, r"--bound 1e\+300 is refused: give 100 or less"),
        ({"bound": float("nan")}, "--bound nan is refused"),
        ({"batch_size": 100_000}, "--batch-size 100000 is refused: give 4096 or less"),
        ({"seed": HUGE}, f"--seed {HUGE} is refused"),
        ({"seed": -HUGE}, f"--seed -{HUGE} is refused"),
        ({"steps": HUGE}, rf"--steps {HUGE} is refused: give {MOST} or less"),
        ({"replay": float("nan")}, "--replay nan is refused"),
    ],
)
def test_training_by_numbers_without_sense_is_refused(asked: dict[str, float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        TrainOptions(**asked)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--block-size", "0"),
        ("--block-size", str(HUGE)),
        ("--calib-limit", "0"),
        ("--calib-limit", str(HUGE)),
        ("--eval-limit", "-1"),
        ("--eval-limit", str(HUGE)),
        ("--budget", "decode=0tok/s"),
        ("--budget", "kl<=0"),
        ("--budget", "loss<=101pp"),
    ],
)
def test_exports_by_numbers_without_sense_are_refused(
    option: str, value: str, coefficient_file: Path, base_of: object, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = ("fold", "--coeffs", str(coefficient_file), "--target", "cpu", "--precision", "int4", "--dry-run")
    model = str(base_of("llava", "llama").directory)  # type: ignore[operator]
    assert run(*fixed, "--model", model, "--calib", "gridworld", option, value) == 2
    said = capsys.readouterr().err
    assert "is refused" in said and value in said


def test_budgets_that_make_sense_are_read() -> None:
    assert parse_budget("loss<=0pp").limit == 0 and parse_budget("loss<=100pp").limit == 1
