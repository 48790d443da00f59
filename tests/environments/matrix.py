"""Build the environments of ``matrix.toml``, ask them, and write ``docs/compatibility.md``: ``make compat``.

    python -m tests.environments.matrix --python 3.11=python3.11 --only "device, lowest" --packages out/packages

Each environment is a virtual one of its own, removed after its check. A cell that was not measured says "not run". What
was measured before stays, until the versions that an environment asks for are others.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .environments import PYTHONS, ROOT, Environment, asked_for, environments
from .page import PAGE, RESULTS, written

SHOWN = ("numpy", "transformers", "onnxruntime", "coremltools", "torch")
"""Whose versions the page names."""

TOOLS = {"packages": (), "proofs": ("pytest",)}
"""What a check needs beside the extras."""


def measure(
    environment: Environment, python: str, interpreter: str, packages: Path, families: Sequence[str]
) -> dict[str, Any]:
    """Build the environment, run its check and take it down again."""
    with tempfile.TemporaryDirectory(prefix="compat-") as place:
        run([interpreter, "-m", "venv", place])
        inside = str(Path(place) / "bin/python")
        project, asked = f"{ROOT}[{','.join(environment.extras)}]", asked_for(environment, python)
        run([inside, "-m", "pip", "install", "--quiet", project, *asked, *TOOLS[environment.check]])
        listed = json.loads(run([inside, "-m", "pip", "list", "--format", "json"]))
        found = {row["name"].lower(): row["version"] for row in listed}
        subjects = families if environment.check == "proofs" else packages_of(environment, packages)
        lines = run(
            [inside, "-W", "ignore", "-m", f"tests.environments.{environment.check}_check", *subjects]
        )
    rows = [json.loads(line) for line in lines.splitlines() if line.startswith("{")]
    return {
        "asked": asked,
        "versions": {name: found[name] for name in SHOWN if name in found},
        "rows": rows,
    }


def packages_of(environment: Environment, packages: Path) -> list[str]:
    """The folders of the packages that it can open: Core ML's only where there is its extra."""
    folders = sorted(path.parent for path in packages.glob("*/answer.json"))
    return [str(f) for f in folders if "coreml" in environment.extras or "coreml" not in f.name]


def run(command: Sequence[str]) -> str:
    """A command's output, from the project's root; it ends the run with what it said where it fails."""
    done = subprocess.run(command, cwd=ROOT, check=False, text=True, capture_output=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done.stdout


def interpreters(given: Sequence[str]) -> Mapping[str, str]:
    """Version → command, ``python3.11`` and so on where none is given as ``3.11=COMMAND``."""
    return {
        **{version: f"python{version}" for version in PYTHONS},
        **dict(one.split("=", 1) for one in given),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for, environment by environment, and write the page after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--python", action="append", default=[], metavar="VERSION=COMMAND")
    parser.add_argument("--pythons", nargs="+", choices=PYTHONS, default=PYTHONS)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="environments by name; all by default")
    parser.add_argument(
        "--packages", type=Path, required=True, help="as tests.environments.packages wrote them"
    )
    parser.add_argument("--families", nargs="+", default=[], help="that proofs take; all by default")
    asked = parser.parse_args(arguments)
    commands = interpreters(asked.python)
    for environment in environments():
        if asked.only and environment.name not in asked.only:
            continue
        for python in asked.pythons:
            found = measure(environment, python, commands[python], asked.packages, asked.families)
            results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
            results.setdefault(environment.name, {})[python] = found
            RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            PAGE.write_text(written(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")
            print(f"{environment.name}, Python {python}: {json.dumps(found['versions'])}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
