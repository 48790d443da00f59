"""Requirements: what they may name, which package they mean, and that nothing unmeasured fulfils one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scale_export.core.errors import UserError
from scale_export.device.certificate import DeviceLeg, Host
from scale_export.package.requirements import NAMES, check_requirements, read_requirements
from scale_export.proof.report import ParityReport
from tests.helpers import parity as made
from tests.helpers.cli import last_json, run
from tests.helpers.parity import parity


def measured(**changes: Any) -> dict[str, float | None]:
    """What ``verify`` hands over of a package of 1,000 bytes; other legs, or none, in place of some."""
    lost = {"attribution": made.attribution(), "answer_agreement": made.answers()}
    return {"selftest": 2e-6, "size": 1000, **parity(**{**lost, **changes}).figures()}


def verdicts(*texts: str, **changes: Any) -> list[bool]:
    """Whether each holds for an int4 package."""
    requirements = read_requirements(texts, "int4")
    return [c.passed for c in check_requirements(requirements, measured(**changes))]


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


def test_every_name_is_a_figure_of_some_record_and_every_figure_has_a_name():
    of_devices = {name for name in NAMES if name.startswith("device.")}
    assert sorted(measured()) == sorted(set(NAMES) - of_devices)
    host = Host(app="a", runtime="r", provider="p", threads=1, device="d", system="s")
    leg = DeviceLeg(
        host=host, error=made.error(0.0, 1.0), pixels=None, ids_identical=True, gate=(), answers=(1, 1), cases=1,
        speed=None,
    )  # fmt: skip
    assert set(leg.figures()) == of_devices


def test_what_was_not_measured_fulfils_nothing():
    nothing = ParityReport(executed_by="a test").figures()
    for name in set(NAMES) - {"size", "selftest"}:
        asked = read_requirements([f"{name}>=-1e9", f"{name}<=1e9"], "int4")
        assert [c.passed for c in check_requirements(asked, nothing)] == [False, False], name
    assert verdicts("retention>=-1", task=None) == [False]
    assert verdicts("retention>=-1", "agreement>=0.9", task=made.task(retention=None)) == [False, True]
    checked = check_requirements(read_requirements(["retention>=0"], "int4"), {"selftest": 2e-6, "size": 1})
    assert [(c.value, c.passed) for c in checked] == [(None, False)]


def test_a_broken_leg_breaks_its_requirement():
    """Sabotage: each leg made worse turns the requirement that holds on a healthy report."""
    healthy = {
        "fold<=1e-5": {"fold": made.fold(2e-3)},
        "lowering<=1e-4": {"lowering": made.lowering(1.0)},
        "kl<=0.01": {"quantization": made.quantization(0.5)},
        "top1>=0.97": {"quantization": made.quantization(top1_agreement=0.2)},
        "runtime.top1>=0.97": {"runtime": made.runtime(top1_agreement=0.1)},
        "preprocessing<=1": {"preprocessing": made.preprocessing(3.0)},
        "retention>=0.95": {"task": made.task(retention=made.estimate(0.1, None, None))},
        "agreement>=0.95": {"task": made.task(made.agreement(100, outside_near_ties=0.3))},
        "parity.agreement>=1": {"answer_agreement": made.answers(outside_near_ties=0.9)},
    }
    assert all(verdicts(*healthy))
    for requirement, worse in healthy.items():
        held = zip(healthy, verdicts(*healthy, **worse), strict=True)
        assert [name for name, passed in held if not passed] == [requirement]
    for value in (float("nan"), float("inf")):  # which no number is above or below
        assert verdicts("fold<=1e-5", "fold>=0", fold=made.fold(value)) == [False, False]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("retention", "NAME>=NUMBER"),
        ("retention==0.9", "NAME>=NUMBER"),
        ("retention>=high", "NAME>=NUMBER"),
        ("retention>=1e", "NAME>=NUMBER"),
        ("retention>=nan", "NAME>=NUMBER"),
        ("retension>=0.9", "did you mean 'retention'"),
        ("int4.>=0.9", "nothing measured is called ''"),
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


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), None])
@pytest.mark.parametrize("operator", [">=", "<=", ">", "<"])
def test_what_is_not_finite_fulfils_nothing(value: float | None, operator: str):
    requirements = read_requirements([f"kl{operator}0"], "int4")
    assert [c.passed for c in check_requirements(requirements, {"kl": value})] == [False]


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
def test_a_requirement_without_a_finite_number_is_refused(number: str):
    with pytest.raises(UserError, match="NAME>=NUMBER"):
        read_requirements([f"kl<={number}"], "int4")
