"""What costs time is done once in a fold: each tensor read and hashed, each calibration question encoded."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import pytest

from scale_export import fold
from scale_export.model import checkpoint
from scale_export.quantize import example

EXAMPLE = Path(__file__).parents[2] / "examples/tiny_vlm"
QUESTIONS = 4


@pytest.mark.slow
def test_a_fold_reads_hashes_and_encodes_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A calibrated int4 package of the shipped model, nothing in the cache, with every leg but the task's."""
    read: collections.Counter[str] = collections.Counter()
    hashed: collections.Counter[tuple[Path, int]] = collections.Counter()
    encoded: collections.Counter[str] = collections.Counter()
    tensor, sha256, encode = (
        checkpoint.Checkpoint.tensor,
        checkpoint.stored_sha256,
        example.encode_messages,
    )

    def counted_tensor(self: checkpoint.Checkpoint, name: str) -> Any:
        read[self.resolve(name)] += 1
        return tensor(self, name)

    def counted_sha256(entry: checkpoint.StoredTensor) -> str:
        hashed[entry.file, entry.start] += 1
        return sha256(entry)

    def counted_encode(processor: Any, messages: Any) -> Any:
        encoded[str(messages)] += 1
        return encode(processor, messages)

    monkeypatch.setattr(checkpoint.Checkpoint, "tensor", counted_tensor)
    monkeypatch.setattr(checkpoint, "stored_sha256", counted_sha256)
    monkeypatch.setattr(example, "encode_messages", counted_encode)
    outcome = fold(
        EXAMPLE / "spatial.pt",
        "cpu",
        out=tmp_path / "package",
        precision="int4",
        calib_limit=QUESTIONS,
        cache=tmp_path / "cache",
        evaluation="none",
    )
    names = set(outcome.plan.base.checkpoint.stored_names())
    assert outcome.passed and outcome.plan.quantizer == "gptq"
    assert set(read) == names and set(read.values()) == {1}
    assert len(hashed) == len(names) and set(hashed.values()) == {1}
    assert len(encoded) == QUESTIONS and set(encoded.values()) == {1}
