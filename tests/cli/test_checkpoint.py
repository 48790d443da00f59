"""A checkpoint holds no graphs: what needs some ends with one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scale_export import fold
from tests.helpers.cli import run
from tests.helpers.coefficients import random_coefficients, saved


@pytest.fixture(scope="module")
def checkpoint(base_of: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    base, place = base_of("llava", "llama"), tmp_path_factory.mktemp("checkpoint")
    coeffs = saved(random_coefficients(base, "all"), place)
    outcome = fold(
        coeffs,
        "checkpoint",
        model=str(base.directory),
        out=place / "folded",
        evaluation="none",
        parity="files",
    )
    assert outcome.passed
    return outcome.path


@pytest.mark.parametrize("arguments", [["doctor"], ["run", "--prompt", "where ?"], ["bench"]])
def test_what_needs_graphs_ends_with_one_sentence(
    arguments: list[str], checkpoint: Path, base_of: Any, capsys: pytest.CaptureFixture[str]
):
    model = ["--model", str(base_of("llava", "llama").directory)] if arguments[0] == "doctor" else []
    assert run(arguments[0], str(checkpoint), *arguments[1:], *model) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert [line for line in lines if line.startswith("scale-export: ")] == lines[-1:]
    assert "checkpoint" in lines[-1] and "Traceback" not in "".join(lines)
