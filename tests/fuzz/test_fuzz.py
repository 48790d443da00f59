"""A short run of every reader over damaged files; ``make fuzz`` has the long one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from scale_export.core.errors import UserError
from tests.fuzz.__main__ import Tally, damaged_inputs, found_before, fuzz, read_one
from tests.fuzz.targets import TARGETS

INPUTS = {"package": 40, "phone": 30, "core-ml": 150, "base": 100}
"""Of readers that take milliseconds; the others read many."""


@pytest.mark.parametrize("target", TARGETS)
def test_a_damaged_file_is_read_or_refused(target: str, tmp_path: Path):
    tally = fuzz(target, tmp_path, seed=1, inputs=INPUTS.get(target, 300), seconds=None)
    assert tally.inputs >= INPUTS.get(target, 300)
    assert tally.refused > 0
    assert not tally.faults, {kind: example[2] for kind, example in tally.examples.items()}


def test_the_same_number_gives_the_same_inputs():
    seeds = TARGETS["target"].seeds(Path())
    first, second = (damaged_inputs("target", seeds, 3) for _ in range(2))
    drawn = [next(first) for _ in range(20)]
    assert drawn == [next(second) for _ in range(20)]
    assert len(set(drawn)) > 10


def test_what_broke_a_reader_once_is_read_again():
    assert found_before("core-ml")
    assert found_before("package")


def broken(_: Path, name: str, data: bytes) -> object:
    raise {"key": KeyError("x"), "lines": UserError("one\ntwo"), "sentence": UserError("one")}[name]


@pytest.mark.parametrize(("name", "faults"), [("key", 1), ("lines", 1), ("sentence", 0)])
def test_what_is_no_sentence_is_a_fault(
    name: str, faults: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setitem(TARGETS, "target", replace(TARGETS["target"], read=broken))
    tally = Tally()
    read_one("target", tmp_path, name, b"", tally)
    assert sum(tally.faults.values()) == faults
