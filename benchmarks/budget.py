"""Is the search under a budget better than other choices of the same size? The table of ``docs/quantization.md``.

Each choice is measured on the held-out test split, on three seeds of scalars (those that the model ships with, and two
that ``scale-export train`` makes and this script keeps), by KL from the unquantized ScAle model at the positions that
predict the answer, and by spatial accuracy. The search itself sees the calibration split only.

- **uniform**: the same bits for every matrix. 5 and 6 bits are no format of ours, they set the sizes; int4 in blocks of
  16 is one, and takes what 5 bits in blocks of 32 take.
- **random order**: the same search with its order shuffled, stopped at the same bytes; the mean of several draws.
- **k_quant_mixed**: the named mix, at its own size.

A difference is paired by question: the search less the other, the mean over seeds (and draws) of each question, and a
95 % interval over questions. Intervals of one seed's accuracy are Tango's, but where draws are averaged.

    python benchmarks/budget.py --out /tmp/budget.json
    python benchmarks/budget.py --out /tmp/budget.json --write docs/quantization.md
    python benchmarks/budget.py --model examples/small_vlm --methods gptq --limit 512 --out /tmp/small.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from answering import Measured, PlainRounding, answers, joined, replaced, untie
from numpy.typing import NDArray
from scipy.special import log_softmax
from torch import Tensor

from scale_export.coefficients.file import load_coefficients
from scale_export.core.intervals import paired_difference
from scale_export.core.progress import WorkLog
from scale_export.model.base import BaseModel, open_base
from scale_export.model.hooks import attach
from scale_export.plan.bits import k_quant_mixed
from scale_export.plan.make import make_plan
from scale_export.plan.options import ExportOptions
from scale_export.plan.quantizer_choice import trained_on_set
from scale_export.plan.record import Plan
from scale_export.plan.targets import load_target
from scale_export.plan.weights import plan_statistics
from scale_export.quantize import QuantizedWeights, load_quantizer
from scale_export.questions import load_questions
from scale_export.search.budget import narrowing_order
from scale_export.training.examples import encode_examples, whole_sequences

TINY = Path(__file__).parents[1] / "examples/tiny_vlm"
BATCH = 256
BLOCK = 32
SEEDS = (0, 1, 2)
DRAWS = 3
METHODS = ("rtn", "gptq")
QUIET = WorkLog(quiet=True)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Bits of every matrix, at one block size."""

    bits: Mapping[str, int]
    block_size: int = BLOCK


@dataclass(frozen=True, kw_only=True)
class Found:
    """One choice on every question: spatial ones right ``[S]`` (a share where draws are averaged), KL ``[N]``."""

    size: float
    right: NDArray[np.float64]
    kl: NDArray[np.float64]

    @classmethod
    def mean(cls, several: Sequence[Found]) -> Found:
        """Of draws of the same kind."""
        return cls(
            size=float(np.mean([one.size for one in several])),
            right=np.mean([one.right for one in several], axis=0),
            kl=np.mean([one.kl for one in several], axis=0),
        )


@dataclass(frozen=True, kw_only=True)
class Row:
    """The search against another choice of its size, over all seeds; differences are the search less the other.

    ``spatial_by_seed`` holds (difference, low, high) of each seed.
    """

    method: str
    other: str
    search_bytes: float
    other_bytes: float
    search_kl: float
    other_kl: float
    kl_difference: tuple[float, float, float]
    search_spatial: float
    other_spatial: float
    spatial_difference: tuple[float, float, float]
    kl_by_seed: tuple[float, ...]
    spatial_by_seed: tuple[tuple[float, float, float], ...]


class Bench:
    """A model, its test questions, and one seed's scalars."""

    def __init__(self, base: BaseModel, coefficients: Path, limit: int, cache: Path) -> None:
        self.base, self.cache = base, cache
        self.coefficients = load_coefficients(coefficients)
        data = trained_on_set(self.coefficients)
        if data is None:
            raise SystemExit(f"{coefficients} names no question set that is here")
        questions = load_questions(data, "test", limit=limit)
        self.spatial = np.array([question.kind == "spatial" for question in questions])
        examples = encode_examples(base.model, base.processor, questions, lambda *_: None, "")
        pad = base.processor.tokenizer.pad_token_id
        self.batches = [whole_sequences(examples[i : i + BATCH], pad) for i in range(0, len(examples), BATCH)]
        places = [np.nonzero((batch.targets >= 0).numpy())[0] for batch in self.batches]
        self.rows = np.concatenate([place + BATCH * number for number, place in enumerate(places)])
        self.reference = self.measure({})

    @torch.no_grad()
    def measure(self, tensors: dict[str, Tensor]) -> Measured:
        """The scaled model with these matrices in place of its own."""
        found = []
        with replaced(self.base, tensors), attach(self.base.model, self.coefficients) as handle:
            for batch in self.batches:
                handle.gate_mask = batch.gate
                found.append(answers(self.base.model, batch))
        return joined(found)

    def found(self, tensors: dict[str, Tensor], size: int) -> Found:
        """What a choice comes to."""
        measured = self.measure(tensors)
        reference, other = (log_softmax(m.logits.astype(np.float64), -1) for m in (self.reference, measured))
        rows = (np.exp(reference) * (reference - other)).sum(-1)
        kl = np.bincount(self.rows, rows) / np.bincount(self.rows)
        return Found(size=size, right=measured.right[self.spatial].astype(float), kl=kl)

    def plan(self, method: str) -> Plan:
        """The export whose decoder is searched."""
        options = ExportOptions(precision="int4", quantizer=method, block_size=BLOCK, cache=self.cache)
        return make_plan(self.coefficients, self.base, load_target("cpu"), options)


class Matrices:
    """Every matrix of a method in every width, made once."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.method = plan, load_quantizer(str(plan.quantizer))
        self.statistics = plan_statistics(plan, QUIET)
        self.made: dict[tuple[str, int, int], tuple[Tensor, int]] = {}

    def of(self, choice: Choice) -> tuple[dict[str, Tensor], int]:
        """Values by name, and the bytes of codes and float32 scales."""
        made = {name: self._one(name, bits, choice.block_size) for name, bits in choice.bits.items()}
        return {name: value for name, (value, _) in made.items()}, sum(size for _, size in made.values())

    def size(self, choice: Choice) -> int:
        """The bytes alone."""
        return self.of(choice)[1]

    def _one(self, name: str, bits: int, block_size: int) -> tuple[Tensor, int]:
        key = (name, bits, block_size)
        if key not in self.made:
            # ONNX Runtime's quantizer knows 4 and 8 bits; this is the same rounding.
            method = PlainRounding() if self.plan.quantizer == "rtn" and bits not in (4, 8) else self.method
            weights = QuantizedWeights.prepared(
                self.plan.base.weights, method, bits=4, block_size=block_size, statistics=self.statistics
            )
            block = replace(weights, bits=bits).block(name)  # type: ignore[arg-type]
            size = -(-block.integers().size * bits // 8) + block.scales.nbytes
            self.made[key] = torch.from_numpy(block.dequantize()), size
        return self.made[key]


def narrowed(order: Sequence[str], matrices: Matrices, limit: float) -> Choice:
    """The first matrices of an order at 4 bits, as few as bring the bytes to the limit."""
    for count in range(len(order) + 1):
        choice = Choice(bits={name: 4 if name in order[:count] else 8 for name in order})
        if matrices.size(choice) <= limit:
            return choice
    raise ValueError(f"4 bits everywhere take more than {limit}")


def one_seed(bench: Bench, method: str, seed: int) -> dict[str, tuple[Found, Found]]:
    """The search and each other choice, by the other's name."""
    plan = bench.plan(method)
    order = narrowing_order(plan, plan_statistics(plan, QUIET), QUIET)
    matrices, rng = Matrices(plan), np.random.default_rng(seed)

    def found(choice: Choice) -> Found:
        return bench.found(*matrices.of(choice))

    pairs: dict[str, tuple[Found, Found]] = {}
    for bits in (6, 5):
        uniform = Choice(bits=dict.fromkeys(order, bits))
        limit = matrices.size(uniform)
        searched = found(narrowed(order, matrices, limit))
        pairs[f"uniform {bits} bits"] = searched, found(uniform)
        if bits == 5:
            pairs["uniform int4, blocks of 16"] = (
                searched,
                found(Choice(bits=dict.fromkeys(order, 4), block_size=16)),
            )
        draws = [narrowed(list(rng.permutation(order)), matrices, limit) for _ in range(DRAWS)]
        pairs[f"random order, {bits} bits' size"] = searched, Found.mean([found(draw) for draw in draws])
    mix = Choice(bits={**k_quant_mixed(plan.base.spec), "embedding": 4})
    pairs["k_quant_mixed"] = found(narrowed(order, matrices, matrices.size(mix))), found(mix)
    return pairs


def row(method: str, other: str, pairs: Sequence[tuple[Found, Found]]) -> Row:
    """One comparison over all seeds."""
    search, others = Found.mean([pair[0] for pair in pairs]), Found.mean([pair[1] for pair in pairs])
    return Row(
        method=method,
        other=other,
        search_bytes=search.size,
        other_bytes=others.size,
        search_kl=float(search.kl.mean()),
        other_kl=float(others.kl.mean()),
        kl_difference=_interval(search.kl - others.kl),
        search_spatial=float(search.right.mean()),
        other_spatial=float(others.right.mean()),
        spatial_difference=_interval(search.right - others.right),
        kl_by_seed=tuple(float((a.kl - b.kl).mean()) for a, b in pairs),
        spatial_by_seed=tuple(_paired(a.right, b.right) for a, b in pairs),
    )


def _interval(differences: NDArray[np.float64]) -> tuple[float, float, float]:
    """Mean and 95 % interval over questions."""
    mean = float(differences.mean())
    reach = 1.96 * float(differences.std(ddof=1)) / len(differences) ** 0.5
    return mean, mean - reach, mean + reach


def _paired(a: NDArray[np.float64], b: NDArray[np.float64]) -> tuple[float, float, float]:
    if not np.isin(b, (0, 1)).all():  # a mean of draws
        return _interval(a - b)
    found = paired_difference(a > 0, b > 0)
    assert found is not None and found.low is not None and found.high is not None
    return found.value, found.low, found.high


def coefficient_files(model: Path, cache: Path) -> list[Path]:
    """The shipped scalars and two more seeds of the same recipe: shipped too, or trained where not kept yet."""
    shipped = model / "spatial.pt"
    data = str(load_coefficients(shipped).training["data"])
    files = [shipped]
    for seed in SEEDS[1:]:
        file = model / f"spatial_seed{seed}.pt"
        if not file.exists():
            file = cache / f"{model.resolve().name}-seed{seed}.pt"
        if not file.exists():
            command = [sys.executable, "-m", "scale_export", "train", str(model / "model"), "--data", data]
            subprocess.run([*command, "--out", str(file), "--seed", str(seed)], check=True)
        files.append(file)
    return files


def table(rows: Sequence[Row]) -> list[str]:
    """The search against each other choice; negative KL differences and positive accuracy are in its favour."""
    lines = [
        "| method | against | MB, search / other | KL, search / other | KL difference | spatial, search / other "
        "| difference, points | each seed, points |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        seeds = ", ".join(
            f"{100 * d:+.1f} ({100 * low:+.1f} … {100 * high:+.1f})" for d, low, high in r.spatial_by_seed
        )
        kl, low, high = (f"{1e4 * value:+.1f}" for value in r.kl_difference)
        points, least, most = (f"{100 * value:+.2f}" for value in r.spatial_difference)
        lines.append(
            f"| {r.method} | {r.other} | {r.search_bytes / 1e6:.3f} / {r.other_bytes / 1e6:.3f} "
            f"| {1e4 * r.search_kl:.1f} / {1e4 * r.other_kl:.1f} | {kl} ({low} … {high}) "
            f"| {r.search_spatial:.3f} / {r.other_spatial:.3f} | {points} ({least} … {most}) | {seeds} |"
        )
    return lines


def verdicts(rows: Sequence[Row]) -> list[str]:
    """On how many seeds the search's divergence is smaller, and its accuracy is shown to be higher or lower."""
    lines = []
    for r in rows:
        less = sum(difference < 0 for difference in r.kl_by_seed)
        higher = sum(low > 0 for _, low, _ in r.spatial_by_seed)
        lower = sum(high < 0 for _, _, high in r.spatial_by_seed)
        lines.append(
            f"{r.method} against {r.other}: less KL on {less} of {len(r.kl_by_seed)} seeds; spatial accuracy higher on "
            f"{higher}, lower on {lower}, not to be told apart on {len(r.spatial_by_seed) - higher - lower}"
        )
    return lines


def write_page(rows: Sequence[Row], page: Path, model: str) -> None:
    """Put the table between the model's marks."""
    start, end = f"<!-- budget of {model} -->\n", f"<!-- end of budget of {model} -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(start)
    text = before + start + "\n".join(table(rows)) + "\n" + end + rest.partition(end)[2]
    page.write_text(text, encoding="utf-8")


def _read(file: Path) -> list[Row]:
    def frozen(value: Any) -> Any:
        return tuple(frozen(part) for part in value) if isinstance(value, list) else value

    return [Row(**{key: frozen(value) for key, value in r.items()}) for r in json.loads(file.read_text())]


def main() -> None:
    """Measure, or write what was measured into the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=TINY, help="a folder with model/ and spatial.pt")
    parser.add_argument("--methods", nargs="+", default=METHODS, help="quantizers")
    parser.add_argument("--out", type=Path, required=True, help="JSON with every comparison")
    parser.add_argument("--limit", type=int, default=2048, help="at most so many test questions")
    parser.add_argument("--write", type=Path, help="only put the table into this page")
    arguments = parser.parse_args()
    if arguments.write:
        write_page(_read(arguments.out), arguments.write, arguments.model.resolve().name)
        return
    torch.set_num_threads(1)
    cache = Path(tempfile.gettempdir()) / "scale-export-bench"
    cache.mkdir(exist_ok=True)
    base = open_base(str(arguments.model / "model"))
    untie(base.model)
    found: dict[tuple[str, str], list[tuple[Found, Found]]] = {}
    for seed, file in zip(SEEDS, coefficient_files(arguments.model, cache), strict=True):
        started = time.process_time()
        bench = Bench(base, file, arguments.limit, cache)
        for method in arguments.methods:
            for other, pair in one_seed(bench, method, seed).items():
                found.setdefault((method, other), []).append(pair)
        print(f"seed {seed}: {time.process_time() - started:.0f} CPU-seconds", flush=True)
    rows = [row(method, other, pairs) for (method, other), pairs in found.items()]
    arguments.out.write_text(json.dumps([asdict(r) for r in rows], indent=1))
    print("\n".join([*table(rows), *verdicts(rows)]))


if __name__ == "__main__":
    main()
