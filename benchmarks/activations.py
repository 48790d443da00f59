"""What rounding activations costs: methods of w8a8 on the shipped model, by the portable decoder.

    python benchmarks/activations.py --split validation --limit 1024 --alphas 0.25 0.5 0.75

Prefill and one forward per answer token, ScAle gated, as deployed. A question is right where every token of its answer
is the best one along the right answer; KL is from the unrounded ScAle decoder at the positions that predict the answer.
``--outliers 50`` plants what large language models have and this one has not: in every product's input four channels
are 50 times louder, their columns as much quieter. The function is the same; one scale for all channels is not.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scale_export.coefficients.file import load_coefficients
from scale_export.core.intervals import gain_retention, mean_kl, proportion, top1_agreement
from scale_export.core.progress import WorkLog
from scale_export.core.records import DecoderSpec, Float32
from scale_export.device.engine import Scalars
from scale_export.device.generation import Generator
from scale_export.device.prompts import encode_messages, user_message
from scale_export.model.arithmetic import TorchKernels
from scale_export.model.asking import rules_of_model, target_ids
from scale_export.model.base import open_base
from scale_export.model.engine import ReferenceEngine
from scale_export.quantize import (
    CalibrationOptions,
    QuantizedWeights,
    StaticKernels,
    StaticWeights,
    load_quantizer,
)
from scale_export.quantize.calibration import calibrate
from scale_export.quantize.equalize import EqualizedStatistics, EqualizedWeights
from scale_export.quantize.methods.smoothquant import SmoothQuant
from scale_export.questions import load_questions

EXAMPLE = Path(__file__).parents[1] / "examples/tiny_vlm"


@dataclass(frozen=True, slots=True)
class Found:
    """Whether each question is right, and the logits of every answer position ``[positions, V]``."""

    right: Any
    logits: Float32


class Bench:
    """The shipped model and questions of one split, prepared once."""

    def __init__(self, split: str, limit: int | None, cache: Path | None, outliers: float = 1) -> None:
        self.coefficients = load_coefficients(EXAMPLE / "spatial.pt")
        self.base = open_base(self.coefficients.base.base_model, relative_to=EXAMPLE)
        base, options = self.base, CalibrationOptions(source="gridworld")
        self.statistics = calibrate(base, self.coefficients, options, WorkLog(quiet=True), cache)
        questions = load_questions("gridworld", split, limit=limit)  # type: ignore[arg-type]
        ends = rules_of_model(base.model, base.processor).end_tokens
        self.weights: Any = base.weights
        if outliers > 1:
            self.weights = EqualizedWeights(
                base=base.weights, search=lambda name: _outliers(base.spec, name, outliers)
            )
            self.statistics: Any = EqualizedStatistics(self.statistics, self.weights.columns)
        self.spatial = np.array([q.kind == "spatial" for q in questions])
        self.asked = [
            (
                encode_messages(base.processor, [user_message([q.image], q.prompt)]),
                target_ids(base.processor, q, ends),
            )
            for q in questions
        ]

    def measure(self, weights: Any, kernels: Callable[[Any], TorchKernels], strength: float = 1.0) -> Found:
        """The decoder on these weights, gated."""
        base, spec = self.base, self.base.spec
        attn, mlp = self.coefficients.dense(spec.num_layers, spec.num_heads)
        token = base.family.image_token_id(base.config)
        scalars = Scalars(
            attn=1 + np.float32(strength) * (attn - 1), mlp=1 + np.float32(strength) * (mlp - 1)
        )
        engine = ReferenceEngine(
            weights,
            scaled=None,
            vision=base.vision,
            image_token_id=token,
            gate=(self.coefficients.scope, scalars),
            kernels=kernels,
        )
        runtime = base.family.runtime_config(base.config)
        generator = Generator(
            engine=engine, family=base.family, fold="gate", image_token_id=token, runtime_config=runtime
        )
        right, logits = [], []
        for inputs, target in self.asked:
            rows = generator.forced_logits(inputs, target[:-1])
            right.append(bool((rows.argmax(-1) == np.array(target)).all()))
            logits.append(rows)
        return Found(np.array(right), np.concatenate(logits))

    def static(self, method: Any) -> Found:
        """w8a8 by one method."""
        weights = StaticWeights.prepared(
            self.weights, method, bits=8, block_size=0, statistics=self.statistics
        )
        return self.measure(weights, StaticKernels)  # type: ignore[arg-type]


def _outliers(spec: DecoderSpec, name: str, times: float) -> Float32:
    """What the columns of a matrix are multiplied by; of ``o_proj`` alike for heads that share a value head."""
    columns = np.ones(spec.linears()[name][1], np.float32)
    if not name.endswith("o_proj"):
        columns[[1, 5, 40, 77]] = 1 / times
    return columns


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--split", default="validation", choices=("calibration", "validation", "test"))
    parser.add_argument("--limit", type=int)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--outliers", type=float, default=1)
    parser.add_argument("--alphas", type=float, nargs="*", default=[], help="smoothquant with one α for all")
    given = parser.parse_args()
    bench = Bench(given.split, given.limit, given.cache, given.outliers)
    scaled, unscaled = (bench.measure(bench.weights, TorchKernels, strength) for strength in (1.0, 0.0))
    rtn = load_quantizer("rtn")
    int8 = QuantizedWeights.prepared(bench.weights, rtn, bits=8, block_size=32)
    rows: dict[str, Callable[[], Found]] = {
        "float32, base model": lambda: unscaled,
        "float32, ScAle": lambda: scaled,
        "int8 b32, rtn": lambda: bench.measure(int8, TorchKernels),
        "w8a8, rtn": lambda: bench.static(rtn),
        **{
            f"w8a8, smoothquant, α = {alpha}": lambda alpha=alpha: bench.static(SmoothQuant((alpha,)))  # type: ignore[misc]
            for alpha in given.alphas
        },
        "w8a8, smoothquant, best α of each group": lambda: bench.static(SmoothQuant()),
    }
    print(f"| {given.split}, {len(bench.asked)} questions | spatial | other | gain kept | KL, nats | top-1 |")
    print("|---|---|---|---|---|---|")
    for name, run in rows.items():
        found, spatial = run(), bench.spatial
        kept = gain_retention(unscaled.right[spatial], scaled.right[spatial], found.right[spatial])
        shares = [proportion(found.right[chosen]) for chosen in (spatial, ~spatial)]
        text = [f"{s.value:.3f} ({s.low:.3f}–{s.high:.3f})" for s in shares if s]
        kl, top1 = mean_kl(scaled.logits, found.logits), top1_agreement(scaled.logits, found.logits)
        gain = f"{kept.value:.3f} ({kept.low:.3f}–{kept.high:.3f})" if kept else "—"
        print(f"| {name} | {' | '.join(text)} | {gain} | {kl:.2g} | {top1:.4f} |", flush=True)


if __name__ == "__main__":
    main()
