"""The page's tests, run from Python: what needs Chromium is in ``examples/web/test``."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from .javascript import EXAMPLES, missing

WEB = EXAMPLES / "web"
_TRY = "import('./test/browser.js').then(async ({ launch }) => (await launch()).close())"


@functools.cache
def _no_browser() -> str | None:
    """Why no page is opened here; None where one is."""
    if reason := missing():
        return reason
    if not (WEB / "dist/index.html").exists():
        return "the web example is not built: make js"
    tried = subprocess.run(["node", "--eval", _TRY], cwd=WEB, capture_output=True, text=True, check=False)
    if tried.returncode == 0:
        return None
    return "no Chromium runs here: CHROMIUM=PATH names one that does"


def needs_browser() -> None:
    """Skip the test that calls this where no page can be opened; fail where all of Node's tests must run."""
    if reason := _no_browser():
        if os.environ.get("NODE") == "required":
            pytest.fail(reason)
        pytest.skip(reason)


def visited(tests: Sequence[Path], laid: Path) -> None:
    """Run files of the page's tests, one after the other, on what was laid ready for them.

    Raises:
        AssertionError: a test of it fails; with what Node says.
    """
    needs_browser()
    done = subprocess.run(
        ["node", "--test", "--test-concurrency", "1", "--test-reporter", "spec", *map(str, tests)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "WEB_FIXTURES": str(laid)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
