"""``docs/python.md``: its examples run as they stand, in the order of the page."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/python.md"


@pytest.mark.slow
def test_the_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    shutil.copytree(ROOT / "examples/tiny_vlm", tmp_path / "examples/tiny_vlm")
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{PAGE.name}, example {number}", "exec"), names)
    shown = capsys.readouterr().out
    answer = (ROOT / "examples/tiny_vlm/answer.txt").read_text(encoding="utf-8").strip()
    assert shown.count(answer) == 3, (
        shown
    )  # the package's, streamed, and the hooked model's; not the base model's
