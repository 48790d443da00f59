"""What each quantization method keeps of a shipped model's spatial skill: the tables of ``docs/quantization.md``.

Every row is the same model with its decoder's weights replaced by what a runtime would compute with (dequantized
codes, embedding table included), ScAle attached as it is deployed. A question is right where every token of the
answer, its end included, is the likeliest: what greedy decoding would write. The divergence is from the unquantized
ScAle model, at the positions that predict the answer. Choices are made on the validation split (``--split
validation``, the default); the chosen rows are measured once on the test split.

    python benchmarks/quantization.py --out /tmp/quantization.json
    python benchmarks/quantization.py --out /tmp/quantization.json --write docs/quantization.md

``--model small_vlm`` does the same for the larger model, of which the test split alone is shown. Times are CPU-seconds
of this process, collecting calibration included; the peak is the process's largest resident set meanwhile (Linux).
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from answering import Measured, PlainRounding, answers, joined, materialized, replaced, untie
from numpy.typing import NDArray

from scale_export.coefficients.file import Coefficients, load_coefficients
from scale_export.core.intervals import gain_retention, mean_kl, proportion, top1_agreement
from scale_export.core.progress import WorkLog, peak_memory
from scale_export.core.words import Weighting
from scale_export.model.base import BaseModel, open_base
from scale_export.model.blocks import BlockMatrix
from scale_export.model.folding import fold
from scale_export.model.hooks import attach
from scale_export.model.weights import DecoderWeights
from scale_export.quantize import Method, NoStatistics, QuantizedWeights, Statistics, load_quantizer
from scale_export.quantize.calibration import CalibrationOptions, calibrate
from scale_export.questions import load_questions
from scale_export.training.examples import encode_examples, whole_sequences

EXAMPLES = Path(__file__).parents[1] / "examples"
QUESTIONS = {"tiny_vlm": "gridworld", "small_vlm": "atlas"}
"""Model → the set that it was trained on."""
BATCH = 256
CALIBRATIONS: dict[str, tuple[Weighting, bool] | None] = {
    "none": None,
    "words only": ("uniform", False),
    "words and pictures": ("uniform", True),
    "answer positions": ("last", True),
    "image tokens": ("image", True),
}
T = TypeVar("T")
FREE, TUNED = ("rtn", "hqq", "mse"), ("mse", "gptq", "awq")
WHOLE_ROW = 0
"""A block size that stands for one block per row."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to quantize, and what it came to; 16 bits are unquantized."""

    method: str
    bits: int
    block_size: int
    calibration: str
    split: str
    weight_bytes: int
    spatial: tuple[float, float, float]
    other: tuple[float, float, float]
    retention: tuple[float, float | None, float | None]
    kl: float
    top1: float
    seconds: float
    peak_bytes: int | None


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU-seconds, and the largest resident set meanwhile in bytes; None where the system doesn't tell."""

    seconds: float = 0.0
    peak_bytes: int | None = None

    def and_then(self, other: Cost) -> Cost:
        peaks = [cost.peak_bytes for cost in (self, other) if cost.peak_bytes is not None]
        return Cost(self.seconds + other.seconds, max(peaks, default=None))


def costed(work: Callable[[], T]) -> tuple[T, Cost]:
    """What ``work`` returns, and what it took."""
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")  # the largest resident set is counted from here on
    started = time.process_time()
    result = work()
    return result, Cost(time.process_time() - started, peak_memory() if reset.exists() else None)


class Bench:
    """The model, its scalars and one split's questions."""

    def __init__(self, model: str, split: str, limit: int, cache: Path) -> None:
        self.base: BaseModel = open_base(str(EXAMPLES / model / "model"))
        untie(self.base.model)
        self.coefficients: Coefficients = load_coefficients(EXAMPLES / model / "spatial.pt")
        self.questions, self.split, self.cache = QUESTIONS[model], split, cache
        self._statistics: dict[str, tuple[Statistics, Cost]] = {}
        questions = load_questions(self.questions, split, limit=limit)  # type: ignore[arg-type]
        self.spatial = np.array([q.kind == "spatial" for q in questions])
        examples = encode_examples(self.base.model, self.base.processor, questions, lambda *_: None, "")
        pad = self.base.processor.tokenizer.pad_token_id
        self.batches = [whole_sequences(examples[i : i + BATCH], pad) for i in range(0, len(examples), BATCH)]
        self.unscaled = self.measure(None)
        self.scaled = self.measure(self.coefficients)
        self.log = WorkLog(quiet=True)

    @torch.no_grad()
    def measure(self, coefficients: Coefficients | None) -> Measured:
        """The model as its weights are now, with these scalars on it."""
        if coefficients is None:
            return joined([answers(self.base.model, batch) for batch in self.batches])
        with attach(self.base.model, coefficients) as handle:
            found = []
            for batch in self.batches:
                handle.gate_mask = batch.gate
                found.append(answers(self.base.model, batch))
        return joined(found)

    def statistics(self, calibration: str) -> tuple[Statistics, Cost]:
        """Collected once, and what that took."""
        chosen = CALIBRATIONS.get(calibration)
        if chosen is None and calibration not in self._statistics:
            return NoStatistics(), Cost()
        if chosen is not None and calibration not in self._statistics:
            self.collect(
                calibration,
                CalibrationOptions(source=self.questions, weighting=chosen[0], pictures=chosen[1]),
            )
        return self._statistics[calibration]

    def collect(self, calibration: str, options: CalibrationOptions) -> None:
        """Statistics by these options, from now on those of ``calibration``."""
        self._statistics[calibration] = costed(
            lambda: calibrate(self.base, self.coefficients, options, self.log, self.cache)
        )

    def row(self, method: str, bits: int, block_size: int, calibration: str) -> Row:
        """Quantize, put the weights in place, measure, and put the old ones back."""
        statistics, collecting = self.statistics(calibration)
        (tensors, size), rounding = costed(
            lambda: materialized(self._quantized(method, bits, block_size, statistics))
        )
        naive = method == "folded naively"
        with replaced(self.base, tensors):
            found = self.measure(None if naive else self.coefficients)
        return self._row(found, method, bits, block_size, calibration, size, collecting.and_then(rounding))

    def _quantized(self, method: str, bits: int, block_size: int, statistics: Statistics) -> QuantizedWeights:
        base: DecoderWeights = self.base.weights
        if method == "folded naively":
            base = fold(base, self.coefficients, "weights").weights
        name = "rtn" if method == "folded naively" else method
        # ONNX Runtime's quantizer knows 4 and 8 bits and whole powers of two; this is the same rounding.
        plain = name == "rtn" and (bits not in (4, 8) or block_size == WHOLE_ROW)
        quantizer = PlainRounding() if plain else load_quantizer(name)
        if block_size == WHOLE_ROW:
            quantizer = WholeRows(quantizer)
        return QuantizedWeights.prepared(
            base,
            quantizer,
            bits=bits,  # type: ignore[arg-type]
            block_size=block_size,
            statistics=statistics,
        )

    def _row(
        self, found: Measured, method: str, bits: int, block: int, calibration: str, size: int, cost: Cost
    ) -> Row:
        retention = gain_retention(
            self.unscaled.right[self.spatial], self.scaled.right[self.spatial], found.right[self.spatial]
        )
        kl, top1 = mean_kl(self.scaled.logits, found.logits), top1_agreement(self.scaled.logits, found.logits)
        assert retention and kl is not None and top1 is not None
        return Row(
            method=method,
            bits=bits,
            block_size=block,
            calibration=calibration,
            split=self.split,
            weight_bytes=size,
            spatial=_share(found.right[self.spatial]),
            other=_share(found.right[~self.spatial]),
            retention=(retention.value, retention.low, retention.high),
            kl=kl,
            top1=top1,
            seconds=cost.seconds,
            peak_bytes=cost.peak_bytes,
        )

    def references(self) -> list[Row]:
        """The unquantized model without and with ScAle."""
        matrices = sum(out * width for out, width, _ in self.base.spec.linears().values())
        size = 2 * (matrices + self.base.spec.vocab_size * self.base.spec.hidden_size)
        named = (("base model, float16 weights", self.unscaled), ("ScAle, float16 weights", self.scaled))
        return [self._row(found, name, 16, 0, "none", size, Cost()) for name, found in named]


class WholeRows(Method):
    """A method with one block for each row, however wide."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.calibration = method.calibration

    def prepare(self, weights: Any, statistics: Any, bits: Any, block_size: int) -> Any:
        return self.method.prepare(weights, statistics, bits, 512)

    def quantize(self, weight: Any, bits: Any, block_size: int, moments: Any = None) -> BlockMatrix:
        return self.method.quantize(weight, bits, weight.shape[1], moments)


def _share(right: NDArray[np.bool_]) -> tuple[float, float, float]:
    found = proportion(right)
    assert found is not None and found.low is not None and found.high is not None
    return found.value, found.low, found.high


SHAPES = ((8, 32), (8, 128), (4, 32), (4, 64), (4, 128), (4, WHOLE_ROW), (3, 32), (3, 128))
"""Bits and block size."""


def plans() -> list[tuple[str, int, int, str]]:
    """Method, bits, block size and calibration of every row."""
    ways = [("folded naively", "none"), *((method, "none") for method in FREE)]
    ways += [(method, calibration) for method in TUNED for calibration in list(CALIBRATIONS)[1:]]
    return [(method, bits, block, calibration) for bits, block in SHAPES for method, calibration in ways]


def shape_name(bits: int, block: int) -> str:
    """``int4 b32``."""
    return f"int{bits} {'row' if block == WHOLE_ROW else f'b{block}'}"


def long_table(rows: Sequence[Row]) -> list[str]:
    """Everything that was measured of each row, with 95 % intervals."""
    lines = [
        "| weights | method | calibration | MB | spatial | other | gain kept | KL, nats | top-1 | CPU-s | peak, GB |",
        "|---" * 11 + "|",
    ]
    for row in rows:
        shape = "float16" if row.bits == 16 else shape_name(row.bits, row.block_size)
        words = [shape, row.method, row.calibration, f"{row.weight_bytes / 1e6:.2f}"]
        words += [_interval(row.spatial), _interval(row.other), _interval(row.retention)]
        words += [_significant(row.kl), f"{row.top1:.3f}"]
        words += [f"{row.seconds:.1f}" if row.seconds else "–"]
        words += [f"{row.peak_bytes / 1e9:.2f}" if row.peak_bytes else "–"]
        lines.append(f"| {' | '.join(words)} |")
    return lines


def pivot_table(rows: Sequence[Row], cell: Callable[[Row], str]) -> list[str]:
    """One number per row and shape."""
    found = {(r.method, r.calibration, r.bits, r.block_size): cell(r) for r in rows}
    ways = list(dict.fromkeys((method, calibration) for method, _, _, calibration in plans()))
    heads = [shape_name(*shape) for shape in SHAPES]
    lines = [f"| method | calibration | {' | '.join(heads)} |", "|---" * (len(heads) + 2) + "|"]
    for method, calibration in ways:
        cells = [found.get((method, calibration, *shape), "") for shape in SHAPES]
        lines.append(f"| {method} | {calibration} | {' | '.join(cells)} |")
    return lines


def _interval(values: tuple[float, float | None, float | None]) -> str:
    value, low, high = values
    return f"{value:.3f}" if low is None or high is None else f"{value:.3f} ({low:.3f}–{high:.3f})"


def _significant(value: float) -> str:
    return f"{value:.1e}" if 0 < value < 1e-3 else f"{value:.4f}"


def write_page(rows: Sequence[Row], page: Path, model: str) -> None:
    """Put the model's tables between their marks."""
    tested, tried = ([row for row in rows if row.split == split] for split in ("test", "validation"))
    held_out = long_table(sorted(tested, key=lambda r: (-r.bits, r.block_size)))
    tables = {f"{model} test": held_out}
    if model == "tiny_vlm":
        tables = {
            "test": held_out,
            "divergence": pivot_table(tried, lambda row: _significant(row.kl)),
            "retention": pivot_table(tried, lambda row: f"{row.retention[0]:.3f}"),
        }
    text = page.read_text(encoding="utf-8")
    for name, lines in tables.items():
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, _, rest = text.partition(start)
        text = before + start + "\n".join(lines) + "\n" + end + rest.partition(end)[2]
    page.write_text(text, encoding="utf-8")


def main() -> None:
    """Measure what is missing, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--out", type=Path, required=True, help="JSON with every row; rows found in it are kept"
    )
    parser.add_argument("--model", choices=QUESTIONS, default="tiny_vlm")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--limit", type=int, default=2048)
    parser.add_argument("--only", default="", help="regular expression over 'method bits block calibration'")
    parser.add_argument("--write", type=Path, help="only put the tables into this page")
    arguments = parser.parse_args()
    kept = json.loads(arguments.out.read_text()) if arguments.out.exists() else []
    rows = [Row(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()}) for row in kept]
    if arguments.write:
        write_page(rows, arguments.write, arguments.model)
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as cache:
        bench = Bench(arguments.model, arguments.split, arguments.limit, Path(cache))
        done = {(r.method, r.bits, r.block_size, r.calibration, r.split) for r in rows}
        rows += [r for r in bench.references() if (r.method, 16, 0, "none", r.split) not in done]
        for plan in plans():
            if (*plan, arguments.split) in done or not re.search(arguments.only, " ".join(map(str, plan))):
                continue
            row = bench.row(*plan)
            rows.append(row)
            shape = shape_name(row.bits, row.block_size)
            figures = f"spatial {row.spatial[0]:.3f} other {row.other[0]:.3f} kept {row.retention[0]:.3f}"
            print(f"{row.method:15} {shape:9} {row.calibration:18} {figures} KL {row.kl:.5f}", flush=True)
            arguments.out.write_text(json.dumps([asdict(r) for r in rows], indent=1))


if __name__ == "__main__":
    main()
