"""Requirements: what they may name, which package they mean, and that nothing unmeasured fulfils one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scale_export.core.errors import UserError
from scale_export.package.requirements import NAMES, check_requirements, read_requirements
from tests.helpers.cli import last_json, run
from tests.helpers.parity import parity

SELFTEST = {"value": 2e-6, "passed": True}


def verdicts(*texts: str, measured: Any = None, **changes: Any) -> list[bool]:
    """Whether each holds for an int4 package of 1,000 bytes."""
    requirements = read_requirements(texts, "int4")
    found = parity(**changes) if measured is None else measured
    return [c.passed for c in check_requirements(requirements, parity=found, selftest=SELFTEST, size=1000)]


def test_each_requirement_is_held_to_its_own_number():
    assert verdicts("retention>=0.98", "retention>=0.99", "int4.retention > .98") == [True, False, True]
    assert verdicts("kl<=0.0031", "kl<0.0031", "int4.top1>=0.98", "runtime.kl<=1e-3") == [
        True,
        False,
        True,
        False,
    ]
    assert verdicts("fold<=1e-5", "lowering < 1e-7", "preprocessing<=0") == [True, False, True]
    assert verdicts("size<=1_000", "size<1e3", "selftest<=1e-5") == [True, False, True]
    assert verdicts("task.accuracy.spatial>=0.7", "task.accuracy.other>=0.9", "task.loss<=0.01") == [
        True,
        False,
        True,
    ]


def test_what_was_not_measured_fulfils_nothing():
    for name in NAMES.keys() - {"size", "selftest"}:
        assert verdicts(f"{name}>=-1e9", f"{name}<=1e9", measured={"legs": {}}) == [False, False], name
    assert verdicts("retention>=-1", task=None) == [False]
    gone = {**parity()["legs"]["task"], "gain_retention": None}
    assert verdicts("retention>=-1", "agreement>=0.9", task=gone) == [False, True]
    checked = check_requirements(
        read_requirements(["retention>=0"], "int4"), parity=None, selftest=SELFTEST, size=1
    )
    assert [(c.value, c.passed) for c in checked] == [(None, False)]


def test_a_broken_leg_breaks_its_requirement():
    """Sabotage: each leg made worse turns the requirement that holds on a healthy report."""
    healthy = (
        "fold<=1e-5",
        "kl<=0.01",
        "top1>=0.97",
        "runtime.top1>=0.97",
        "retention>=0.95",
        "agreement>=0.95",
    )
    assert all(verdicts(*healthy))
    worse = {
        "fold": {"value": 2e-3},
        "quantization": {"kl": 0.5, "top1_agreement": 0.2},
        "runtime": {"top1_agreement": 0.1},
        "task": {"gain_retention": 0.1, "agreement_outside_near_ties": 0.3},
    }
    for leg, values in worse.items():
        broken = {leg: {**parity()["legs"][leg], **values}}
        assert not all(verdicts(*healthy, **broken)), leg
    assert verdicts("fold<=1e-5", fold={**parity()["legs"]["fold"], "value": float("nan")}) == [False]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("retention", "NAME>=NUMBER"),
        ("retention==0.9", "NAME>=NUMBER"),
        ("retention>=high", "NAME>=NUMBER"),
        ("retention>=1e", "NAME>=NUMBER"),
        ("retention>=nan", "NAME>=NUMBER"),
        ("retension>=0.9", "did you mean 'retention'"),
        ("int4.>=0.9", "nothing that is measured"),
        ("int8.retention>=0.9", "for int8 packages, and this one is int4"),
        ("float32.fold<=1", "for float32 packages"),
    ],
)
def test_a_requirement_that_could_never_be_checked_is_a_mistake(text: str, words: str):
    with pytest.raises(UserError, match=words):
        read_requirements([text], "int4")


def test_verify_exits_by_its_requirements(package: Path, capsys: Any):
    asked = ["verify", str(package), "--selftest", "--json"]
    assert run(*asked, "--require", "size<1e9", "--require", "float32.selftest<=1e-4") == 0
    found = last_json(capsys)
    assert [r["passed"] for r in found["requirements"]] == [True, True] and found["passed"] is True
    assert run(*asked, "--require", "size<10") == 1
    found = last_json(capsys)
    assert found["passed"] is False and found["requirements"][0]["requirement"] == "size<10"
    assert found["requirements"][0]["value"] > 10
    assert run(*asked, "--require", "retention>=0.9") == 1
    assert last_json(capsys)["requirements"][0]["value"] is None
    assert run(*asked, "--require", "int4.retention>=0.9") == 2
    assert "this one is float32" in last_json(capsys)["error"]
    assert run("verify", str(package), "--selftest", "--require", "size<10") == 1
    assert "Required size<10: FAILED" in capsys.readouterr().out
