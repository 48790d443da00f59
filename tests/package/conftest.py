"""A package to damage."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.packages import write


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return write(tmp_path / "pkg")
