"""More positions where answers have too few for a verdict: texts that the PyTorch ScAle model writes itself.

Answers of a word or two give few positions, and a share of seventy is known to five points at best. So while an
interval lies across its limit, the model writes chats about generated pictures (``quantize.self_written``), with seeds
of their own that no calibration has, and each position of what it answers counts like one of an answer. Every round
doubles what there is. What is undecided after the last stays so, and that is no pass.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from scale_export.coefficients.file import Coefficients
from scale_export.core.cache import default_cache
from scale_export.core.progress import WorkLog
from scale_export.model.base import BaseModel
from scale_export.quantize.example import Example
from scale_export.quantize.self_written import self_examples
from scale_export.quantize.sources import SelfSource

ROUNDS: Final = (2, 4, 8, 16)
"""Chats of each round."""
FIRST_SEED: Final = 7_000_000
"""The first round's seed; calibration's is what a user names, 0 by default."""


def texts(
    base: BaseModel, coefficients: Coefficients, number: int, log: WorkLog, cache: Path | None
) -> list[Example]:
    """The chats of a round, ``number`` from 0: each a prompt and the tokens that the model wrote after it.

    Raises:
        UserError: as ``self_examples``.
    """
    source = SelfSource(sequences=ROUNDS[number], seed=FIRST_SEED + number)
    place = default_cache() if cache is None else cache
    return self_examples(
        base, coefficients, source, limit=source.sequences, pictures=True, log=log, cache=place
    )
