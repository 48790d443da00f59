"""The JavaScript examples, driven from Python: one Node process for each job."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
DRIVER = Path(__file__).parent / "javascript.mjs"
CLI = EXAMPLES / "node/cli.js"
NODE = 20
"""The oldest version that runs them."""


def _version(node: str) -> str:
    return subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout


@functools.cache
def missing() -> str | None:
    """Why nothing of it runs here; None where it does."""
    node = shutil.which("node")
    version = _version(node) if node else ""
    if int(version.strip().removeprefix("v").split(".")[0] or 0) < NODE:
        return f"Node {NODE} or newer is not installed"
    if not (EXAMPLES / "js/dist/index.js").exists():
        return "the JavaScript examples are not built: make js"
    return None


def needs_node() -> None:
    """Skip the test that calls this where Node is missing."""
    if reason := missing():
        pytest.skip(reason)


def driven(**job: Any) -> Any:
    """What ``javascript.mjs`` answers to a job: JSON to JSON."""
    needs_node()
    done = subprocess.run(
        ["node", str(DRIVER)], input=json.dumps(job), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def told(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """The command of the Node example."""
    needs_node()
    return subprocess.run(
        ["node", str(CLI), *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "NO_COLOR": "1"},
    )


def claimed_families() -> Sequence[str]:
    """The families that the core claims, read from its source: tests know them without Node."""
    source = (EXAMPLES / "js/src/families/index.ts").read_text(encoding="utf-8")
    table = source.split("export const FAMILIES", 1)[1].split("};", 1)[0]
    return re.findall(r"^    (\w+):", table, flags=re.MULTILINE)
