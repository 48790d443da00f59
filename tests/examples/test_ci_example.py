"""The workflow that we hand out: it is YAML of the right shape, and the command line takes every line of it."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from scale_export.cli.app import app
from scale_export.package.requirements import read_requirements
from scale_export.plan.targets import load_target
from scale_export.questions import dataset_names

WORKFLOW = Path(__file__).parents[2] / "examples/ci/scale-export.yml"
LOADED: dict[Any, Any] = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
STEPS: list[dict[str, Any]] = LOADED["jobs"]["export"]["steps"]
VARIABLES: dict[str, str] = LOADED["env"]


def commands() -> list[list[str]]:
    """The words of every scale-export command, variables filled in as the shell would."""
    lines = [line.strip() for step in STEPS for line in step.get("run", "").splitlines()]
    filled = [re.sub(r"\$(\w+)", lambda match: VARIABLES[match[1]], line) for line in lines]
    return [shlex.split(line)[1:] for line in filled if line.startswith("scale-export ")]


def parse(words: list[str]) -> tuple[str, dict[str, Any]]:
    """The command of a line and its parameters, parsed by the command line itself and not run."""
    group: Any = get_command(app)
    name, *rest = words
    with group.commands[name].make_context(name, rest) as context:
        return name, context.params


def test_it_is_a_workflow():
    assert LOADED[True].keys() == {"push", "pull_request", "schedule"}  # YAML 1.1 reads the key "on" as true
    assert LOADED["permissions"] == {"contents": "read"}
    assert all(("uses" in step) != ("run" in step) for step in STEPS)
    assert {words[0] for words in commands()} == {"--version", "fold", "verify"}


@pytest.mark.parametrize("words", [w for w in commands() if w[0] != "--version"], ids=" ".join)
def test_the_command_line_takes_every_line(words: list[str]):
    name, parameters = parse(words)
    assert name == words[0]
    if name == "fold":
        assert VARIABLES["PRECISION"] in load_target(parameters["target"]).precisions
    if parameters.get("evaluation") not in (None, "auto", "none"):
        assert parameters["evaluation"].partition(":")[0] in dataset_names()
    read_requirements(parameters.get("require") or (), load_target("cpu").default_precision)


def test_a_line_that_the_command_line_does_not_take_is_found():
    with pytest.raises(Exception, match="No such option"):
        parse(["verify", "package", "--requires", "retention>=0.9"])


def test_every_variable_is_used_and_defined():
    text = WORKFLOW.read_text(encoding="utf-8")
    used = set(re.findall(r'"\$(\w+)', text))
    assert used == set(VARIABLES), (used, os.fspath(WORKFLOW))
