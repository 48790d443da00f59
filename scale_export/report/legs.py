"""The parity legs as the report page shows them: verdicts, rows and limits in words, errors for the chart."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scale_export.charts.errors import LegError
from scale_export.charts.style import short_number

from .numbers import number, percent, yes

Json = Mapping[str, Any]

LEG_MEANINGS: Mapping[str, str] = {
    "fold": "PyTorch with ScAle hooks → portable decoder, float32",
    "lowering": "portable decoder → emitted graph, unquantized",
    "quantization": "unquantized → quantized graph, strictest kernels",
    "runtime": "strictest kernels → those of this machine",
    "preprocessing": "Hugging Face's processor → the package's own",
    "task": "PyTorch ScAle's answers → the export's",
}
CHECKPOINT_MEANINGS: Mapping[str, str] = {
    "tensors": "exact products, and the base's bytes → the tensors as stored",
    "storage": "PyTorch with ScAle hooks → the model that loads from the checkpoint, float32",
}
"""The legs that only folded checkpoints have."""
VERDICTS: Mapping[bool | None, str] = {True: "passed", False: "failed", None: "no limit"}
NOT_CHECKED = "not checked"
DASH = "–"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One row of a leg: what was measured, its limit in words, and the error for the chart, if any."""

    label: str
    value: str
    limit: str = DASH
    error: LegError | None = None

    @property
    def beyond(self) -> bool:
        """Whether this is what made the leg fail."""
        return self.error.passed is False if self.error else self.value != self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class LegView:
    """One leg as the page shows it; ``reason`` says why it was not checked."""

    name: str
    meaning: str
    verdict: str
    reason: str
    cases: str
    metrics: tuple[Metric, ...]


def headline(parity: Json, views: Sequence[LegView]) -> str:
    """The verdict as one sentence, with the legs that failed or did not run."""
    failed = [view.name for view in views if view.verdict == "failed"]
    unchecked = [view.name for view in views if view.verdict == NOT_CHECKED]
    passed = sum(view.verdict == "passed" for view in views)
    left_out = f" Not checked: {', '.join(unchecked)}." if unchecked else ""
    if failed:
        beyond = "leg is beyond its" if len(failed) == 1 else "legs are beyond their"
        return f"The {' and '.join(failed)} {beyond} limits.{left_out}"
    if not parity["passed"]:
        return f"No leg is beyond its limit, but the checks as a whole did not pass.{left_out}"
    whole = "leg is within its" if passed == 1 else "legs are within their"
    return f"{passed} {whole} limits.{left_out}"


def leg_views(parity: Json) -> list[LegView]:
    """The legs in the order of the pipeline, then whatever else ``parity`` holds."""
    legs: Mapping[str, Json | None] = parity["legs"]
    reasons = dict(_reason(line) for line in parity["not_checked"])
    names = dict.fromkeys((*LEG_MEANINGS, *legs))
    return [_leg_view(name, legs.get(name), reasons.get(name, "")) for name in names]


def _reason(line: str) -> tuple[str, str]:
    leg, _, reason = line.partition(":")
    return leg.strip(), reason.strip()


def _leg_view(name: str, leg: Json | None, reason: str) -> LegView:
    meaning = LEG_MEANINGS.get(name) or CHECKPOINT_MEANINGS.get(name, "")
    if leg is None:
        error = LegError(leg=name, metric="", value=None, limit=None)
        missing = Metric(label=DASH, value=NOT_CHECKED, error=error)
        return LegView(
            name=name, meaning=meaning, verdict=NOT_CHECKED, reason=reason, cases=DASH, metrics=(missing,)
        )
    return LegView(
        name=name, meaning=meaning, verdict=VERDICTS[leg["passed"]], reason=reason,
        cases=_cases(leg), metrics=tuple(_metrics(name, leg)),
    )  # fmt: skip


def _cases(leg: Json) -> str:
    """On how much a leg was measured; the distribution legs count the answers' positions."""
    cases = f"{number(leg.get('cases'))} cases"
    return f"{cases}, {number(leg['steps'])} answer positions" if "steps" in leg else cases


def _errors(name: str, leg: Json) -> Iterator[Metric]:
    """The largest error, and where products round both sides that of each on its own."""
    value, limit = leg.get("value"), leg.get("limit")
    if value is None and leg["passed"] is False:
        value = math.inf
    yield _at_most(name, leg["metric"], value, limit)
    if "products" in leg:
        own = leg["products"]
        label = f"each of {number(own['matrices'])} rounded products, {own['metric']}"
        yield _at_most(name, label, own["value"], own["limit"])


def _metrics(name: str, leg: Json) -> Iterator[Metric]:
    """The rows of a leg, by the fields that it has."""
    limits: Json = leg.get("limits") or {}
    if "metric" in leg:
        yield from _errors(name, leg)
    if "untouched_identical" in leg:
        yield Metric(label="headers identical to the base's", value=yes(leg["layout_identical"]), limit="yes")
        label = f"SHA-256 unchanged, {number(leg['untouched'])} tensors that no scalar touches"
        yield Metric(label=label, value=yes(leg["untouched_identical"]), limit="yes")
    if "ids_identical" in leg:
        yield Metric(label="token ids identical", value=yes(leg["ids_identical"]), limit="yes")
    if "kl" in leg:
        yield _at_most(name, "mean KL, nats", leg["kl"], limits.get("kl"))
    if "top1_agreement" in leg:
        yield _at_least(leg, "top1_agreement", name=name, label="top-1 agreement", lost="top-1 changed")
    if "codes_identical" in leg:
        label = f"integer codes unchanged by folding, {number(leg.get('folded_matrices'))} matrices"
        yield Metric(label=label, value=yes(leg["codes_identical"]), limit="yes")
    if "agreement_outside_near_ties" in leg:
        key, label = "agreement_outside_near_ties", "same answers, near-ties aside"
        yield _at_least(leg, key, name=name, label=label, lost="answers changed")
    if "gain_retention" in leg:
        yield _at_least(leg, "gain_retention", name=name, label="gain retention", lost="gain lost")
    if limits.get("equivalence_margin") is not None:
        for kind in ("all", "spatial"):
            yield _within_margin(name, kind, leg["equivalence"][kind], limits["equivalence_margin"])
    if leg.get("near_ties") is not None and leg.get("cases"):
        yield _at_most(name, "share of near-ties", leg["near_ties"] / leg["cases"], limits.get("near_ties"))


def _at_most(name: str, label: str, value: float | None, limit: float | None) -> Metric:
    return Metric(
        label=label,
        value=NOT_CHECKED if value is None else short_number(value),
        limit="no limit" if limit is None else f"≤ {short_number(limit)}",
        error=LegError(leg=name, metric=label, value=value, limit=limit),
    )


def _within_margin(name: str, kind: str, test: Json | None, margin: float) -> Metric:
    """The margin that two one-sided tests show, against the stated one."""
    return _at_most(
        name, f"shown equally accurate within, {kind}", None if test is None else test["within"], margin
    )


def _at_least(leg: Json, key: str, *, name: str, label: str, lost: str) -> Metric:
    """A share that should be 1: the chart shows what is missing from it, called ``lost``."""
    value, limit = leg[key], (leg.get("limits") or {}).get(key)
    missing = None if value is None else 1 - value
    return Metric(
        label=label,
        value=NOT_CHECKED if value is None else percent(value),
        limit="no limit" if limit is None else f"≥ {100 * limit:.5g} %",
        error=LegError(leg=name, metric=lost, value=missing, limit=None if limit is None else 1 - limit),
    )
