"""Whether the float32 reference is loaded, streamed from disk, or not run."""

from __future__ import annotations

import math
from dataclasses import replace

import psutil

from scale_export.core.words import ParityMode
from scale_export.model.base import BaseModel
from scale_export.model.checkpoint import Checkpoint

LOADED_COPIES = 3
"""Float32 copies of a model that a full measurement holds: Hugging Face's, the portable decoder's, a graph's."""


def must_stream(checkpoint: Checkpoint, mode: ParityMode) -> str | None:
    """Why the float32 model is not loaded, as a sentence; None where it is.

    ``auto`` streams where ``LOADED_COPIES`` float32 copies are more than this machine's memory.
    """
    needed = LOADED_COPIES * 4 * sum(math.prod(checkpoint.shape(name)) for name in checkpoint.stored_names())
    total = psutil.virtual_memory().total
    if mode == "full" or (mode == "auto" and needed <= total):
        return None
    asked = "" if mode == "auto" else f"as asked with --parity {mode}; "
    return f"{asked}float32 copies take {needed / 1e9:.1f} GB and this machine has {total / 1e9:.1f} GB"


def holding(base: BaseModel, mode: ParityMode) -> BaseModel:
    """The base, whose decoder weights are read once and kept where ``must_stream`` has them loaded."""
    held = must_stream(base.checkpoint, mode) is None
    return base if base.held == held else replace(base, held=held)
