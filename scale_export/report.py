"""The report page of a package: one HTML file that needs nothing else, with everything that parity.json says.

Rules:
    1. The page takes nothing from a network and runs no script; its own policy forbids both.
    2. The same data give the same bytes: no time of day and no duration stands on the page.
    3. What was not measured is said in words, never as a number.
    4. Every text from outside is escaped; only our own drawings are taken as markup.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .draw import (
    AccuracyBar,
    FrontierPoint,
    LegError,
    Values,
    accuracy_bars,
    frontier_chart,
    heat_map,
    leg_chart,
    short_number,
    to_svg,
)

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
MODEL_NAMES: Mapping[str, str] = {"base": "base model", "scale": "PyTorch ScAle", "export": "export"}
VERDICTS: Mapping[bool | None, str] = {True: "passed", False: "failed", None: "no limit"}
NOT_CHECKED = "not checked"
DASH = "–"


@dataclass(frozen=True, slots=True, kw_only=True)
class DifferingQuestion:
    """A question with different answers of the export and PyTorch ScAle; ``image_png`` is a file's bytes."""

    prompt: str
    image_png: bytes | None
    truth: str
    base: str
    scale: str
    export: str
    near_tie: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportData:
    """All that the page shows.

    Attributes:
        name: the package's name.
        facts: label → value, in the order of the page.
        decisions: the plan's sentences on what was chosen and why.
        parity: the object of ``parity.json`` (contract C7).
        attn_scale: ``[L, H]``, the scalars of every layer, ones where a layer is not scaled.
        mlp_scale: ``[L]``, the same for the MLPs.
        scope: ``last`` or ``all``.
        sizes: (file, bytes) of the package so far.
        costs: (what, how much) of one token, from shapes alone.
        differing: the questions to show, of ``differing_total`` that differ.
        versions: library → version.
        frontier: what a search under a budget measured, by size; empty without one.
        frontier_reference: the unquantized model's accuracy on the same questions.
        frontier_words: what is to be said of the choice, a sentence each.
    """

    name: str
    facts: Mapping[str, str]
    decisions: tuple[str, ...]
    parity: Json
    attn_scale: Values
    mlp_scale: Values
    scope: str
    sizes: tuple[tuple[str, int], ...]
    costs: tuple[tuple[str, str], ...]
    differing: tuple[DifferingQuestion, ...]
    differing_total: int
    versions: Mapping[str, str]
    frontier: tuple[FrontierPoint, ...] = ()
    frontier_reference: float | None = None
    frontier_words: tuple[str, ...] = ()


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


def render_report(data: ReportData) -> str:
    """The page as HTML text; the same data give the same text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("scale_export"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters.update(bytes=human_bytes, number=_number, percent=_percent, png=_data_uri)
    views = leg_views(data.parity)
    task = data.parity["legs"].get("task")
    return environment.get_template("report.html.jinja").render(
        data=data,
        headline=headline(data.parity, views),
        legs=views,
        tiles=list(_tiles(data, task)),
        agreement=data.parity.get("answer_agreement"),
        accuracy=_accuracy_table(task),
        task_facts=list(_task_facts(task)),
        attribution=_attribution_rows(data.parity.get("attribution")),
        listed=_listed(data),
        strongest=_strongest(data),
        total_bytes=sum(size for _, size in data.sizes),
        charts={name: Markup(svg) for name, svg in _charts(data, views, task)},
    )


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
    cases = f"{_number(leg.get('cases'))} cases"
    return f"{cases}, {_number(leg['steps'])} answer positions" if "steps" in leg else cases


def _errors(name: str, leg: Json) -> Iterator[Metric]:
    """The largest error, and where products round both sides that of each on its own."""
    value, limit = leg.get("value"), leg.get("limit")
    if value is None and leg["passed"] is False:
        value = math.inf
    yield _at_most(name, leg["metric"], value, limit)
    if "products" in leg:
        own = leg["products"]
        label = f"each of {_number(own['matrices'])} rounded products, {own['metric']}"
        yield _at_most(name, label, own["value"], own["limit"])


def _metrics(name: str, leg: Json) -> Iterator[Metric]:
    """The rows of a leg, by the fields that it has."""
    limits: Json = leg.get("limits") or {}
    if "metric" in leg:
        yield from _errors(name, leg)
    if "untouched_identical" in leg:
        yield Metric(
            label="headers identical to the base's", value=_yes(leg["layout_identical"]), limit="yes"
        )
        label = f"SHA-256 unchanged, {_number(leg['untouched'])} tensors that no scalar touches"
        yield Metric(label=label, value=_yes(leg["untouched_identical"]), limit="yes")
    if "ids_identical" in leg:
        yield Metric(label="token ids identical", value=_yes(leg["ids_identical"]), limit="yes")
    if "kl" in leg:
        yield _at_most(name, "mean KL, nats", leg["kl"], limits.get("kl"))
    if "top1_agreement" in leg:
        yield _at_least(leg, "top1_agreement", name=name, label="top-1 agreement", lost="top-1 changed")
    if "codes_identical" in leg:
        label = f"integer codes unchanged by folding, {_number(leg.get('folded_matrices'))} matrices"
        yield Metric(label=label, value=_yes(leg["codes_identical"]), limit="yes")
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
        value=NOT_CHECKED if value is None else _percent(value),
        limit="no limit" if limit is None else f"≥ {100 * limit:.5g} %",
        error=LegError(leg=name, metric=lost, value=missing, limit=None if limit is None else 1 - limit),
    )


def _tiles(data: ReportData, task: Json | None) -> Iterator[tuple[str, str, str]]:
    """The numbers at the top of the page: (what, value, remark), only those that were measured."""
    spatial = {row.model: row for row in _accuracy_rows(task) if row.kind == "spatial"}
    base, export = (spatial.get(MODEL_NAMES[who]) for who in ("base", "export"))
    if base and export:
        remark = f"base model → export, {export.cases:,} questions"
        yield "Spatial accuracy", f"{100 * base.value:.1f} → {100 * export.value:.1f} %", remark
    if task and task.get("gain_retention") is not None:
        interval = _interval(task.get("gain_retention_95"), 1)
        yield "Gain retention", _percent(task["gain_retention"]), f"of ScAle's spatial gain{interval}"
    agreement = task or data.parity.get("answer_agreement")
    if agreement and agreement.get("agreement") is not None:
        remark = f"as PyTorch ScAle answers, {_number(agreement.get('cases'))} questions"
        yield "Same answers", _percent(agreement["agreement"]), remark
    if data.sizes:
        files = "1 file" if len(data.sizes) == 1 else f"{len(data.sizes)} files"
        yield "Package", human_bytes(sum(size for _, size in data.sizes)), files


def _accuracy_rows(task: Json | None) -> list[AccuracyBar]:
    """Every measured accuracy, kinds in the order in which they stand."""
    models = (task or {}).get("accuracy") or {}
    rows = []
    for kind in dict.fromkeys(kind for values in models.values() for kind in values or {}):
        for who, values in models.items():
            if cell := (values or {}).get(kind):
                rows.append(_bar(MODEL_NAMES.get(who, who), kind, cell))
    return rows


def _bar(model: str, kind: str, cell: Json) -> AccuracyBar:
    low, high = cell["low"], cell["high"]
    return AccuracyBar(model=model, kind=kind, value=cell["value"], low=low, high=high, cases=cell["cases"])


def _accuracy_table(task: Json | None) -> dict[str, dict[str, AccuracyBar]]:
    """The same by kind, then by model."""
    table: dict[str, dict[str, AccuracyBar]] = {}
    for row in _accuracy_rows(task):
        table.setdefault(row.kind, {})[row.model] = row
    return table


def _task_facts(task: Json | None) -> Iterator[tuple[str, str]]:
    """Label and value of the task leg's paired statistics."""
    if task is None:
        return
    if task.get("dataset"):
        yield "Question set", str(task["dataset"])
    if task.get("scoring"):
        unscored = f", {_number(task['unscored'])} questions without a rule" if task.get("unscored") else ""
        yield "Scoring", f"{task['scoring']}{unscored}"
    yield "Same answer as PyTorch ScAle", _percent(task.get("agreement"))
    yield "The same, near-ties aside", _percent(task.get("agreement_outside_near_ties"))
    yield "Near-ties", f"{_number(task.get('near_ties'))} of {_number(task.get('cases'))}"
    difference = _points(task.get("difference"))
    yield "Accuracy lost by the export", difference + _interval(task.get("difference_95"), 2)
    for kind, test in (task.get("equivalence") or {}).items():
        if kind != "margin" and test is not None:
            yield f"Shown equally accurate within, {kind}", f"± {_points(test['within'])}"
    yield "McNemar's exact p", _number(task.get("mcnemar_p"))
    retention = _percent(task.get("gain_retention"))
    yield "Gain retention", retention + _interval(task.get("gain_retention_95"), 1)


def _attribution_rows(found: Json | None) -> list[tuple[str, str, str]]:
    """Step, KL and share of changed best tokens, the whole last; empty where nothing was attributed."""
    if found is None:
        return []
    steps = [*found["parts"].items(), ("whole", found["whole"])]
    return [(step, _signed(part["kl"]), _percent(part["top1_changed"])) for step, part in steps]


def _signed(value: float | None) -> str:
    """A number that may be negative, with a minus sign."""
    return f"−{_number(-value)}" if value is not None and value < 0 else _number(value)


def _listed(data: ReportData) -> list[Json]:
    """The differing answers that parity.json lists and the gallery has no room for."""
    leg = data.parity["legs"].get("task") or data.parity.get("answer_agreement") or {}
    return list((leg.get("differences") or {}).get("listed", ()))[len(data.differing) :]


def _strongest(data: ReportData) -> str:
    """A sentence on the scalars that are farthest from 1."""
    scalars = np.column_stack([data.attn_scale, data.mlp_scale]).astype(np.float64)
    changed = int(np.count_nonzero(scalars != 1))
    if not changed:
        return "Every scalar is 1: the export is the base model."
    heads = data.attn_scale.shape[1]
    order = np.argsort(-np.abs(scalars - 1), axis=None, kind="stable")[: min(3, changed)]
    places = [divmod(int(i), heads + 1) for i in order]
    named = [
        f"layer {layer} {'MLP' if column == heads else f'head {column}'} (s = {scalars[layer, column]:.2f})"
        for layer, column in places
    ]
    raised = int(np.count_nonzero(scalars > 1))
    return (
        f"{raised} {'scalar amplifies' if raised == 1 else 'scalars amplify'} and {changed - raised} "
        f"{'damps' if changed - raised == 1 else 'damp'}; farthest from 1: {', '.join(named)}."
    )


def _charts(data: ReportData, views: Sequence[LegView], task: Json | None) -> Iterator[tuple[str, str]]:
    errors = [metric.error for view in views for metric in view.metrics if metric.error]
    yield "legs", _inline(to_svg(leg_chart(errors), name="legs"))
    scalars = heat_map(data.attn_scale, data.mlp_scale, title="", scope=data.scope)
    yield "scalars", _inline(to_svg(scalars, name="scalars"))
    if rows := _accuracy_rows(task):
        yield "accuracy", _inline(to_svg(accuracy_bars(rows), name="accuracy"))
    if data.frontier_reference is not None:
        chart = frontier_chart(data.frontier, data.frontier_reference)
        yield "frontier", _inline(to_svg(chart, name="frontier"))


def _inline(svg: str) -> str:
    """An SVG element as HTML wants it: its namespaces are known there."""
    return re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)


def human_bytes(size: int) -> str:
    """``980 bytes``, ``12.3 kB``, ``4.56 GB``: decimal units, three digits."""
    if size < 1000:
        return f"{size} bytes"
    power = next((p for p in range(1, 4) if size / 1000**p < 999.5), 4)
    value, unit = size / 1000**power, ("kB", "MB", "GB", "TB")[power - 1]
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f} {unit}"


def _number(value: float | None) -> str:
    if value is None:
        return "not measured"
    return f"{value:,}" if isinstance(value, int) else short_number(value)


def _percent(share: float | None) -> str:
    """A share with one decimal of a percent, more where that would read as an untrue 0 or 100."""
    if share is None:
        return "not measured"
    if share in (0, 1):
        return f"{share:.0%}".replace("%", " %")
    decimals = 1
    while decimals < 9 and f"{100 * share:.{decimals}f}".rstrip("0") in ("0.", "-0.", "100."):
        decimals += 1
    return f"{100 * share:.{decimals}f} %".replace("-", "−")


def _points(difference: float | None) -> str:
    """A difference of shares in percentage points."""
    return "not measured" if difference is None else f"{100 * difference:.2f} points".replace("-", "−")


def _interval(bounds: Sequence[float | None] | None, decimals: int) -> str:
    """The 95 % interval of a share in percent, in brackets; nothing where it isn't bounded."""
    low, high = bounds or (None, None)
    if low is None or high is None:
        return ""
    return f" (95 %: {100 * low:.{decimals}f} … {100 * high:.{decimals}f})".replace("-", "−")


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
