"""``scale-export inspect``: a package's verdict, of a failed export too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from scale_export.package.manifest import FAILED_MANIFEST_NAME, MANIFEST_NAME
from tests.helpers.cli import last_json, run
from tests.helpers.packages import plant


def test_inspect_says_the_verdict(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", str(package), "--json") == 0
    shown = last_json(capsys)
    parity = json.loads((package / "parity.json").read_text(encoding="utf-8"))
    assert shown["parity"] == "passed" and shown["not_checked"] == parity["not_checked"]
    assert shown["legs"]["fold"] == "passed" and shown["legs"]["task"] == "not checked"
    assert set(shown["legs"]) == set(parity["legs"])


def test_a_failed_export_says_which_leg(
    package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = Path(shutil.copytree(package, tmp_path / "x.failed"))
    parity = json.loads((failed / "parity.json").read_text(encoding="utf-8"))
    parity["passed"] = parity["legs"]["lowering"]["passed"] = False
    plant(failed, "parity.json", json.dumps(parity).encode())
    (failed / MANIFEST_NAME).rename(failed / FAILED_MANIFEST_NAME)
    assert run("inspect", str(failed), "--json") == 0
    shown = last_json(capsys)
    assert shown["parity"] == "FAILED" and shown["legs"]["lowering"] == "FAILED"
    assert run("inspect", str(failed)) == 0
    assert "FAILED" in capsys.readouterr().out
