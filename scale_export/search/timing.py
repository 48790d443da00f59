"""Timing a plan's decoder on this machine before there is a package: emitted, timed as ``bench`` does, dropped."""

from __future__ import annotations

import tempfile
from pathlib import Path

from scale_export.backends.interface import Emission, graph_backend, open_planned
from scale_export.core.defaults import BENCH_PROMPT_TOKENS, BENCH_REPEATS
from scale_export.device.bench import decode_seconds
from scale_export.plan.portable import generator_of
from scale_export.plan.record import Plan
from scale_export.plan.weights import PlannedWeights
from scale_export.quantize.calibration import StoredStatistics

NEW_TOKENS = 32
"""Fewer than ``bench`` decodes: a search times several plans."""


def seconds_per_token(plan: Plan, statistics: StoredStatistics | None) -> float:
    """Of decoding behind a prompt, the median of ``BENCH_REPEATS``, on the runtime's own choice of threads."""
    emission = Emission.of(plan, PlannedWeights.of(plan, statistics).stored)
    with tempfile.TemporaryDirectory(prefix="scale-export-speed-") as scratch:
        graphs = graph_backend(plan.target.backend).emit(emission, Path(scratch))
        engine = open_planned(plan, {role: Path(scratch) / name for role, name in graphs.items()})
        prompt = min(BENCH_PROMPT_TOKENS, plan.context_length // 2)
        return decode_seconds(
            generator_of(plan, engine),
            prompt_tokens=prompt,
            new_tokens=min(NEW_TOKENS, plan.context_length - prompt),
            repeats=BENCH_REPEATS,
        )
