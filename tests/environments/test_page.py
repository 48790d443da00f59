"""``docs/compatibility.md`` shows what was measured, for the versions that ``pyproject.toml`` asks for now."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from packaging.requirements import Requirement

from .environments import PYTHONS, asked_for, declared, environments, lowest
from .page import NOT_RUN, PAGE, RESULTS, opened, proved, table, written

MEASURED = json.loads(RESULTS.read_text(encoding="utf-8"))
GOOD = {"package": "llava", "logits": 0.0, "bits": True, "answer": True, "selftest": True}


def test_the_page_is_what_was_measured():
    page = PAGE.read_text(encoding="utf-8")
    assert written(page, MEASURED) == page
    with pytest.raises(ValueError, match="the page has no"):
        written("a page without markers", MEASURED)


def test_what_was_not_measured_says_so():
    lines = table({}).splitlines()[2:]
    assert len(lines) == len(environments()) * len(PYTHONS)
    assert all(line.endswith(f"| — | {NOT_RUN} |") for line in lines)


def test_what_was_measured_for_other_versions_is_not_shown():
    environment = environments()[0]
    found = {"asked": asked_for(environment, "3.11"), "versions": {"numpy": "1.26.0"}, "rows": [GOOD]}
    assert "numpy 1.26.0" in table({environment.name: {"3.11": found}})
    other: dict[str, Any] = {**found, "asked": [*found["asked"], "numpy==1.25"]}
    assert table({environment.name: {"3.11": other}}) == table({})


@pytest.mark.parametrize(
    "broken",
    [{"answer": False}, {"selftest": False}, {"error": "ImportError: no", "answer": None, "selftest": None}],
)
def test_a_package_that_fails_is_named(broken: dict[str, Any]):
    assert opened([GOOD]).endswith("0.0e+00 off at the most")
    words = opened([GOOD, {**GOOD, "package": "smolvlm", **broken}])
    assert words.startswith("1 of 2 packages") and words.endswith("not: smolvlm")


@pytest.mark.parametrize("broken", [{"missed": ["hooks"]}, {"error": "ImportError: no"}])
def test_an_export_that_fails_is_named(broken: dict[str, Any]):
    good = {"kind": "family", "name": "llava", "missed": []}
    assert proved([good]) == "1 of 1 families proved, 0 of 0 folds of tiny_vlm pass"
    assert proved([good, {"kind": "fold", "name": "tiny", **broken}]).endswith(
        "0 of 1 folds of tiny_vlm pass; not: tiny"
    )


def test_lowest_versions_are_the_declared_bounds():
    asked = [
        Requirement(line)
        for line in ("numpy>=1.26", "numpy<2.4", "torch>=2.13,<2.15", "numpy>=1.27", "b==1.0b3")
    ]
    assert lowest(asked) == ["b==1.0b3", "numpy==1.27", "torch==2.13"]
    device = environments()[0]
    assert "numpy==1.26" in asked_for(device, "3.12") and "numpy==2.1" in asked_for(device, "3.13")
    export = {requirement.name for requirement in declared(["export"], "3.11")}
    assert {"torch", "coremltools", "onnxruntime", "optimum"} <= export
    assert "torch" not in {requirement.name for requirement in declared(device.extras, "3.11")}
    assert asked_for(replace(device, pins=("transformers==5.1",)), "3.11")[-1] == "transformers==5.1"
