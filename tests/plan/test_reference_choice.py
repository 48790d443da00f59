"""Whether the reference is loaded or streamed from disk: the machine's memory decides unless the user does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from scale_export.plan.reference_choice import must_stream


@pytest.mark.parametrize(
    ("mode", "memory", "streams"),
    [
        ("auto", 1 << 40, False),
        ("auto", 1000, True),
        ("full", 1000, False),
        ("streamed", 1 << 40, True),
        ("files", 1 << 40, True),
    ],
)
def test_memory_decides_unless_asked(
    base_of: Any, monkeypatch: pytest.MonkeyPatch, mode: Any, memory: int, streams: bool
):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=memory))
    reason = must_stream(base_of("llava", "llama").checkpoint, mode)
    assert (reason is not None) == streams
    assert reason is None or ("GB" in reason and (mode == "auto") == ("as asked" not in reason))
