"""Choosing 4 or 8 bits for every matrix, under a budget of bytes, of loss or of decoding speed.

1. All matrices begin at 8 bits. Each alone goes to 4, and the divergence from the unquantized ScAle model is measured
   over the answers' positions of the calibration questions, on the portable decoder with dequantized weights.
2. They go to 4 bits for good in the order of divergence per byte saved (greedy: interactions are not searched).
3. Along the way divergence and accuracy are measured again at up to ``CHECKPOINTS`` places, the last of them where
   everything has 4 bits. A budget of bytes stops at the first size within it, one of loss at the last place within it.
4. A budget of speed leaves the embedding at 8 bits, since a token reads one row of it, and stops where ``speed`` says.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from scale_export.core.compare import within_limit
from scale_export.core.errors import UserError
from scale_export.core.intervals import mean_kl
from scale_export.core.progress import WorkLog
from scale_export.core.records import Float32
from scale_export.device.engine import Scalars
from scale_export.model.blocks import Bits
from scale_export.model.engine import ReferenceEngine
from scale_export.model.weights import DecoderWeights
from scale_export.plan.bits import fixed_bits
from scale_export.plan.estimate import reach, shares_table, stored_bytes
from scale_export.plan.make import with_bits
from scale_export.plan.portable import generator_of
from scale_export.plan.quantizer_choice import trained_on_set
from scale_export.plan.record import Plan
from scale_export.quantize import CalibrationOptions, QuantizedWeights, load_quantizer
from scale_export.quantize.calibration import StoredStatistics
from scale_export.quantize.example import question_examples

from .speed import SpeedChoice, choose_speed

CHECKPOINTS = 16
QUESTIONS = 64
"""Of the calibration split: every matrix is measured on all of them."""
_UNITS = {"kb": 1e3, "mb": 1e6, "gb": 1e9}


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """``size``: bytes of the decoder's codes and scales; ``loss``: accuracy, as a share; ``kl``: nats;
    ``decode``: tokens per second on this machine."""

    kind: Literal["size", "loss", "kl", "decode"]
    limit: float


def parse_budget(text: str) -> Budget:
    """``size=1.2MB``, ``decode=30tok/s``, ``loss<=1pp`` or ``kl<=0.01``.

    Raises:
        UserError: anything else.
    """
    words = re.sub(r"\s", "", text.lower())
    if found := re.fullmatch(r"size(?:=|<=)(\d+(?:\.\d+)?)(kb|mb|gb)", words):
        return Budget(kind="size", limit=float(found[1]) * _UNITS[found[2]])
    if found := re.fullmatch(r"decode(?:=|>=)(\d+(?:\.\d+)?)tok/s", words):
        return Budget(kind="decode", limit=_above_zero(text, found[1]))
    if found := re.fullmatch(r"loss<=(\d+(?:\.\d+)?)pp", words):
        if float(found[1]) > 100:
            raise UserError(f"--budget {text!r} is refused: accuracy has 100 pp to lose; give fewer")
        return Budget(kind="loss", limit=float(found[1]) / 100)
    if found := re.fullmatch(r"kl<=(\d+(?:\.\d+)?)", words):
        return Budget(kind="kl", limit=_above_zero(text, found[1]))
    raise UserError(f"--budget {text!r} is refused: write size=1.2MB, decode=30tok/s, loss<=1pp or kl<=0.01")


def _above_zero(text: str, number: str) -> float:
    value = float(number)
    if not value > 0:
        raise UserError(f"--budget {text!r} is refused: give a number above 0")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One place on the frontier: the first ``narrow`` matrices of the order at 4 bits."""

    narrow: int
    size: int
    kl: float
    accuracy: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BitsChoice:
    """What the search came to: bits of every matrix, what each cost alone, and the frontier that was measured."""

    bits: Mapping[str, Bits]
    sensitivity: Mapping[str, float]
    frontier: Sequence[Point]
    chosen: Point
    reference_accuracy: float
    speed: SpeedChoice | None = None

    def sentence(self, budget: str) -> str:
        """What was chosen, and what it measured on the questions of the search."""
        narrow = sum(bits == 4 for bits in self.bits.values())
        return (
            f"Under --budget {budget}, {narrow} of {len(self.bits)} matrices have 4 bits and the rest 8: "
            f"{self.chosen.size:,} bytes of codes and scales, KL {self.chosen.kl:.2g} from the unquantized model, "
            f"{self.chosen.accuracy:.1%} right where it has {self.reference_accuracy:.1%}."
        )

    def write(self, path: Path) -> None:
        """A bits plan that repeats the choice, with what was measured in comments."""
        lines = [f"# decode: {line}" for line in ([] if self.speed is None else self.speed.lines())]
        lines += [
            f"# {p.narrow} of {len(self.bits)} matrices at 4 bits: {p.size} bytes, KL {p.kl:.3g}, accuracy "
            f"{p.accuracy:.3f} (unquantized {self.reference_accuracy:.3f}){' <- chosen' if p == self.chosen else ''}"
            for p in self.frontier
        ]
        rows = [
            f'"{name}" = {self.bits[name]}  # alone at 4 bits: KL {kl:.3g}'
            for name, kl in self.sensitivity.items()
        ]
        rows += [f'"{name}" = {bits}' for name, bits in self.bits.items() if name not in self.sensitivity]
        path.write_text("\n".join([*lines, "[bits]", *rows, ""]), encoding="utf-8")


def check_reach(plan: Plan, budget: Budget) -> None:
    """Refuse, before anything is measured, float weights, no questions to measure on, and a size below all 4 bits.

    Raises:
        UserError: the search couldn't meet the budget.
    """
    if plan.quantizer is None:
        raise UserError(
            f"--budget chooses between int4 and int8, and weights are {plan.precision}: name --precision int4"
        )
    if (plan.questions or _questions(plan)) is None:
        raise UserError(
            "--budget measures on calibration questions, and there are none: name a set with --calib"
        )
    least, most = reach(plan)
    if budget.kind == "size" and budget.limit < least:
        raise UserError(
            f"--budget size={budget.limit:g} bytes is refused: codes and scales take {least:,} bytes where every "
            f"matrix has 4 bits, and {most:,} at 8; give a size between them"
        )


def narrowing_order(plan: Plan, statistics: StoredStatistics | None, log: WorkLog) -> list[str]:
    """Every matrix in the order of rule 2; raises UserError as ``search_bits``."""
    bench = _Bench(plan, statistics)
    return list(bench.sensitivity(bench.free, log))


Timer = Callable[[Plan, StoredStatistics | None], float]
"""Seconds per token of a plan's decoder on this machine."""


def search_bits(
    plan: Plan,
    statistics: StoredStatistics | None,
    budget: Budget,
    log: WorkLog,
    timer: Timer | None = None,
) -> BitsChoice:
    """Choose bits for every matrix of a quantized plan; a budget of speed needs a ``timer``.

    ``statistics`` are those that ``plan_statistics`` collected for the plan.

    Raises:
        UserError: float weights, no questions to measure on, or a budget that nothing meets.
    """
    bench = _Bench(plan, statistics)
    free = bench.free
    names = [name for name in free if budget.kind != "decode" or name != "embedding"]
    sensitivity = bench.sensitivity(names, log)
    order = list(sensitivity)
    sizes = [bench.size]
    for name in order:
        sizes.append(sizes[-1] - bench.saved(name))
    speed = None
    if budget.kind == "decode":
        assert timer is not None, "a budget of speed is timed"
        read = [size - bench.bytes_of("embedding", 8) for size in sizes]
        speed = choose_speed(
            budget.limit, read, lambda n: timer(_narrowed(plan, free, order[:n]), statistics)
        )
        fitting: int | None = speed.chosen.narrow
    else:
        fitting = next((count for count, size in enumerate(sizes) if size <= budget.limit), None)
    places = {round(place) for place in np.linspace(0, len(order), CHECKPOINTS)}
    if budget.kind in ("size", "decode") and fitting is not None:
        places.add(fitting)
    frontier = []
    for count in sorted(places):
        bench.narrow(order[:count])
        kl, accuracy = bench.measure()
        frontier.append(Point(narrow=count, size=sizes[count], kl=kl, accuracy=accuracy))
        log.advance("frontier", len(frontier), len(places))
    chosen = _chosen(budget, frontier, fitting, bench.reference_accuracy)
    return BitsChoice(
        bits=_bits(free, order[: chosen.narrow]),
        sensitivity=sensitivity,
        frontier=frontier,
        chosen=chosen,
        reference_accuracy=bench.reference_accuracy,
        speed=speed,
    )


def _bits(names: Sequence[str], narrow: Collection[str]) -> dict[str, Bits]:
    return {name: 4 if name in narrow else 8 for name in names}


def _narrowed(plan: Plan, names: Sequence[str], narrow: Collection[str]) -> Plan:
    return with_bits(plan, _bits(names, narrow), "--budget")


def _chosen(budget: Budget, frontier: Sequence[Point], fitting: int | None, reference: float) -> Point:
    """Rule 3."""
    if budget.kind in ("size", "decode"):
        within = [point for point in frontier if point.narrow == fitting]
        least = f"{frontier[-1].size:,} bytes is the least that 4 bits reach"
    elif budget.kind == "kl":
        within = [point for point in frontier if within_limit(point.kl, budget.limit)]
        least = f"8 bits everywhere come to KL {frontier[0].kl:.3g}"
    else:
        within = [point for point in frontier if reference - point.accuracy <= budget.limit]
        least = f"8 bits everywhere lose {reference - frontier[0].accuracy:.2%}"
    if not within:
        raise UserError(
            f"no choice of bits meets --budget {budget.kind} {budget.limit:g}: {least}; give a larger budget"
        )
    return within[-1]


def _questions(plan: Plan) -> CalibrationOptions | None:
    """What to measure on where calibration itself is not wanted."""
    trained_on = trained_on_set(plan.coefficients)
    return None if trained_on is None else CalibrationOptions(source=trained_on)


class _Bench:
    """The portable decoder with 8-bit weights, whose matrices can be swapped for their 4-bit form."""

    def __init__(self, plan: Plan, statistics: StoredStatistics | None) -> None:
        check_reach(plan, Budget(kind="kl", limit=math.inf))
        options = plan.questions or _questions(plan)
        assert options is not None, "the check said that there are questions"
        few = replace(options, limit=min(options.limit, QUESTIONS))
        self.plan = plan
        self.examples = question_examples(plan.base, few.source, limit=few.limit, pictures=few.pictures)
        exact = self._engine(plan.base.weights)
        self.reference = self._logits(exact)
        self.reference_accuracy = float(self._right(self.reference).mean())
        assert plan.quantizer is not None, "the check said that weights are integers"
        weights = QuantizedWeights.prepared(
            plan.base.weights,
            load_quantizer(plan.quantizer),
            bits=plan.bits,
            block_size=plan.block_size,
            statistics=statistics,
        )
        self.weights: dict[int, QuantizedWeights] = {4: replace(weights, bits=4), 8: replace(weights, bits=8)}
        self.engine = self._engine(self.weights[8])
        self.wide = dict(self.engine.tensors)
        self.shared = shares_table(plan)
        self.size = sum(self.bytes_of(name, 8) for name in self.wide)

    def bytes_of(self, name: str, bits: int) -> int:
        """Of a matrix's codes and scales at that width."""
        return stored_bytes(self.plan, name, bits, shared=self.shared)

    def saved(self, name: str) -> int:
        """Bytes less at 4 bits."""
        return self.bytes_of(name, 8) - self.bytes_of(name, 4)

    def narrow(self, names: Sequence[str]) -> None:
        """Put 4-bit values in place."""
        for name in names:
            if self.engine.tensors[name] is self.wide[name]:
                weights = self.weights[4]
                for each in self.together(name):
                    value = weights.embedding() if each == "embedding" else weights.matrix(each)
                    self.engine.swap(each, value)

    def widen(self, names: Sequence[str]) -> None:
        """Put the 8-bit values back."""
        for name in names:
            for each in self.together(name):
                self.engine.swap(each, self.wide[each])

    def together(self, name: str) -> tuple[str, ...]:
        """What is narrow where that matrix is: a table that is the output head follows it."""
        return (name, "embedding") if self.shared and name == "lm_head" else (name,)

    @property
    def free(self) -> list[str]:
        """The matrices whose bits are chosen: neither the target's own choice nor what follows another one."""
        follows = {"embedding"} if self.shared else set()
        return [n for n in self.wide if n not in fixed_bits(self.plan.target) and n not in follows]

    def sensitivity(self, names: Sequence[str], log: WorkLog) -> dict[str, float]:
        """What each matrix alone costs at 4 bits (rule 1), in the order of rule 2."""
        found = {}
        for done, name in enumerate(names, 1):
            self.narrow([name])
            kl = self.measure()[0]
            found[name] = kl if math.isfinite(kl) else math.inf  # sorted last, where NaN has no place
            self.widen([name])
            log.advance("sensitivity", done, len(names))
        return {name: found[name] for name in sorted(names, key=lambda name: found[name] / self.saved(name))}

    def measure(self) -> tuple[float, float]:
        """KL in nats from the unquantized model, and accuracy."""
        logits = self._logits(self.engine)
        kl = mean_kl(np.concatenate(self.reference), np.concatenate(logits))
        assert kl is not None, "there are questions"
        return kl, float(self._right(logits).mean())

    def _right(self, logits: Sequence[Float32]) -> NDArray[np.bool_]:
        pairs = zip(logits, self.examples, strict=True)
        return np.array([tuple(rows.argmax(-1)) == example.target for rows, example in pairs])

    def _engine(self, weights: DecoderWeights) -> ReferenceEngine:
        plan, base = self.plan, self.plan.base
        attn, mlp = plan.coefficients.dense(base.spec.num_layers, base.spec.num_heads)
        return ReferenceEngine(
            weights,
            scaled=None,
            vision=base.vision,
            image_token_id=base.image_token_id,
            gate=(plan.coefficients.scope, Scalars(attn=attn, mlp=mlp)),
        )

    def _logits(self, engine: ReferenceEngine) -> list[Float32]:
        generator = replace(generator_of(self.plan, engine), fold="gate")
        return [generator.forced_logits(e.inputs, e.target[:-1]) for e in self.examples]
