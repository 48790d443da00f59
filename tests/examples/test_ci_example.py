"""The workflow that we hand out: YAML of the right shape, and every step that it runs does what it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from scale_export.package.requirements import read_requirements
from scale_export.plan.targets import load_target
from tests.helpers.coefficients import random_coefficients, saved
from tests.helpers.hub import TOKEN, Hub, running_hub

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / "examples/ci/scale-export.yml"
LOADED: dict[Any, Any] = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
STEPS: list[dict[str, Any]] = LOADED["jobs"]["export"]["steps"]
VARIABLES: dict[str, str] = LOADED["env"]
RUN = {step["name"]: step["run"] for step in STEPS if "run" in step}


def test_it_is_a_workflow():
    assert LOADED[True].keys() == {"push", "pull_request", "schedule"}  # YAML 1.1 reads the key "on" as true
    assert LOADED["permissions"] == {"contents": "read"}
    assert all(("uses" in step) != ("run" in step) for step in STEPS)
    assert list(RUN) == ["Install", "Fold", "Self-test", "Summary, beside the last release", "Release"]


def test_its_cache_of_pip_asks_for_no_file_that_a_repository_may_lack():
    (python,) = (step["with"] for step in STEPS if step.get("uses", "").startswith("actions/setup-python"))
    assert (
        python["cache"] == "pip" and python["cache-dependency-path"] == ".github/workflows/scale-export.yml"
    )


def test_the_token_comes_from_a_secret_and_caches_are_kept():
    assert LOADED["jobs"]["export"]["env"] == {"HF_TOKEN": "${{ secrets.HF_TOKEN }}"}
    (cache,) = (step["with"] for step in STEPS if step.get("uses", "").startswith("actions/cache"))
    assert cache["path"].split() == ["~/.cache/huggingface/hub", "~/.cache/scale-export"]


def test_every_leg_is_measured_once():
    words = " ".join(RUN.values())
    assert words.count("scale-export fold") == 1
    assert re.findall(r"scale-export verify .*", words)[0].split()[3] == "--selftest"


def test_its_defaults_are_those_that_the_tool_takes():
    assert VARIABLES["PRECISION"] in load_target(VARIABLES["TARGET"]).precisions
    assert read_requirements(VARIABLES["REQUIRE"].split(), "int8", exporting=True)


def test_every_variable_is_used_and_defined():
    text = WORKFLOW.read_text(encoding="utf-8").partition("steps:")[2]
    used = set(re.findall(r"\$([A-Z_]+)", text)) | set(re.findall(r'environ\["(\w+)"\]', text))
    given = {"GITHUB_STEP_SUMMARY", "GITHUB_REF_NAME"}
    assert used - given == set(VARIABLES)


@dataclass
class Runner:
    """A stand-in for the machine that runs a workflow: a repository, its variables, and a shell for each step.

    Only ``python -m pip`` is a stub, and the hub one of ours.
    """

    repository: Path
    environment: dict[str, str]
    hub: Hub

    @property
    def summary(self) -> str:
        return Path(self.environment["GITHUB_STEP_SUMMARY"]).read_text(encoding="utf-8")

    def step(self, name: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", RUN[name]],
            cwd=self.repository,
            env=self.environment | variables,
            capture_output=True,
            text=True,
            check=False,
        )


def _command(place: Path, body: str) -> None:
    place.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    place.chmod(place.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def runner(base_of: Any, tmp_path: Path) -> Iterator[Runner]:
    base = base_of("llava", "llama")
    repository, tools = tmp_path / "repository", tmp_path / "tools"
    tools.mkdir()
    shutil.copytree(base.directory, repository / "base")
    place = saved(random_coefficients(base), tmp_path)
    place.rename(repository / f"spatial{place.suffix}")
    _command(tools / "python", f'[ "$2" = pip ] && exit 0\nexec "{sys.executable}" "$@"')
    _command(tools / "scale-export", f'exec "{sys.executable}" -m scale_export "$@"')
    with running_hub() as hub:
        environment = (
            os.environ
            | VARIABLES
            | {"COEFFICIENTS": f"spatial{place.suffix}", "BASE_MODEL": "base", "EVALUATION": "none"}
            | {"PRECISION": "float32", "RELEASE": "me/spatial", "REQUIRE": "fold<=1e-5 size<=2e9"}
            | {"GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"), "GITHUB_REF_NAME": "v1"}
            | {"HF_TOKEN": TOKEN, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
            | {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
            | {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
        )
        yield Runner(repository=repository, environment=environment, hub=hub)


@pytest.mark.slow
def test_its_steps_run_in_a_repository_without_anything_else(runner: Runner):
    for name in RUN:
        done = runner.step(name)
        assert done.returncode == 0, (name, done.stderr)
        if name == "Fold":
            said = json.loads(done.stdout.splitlines()[-1])
            assert said["passed"] and [one["passed"] for one in said["requirements"]] == [True, True]
    assert "No release to compare with" in runner.summary and "| fold value |" in runner.summary
    assert "Holds: `fold<=1e-5`" in runner.summary and "Not checked: task" in runner.summary
    assert runner.hub.repositories["me/spatial"].tags == {"v1": 1}
    shutil.rmtree(runner.repository / "out")
    missed = runner.step("Fold", REQUIRE="size<=10")
    assert missed.returncode == 1 and not (runner.repository / "out/package").exists()
    assert runner.step("Summary, beside the last release").returncode == 0
    assert "MISSED: `size<=10`" in runner.summary and "out/package.failed" in runner.summary
    row = re.findall(r"\| fold value \| (\S+) \| (\S*) ?\|", runner.summary)[-1]
    assert row[0] == row[1] != ""  # the same model as the release
