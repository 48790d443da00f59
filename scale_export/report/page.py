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
from scale_export.core.intervals import Estimate
from scale_export.proof.answers import Agreement
from scale_export.proof.attribution import Attribution
from scale_export.proof.numbers import human_bytes, interval, number, percent, signed
from scale_export.proof.report import ParityReport
from scale_export.proof.task import TaskLeg

from .legs import LegView, headline, leg_views

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
        parity: what was measured, and what was not.
        attn_scale: ``[L, H]``, the scalars of every layer, ones where a layer is not scaled.
        mlp_scale: ``[L]``, the same for the MLPs.
        scope: ``last`` or ``all``.
        sizes: (file, bytes) of the package so far.
        costs: (what, how much) of one token, from shapes alone.
        differing: the questions of the task leg to show, the first of those that differ.
        versions: library → version.
        frontier: what a search under a budget measured, by size; empty without one.
        frontier_reference: the unquantized model's accuracy on the same questions.
        frontier_words: what is to be said of the choice, a sentence each.
    """

    name: str
    facts: Mapping[str, str]
    decisions: tuple[str, ...]
    parity: ParityReport
    attn_scale: Values
    mlp_scale: Values
    scope: str
    sizes: tuple[tuple[str, int], ...]
    costs: tuple[tuple[str, str], ...]
    differing: tuple[DifferingQuestion, ...]
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
    report, views = data.parity, leg_views(data.parity)
    answers = _answers(report)
    return environment.get_template("report.html.jinja").render(
        data=data,
        headline=headline(report.passed, views),
        legs=views,
        tiles=list(_tiles(data)),
        task=report.task,
        answers=answers,
        accuracy=_accuracy_table(report.task),
        task_facts=list(report.task.facts()) if report.task else [],
        attribution=_attribution_rows(report.attribution),
        silent=[view.name for view in views if not view.rows and not view.reason],
        listed=answers.listed[len(data.differing) :] if answers else (),
        strongest=_strongest(data),
        total_bytes=sum(size for _, size in data.sizes),
        charts={name: Markup(svg) for name, svg in _charts(data, views)},
    )


def _answers(report: ParityReport) -> Agreement | None:
    """How often the answers are PyTorch ScAle's: to the task leg's questions, or else to the parity prompts."""
    return report.task.agreement if report.task else report.answer_agreement


def _tiles(data: ReportData) -> Iterator[tuple[str, str, str]]:
    """The numbers at the top of the page: (what, value, remark), only those that were measured."""
    task, answers = data.parity.task, _answers(data.parity)
    if task and task.base.spatial and task.export.spatial:
        base, export = task.base.spatial, task.export.spatial
        remark = f"base model → export, {export.cases:,} questions"
        yield "Spatial accuracy", f"{100 * base.value:.1f} → {100 * export.value:.1f} %", remark
    if task and task.retention:
        remark = f"of ScAle's spatial gain{interval(task.retention, 1)}"
        yield "Gain retention", percent(task.retention.value), remark
    if answers and answers.share is not None:
        yield (
            "Same answers",
            percent(answers.share),
            f"as PyTorch ScAle answers, {number(answers.cases)} questions",
        )
    shrunk = data.parity.preprocessing and data.parity.preprocessing.shrunk
    if shrunk:
        remark = (
            f"how far smaller pictures ({shrunk.tokens[1]} tokens for {shrunk.tokens[0]}) move logits from the base "
            f"model's own, of the largest"
        )
        yield "Lost by shrinking", percent(shrunk.finite), remark
    if data.sizes:
        files = "1 file" if len(data.sizes) == 1 else f"{len(data.sizes)} files"
        yield "Package", human_bytes(sum(size for _, size in data.sizes)), files


def _accuracy_table(task: TaskLeg | None) -> dict[str, dict[str, AccuracyBar]]:
    """Every measured accuracy by kind of question, then by model."""
    table: dict[str, dict[str, AccuracyBar]] = {}
    for who, accuracy in task.accuracy.items() if task else ():
        for kind, share in accuracy.by_kind().items():
            if share is not None:
                table.setdefault(kind, {})[MODEL_NAMES[who]] = _bar(MODEL_NAMES[who], kind, share)
    return table


def _bar(model: str, kind: str, share: Estimate) -> AccuracyBar:
    """``share`` with Wilson's interval, which is bounded."""
    assert share.low is not None and share.high is not None
    return AccuracyBar(
        model=model, kind=kind, value=share.value, low=share.low, high=share.high, cases=share.cases
    )


def _attribution_rows(found: Attribution | None) -> list[tuple[str, str, str]]:
    """Step, KL and share of changed best tokens, the whole last; empty where nothing was attributed."""
    if found is None:
        return []
    return [(step, signed(part.kl), percent(part.top1_changed)) for step, part in found.steps()]


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


def _charts(data: ReportData, views: Sequence[LegView]) -> Iterator[tuple[str, str]]:
    errors = [error for view in views for error in view.errors()]
    yield "legs", _inline(to_svg(leg_chart(errors), name="legs"))
    scalars = heat_map(data.attn_scale, data.mlp_scale, title="", scope=data.scope)
    yield "scalars", _inline(to_svg(scalars, name="scalars"))
    if rows := [bar for bars in _accuracy_table(data.parity.task).values() for bar in bars.values()]:
        yield "accuracy", _inline(to_svg(accuracy_bars(rows), name="accuracy"))
    if data.frontier_reference is not None:
        chart = frontier_chart(data.frontier, data.frontier_reference)
        yield "frontier", _inline(to_svg(chart, name="frontier"))


def _inline(svg: str) -> str:
    """An SVG element as HTML wants it: its namespaces are known there."""
    return re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
