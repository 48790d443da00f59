"""The report page of a package: one HTML file that needs nothing else, with everything that parity.json says.

Rules:
    1. The page takes nothing from a network and runs no script; its own policy forbids both.
    2. The same data give the same bytes: no time of day and no duration stands on the page.
    3. What was not measured is said in words, never as a number.
    4. Every text from outside is escaped; only our own drawings are taken as markup.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from scale_export.charts.accuracy import AccuracyBar, FrontierPoint, accuracy_bars, frontier_chart
from scale_export.charts.errors import leg_chart
from scale_export.charts.maps import heat_map
from scale_export.charts.style import Values, to_svg

from .legs import Json, LegView, headline, leg_views
from .numbers import human_bytes, interval, number, percent, points, signed

MODEL_NAMES: Mapping[str, str] = {"base": "base model", "scale": "PyTorch ScAle", "export": "export"}


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
        parity: the object of ``parity.json`` (``docs/parity.md``).
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


def render_report(data: ReportData) -> str:
    """The page as HTML text; the same data give the same text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("scale_export.report", ""), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters.update(bytes=human_bytes, number=number, percent=percent, png=_data_uri)
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


def _tiles(data: ReportData, task: Json | None) -> Iterator[tuple[str, str, str]]:
    """The numbers at the top of the page: (what, value, remark), only those that were measured."""
    spatial = {row.model: row for row in _accuracy_rows(task) if row.kind == "spatial"}
    base, export = (spatial.get(MODEL_NAMES[who]) for who in ("base", "export"))
    if base and export:
        remark = f"base model → export, {export.cases:,} questions"
        yield "Spatial accuracy", f"{100 * base.value:.1f} → {100 * export.value:.1f} %", remark
    if task and task.get("gain_retention") is not None:
        remark = f"of ScAle's spatial gain{interval(task.get('gain_retention_95'), 1)}"
        yield "Gain retention", percent(task["gain_retention"]), remark
    agreement = task or data.parity.get("answer_agreement")
    if agreement and agreement.get("agreement") is not None:
        remark = f"as PyTorch ScAle answers, {number(agreement.get('cases'))} questions"
        yield "Same answers", percent(agreement["agreement"]), remark
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
        unscored = f", {number(task['unscored'])} questions without a rule" if task.get("unscored") else ""
        yield "Scoring", f"{task['scoring']}{unscored}"
    yield "Same answer as PyTorch ScAle", percent(task.get("agreement"))
    yield "The same, near-ties aside", percent(task.get("agreement_outside_near_ties"))
    yield "Near-ties", f"{number(task.get('near_ties'))} of {number(task.get('cases'))}"
    difference = points(task.get("difference"))
    yield "Accuracy lost by the export", difference + interval(task.get("difference_95"), 2)
    for kind, test in (task.get("equivalence") or {}).items():
        if kind != "margin" and test is not None:
            yield f"Shown equally accurate within, {kind}", f"± {points(test['within'])}"
    yield "McNemar's exact p", number(task.get("mcnemar_p"))
    retention = percent(task.get("gain_retention"))
    yield "Gain retention", retention + interval(task.get("gain_retention_95"), 1)


def _attribution_rows(found: Json | None) -> list[tuple[str, str, str]]:
    """Step, KL and share of changed best tokens, the whole last; empty where nothing was attributed."""
    if found is None:
        return []
    steps = [*found["parts"].items(), ("whole", found["whole"])]
    return [(step, signed(part["kl"]), percent(part["top1_changed"])) for step, part in steps]


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


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
