"""``scale-export train``: ScAle scalars on a frozen model, as a coefficient file with its evaluation."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from scale_export.charts.maps import heat_map, sensitivity_map
from scale_export.charts.style import save_png
from scale_export.coefficients.file import Coefficients, save_coefficients
from scale_export.coefficients.rules import Bound
from scale_export.core.errors import UserError
from scale_export.core.huggingface import Model
from scale_export.core.progress import WorkLog
from scale_export.core.records import Float32, Json
from scale_export.model.base import BaseModel, open_base
from scale_export.model.hooks import attach
from scale_export.model.identity import make_coefficients
from scale_export.questions.question import Kind, Question

from .baselines import BASELINES, import_peft, trained_baseline
from .data import TrainingQuestions, training_questions
from .evaluation import Accuracy, Row, measure_accuracy
from .examples import Example, encode_examples
from .loop import KINDS, Fit
from .options import ProgressCallback, TrainOptions
from .parameters import chosen_layers
from .scale import TrainResult, train_on_examples, train_scale
from .sensitivity import Sensitivity

__all__ = ["TrainOptions", "TrainReport", "TrainResult", "run_training", "train_scale", "training_table"]

SUFFIXES = (".pt", ".safetensors")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainReport:
    """What a training run did.

    Attributes:
        files: what was written, by role: ``coefficients``, ``twin``, ``heat_map``, ``report`` and, where
            layers were selected, ``sensitivity``.
        rows: the final table; the first row is the base model, the second ScAle.
    """

    options: TrainOptions
    files: Mapping[str, Path]
    coefficients: Coefficients
    result: TrainResult
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Json]:
        """The content of ``<out>.train.json``: plain JSON values, paths by file name."""
        result = self.result
        return {
            "schema": 1,
            "options": asdict(self.options),
            "files": {role: path.name for role, path in self.files.items()},
            "layers": list(result.layer_indices),
            "head_scale": result.head_scale.tolist(),
            "mlp_scale": result.mlp_scale.tolist(),
            "history": [asdict(look) for look in result.course.history],
            "best_step": result.course.best_step,
            "sensitivity": None if result.sensitivity is None else _sensitivity_json(result.sensitivity),
            "table": [_row_json(row) for row in self.rows],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """The parts that the stages of one run share."""

    base: BaseModel
    options: TrainOptions
    train: Sequence[Example]
    validation: Sequence[Example]
    report: Sequence[Question]
    log: WorkLog

    @property
    def pad_id(self) -> int:
        return int(self.base.processor.tokenizer.pad_token_id or 0)

    def measure(self, who: str, model: Model | None = None) -> dict[Kind, Accuracy]:
        """The accuracy on the report split, of the base model's module or of another."""
        asked = self.base.model if model is None else model
        return measure_accuracy(
            asked, self.base.processor, self.report, progress=_telling(self.log), stage=f"ask {who}"
        )


def run_training(
    model_dir: Path, out: Path, options: TrainOptions, *, log: WorkLog | None = None, force: bool = False
) -> TrainReport:
    """Train scalars on the model in ``model_dir``; write ``out`` with its twin, a heat map and a report.

    ``out`` ends in ``.pt`` or ``.safetensors``; the twin has the other suffix. Files that exist are only
    replaced with ``force``. The model is loaded in float32.

    Raises:
        UserError: a wrong suffix, an output that exists, a model or a question set that can't be opened, or
            options that don't fit them.
    """
    log = log or WorkLog(quiet=True)
    files = _outputs(out, options, force=force)
    if options.baselines:
        import_peft()
    with log.stage("questions"):
        chosen = training_questions(options)
    log.say(chosen.decision)
    options = chosen.options
    base = open_base(str(model_dir))
    chosen_layers(base.spec.num_layers, options.layers, options.select)  # refused before weights are loaded
    run = _prepare(base, chosen, log)
    with log.stage("train"):
        result = train_on_examples(
            base.model, options, run.train, run.validation, pad_id=run.pad_id, progress=_telling(log)
        )
    coefficients = _coefficients(base, options, result)
    rows = (*_scale_rows(run, coefficients, result), *_baseline_rows(run))
    report = TrainReport(options=options, files=files, coefficients=coefficients, result=result, rows=rows)
    _write(report, base)
    return report


def training_table(report: TrainReport) -> Table:
    """The final table for a terminal of 80 columns: accuracies in % with 95 % Wilson intervals."""
    split = f"{report.options.data}, {report.options.report_split} split"
    table = Table(title=f"{split}: exact answers in %, 95 % intervals", box=SIMPLE_HEAD)
    table.add_column("")
    for heading in ("numbers", *KINDS, "kept step", "s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report.rows:
        table.add_row(
            row.name,
            f"{row.parameters:,}",
            *(_percent(row.accuracy.get(kind)) for kind in KINDS),
            "" if row.best_step is None else f"{row.best_step}/{row.steps}",
            "" if row.seconds is None else f"{row.seconds:.0f}",
        )
    return table


def _percent(accuracy: Accuracy | None) -> str:
    if accuracy is None:
        return "no questions"
    low, high = accuracy.interval
    return f"{100 * accuracy.share:.1f} ({100 * low:.1f}–{100 * high:.1f})"


def _outputs(out: Path, options: TrainOptions, *, force: bool) -> dict[str, Path]:
    """Every file that the run will write, by role; refused before any work."""
    if out.suffix not in SUFFIXES:
        raise UserError(
            f"cannot write coefficients to {out.name}: the name must end in {' or '.join(SUFFIXES)}"
        )
    twin = out.with_suffix(next(suffix for suffix in SUFFIXES if suffix != out.suffix))
    files = {"coefficients": out, "twin": twin, "heat_map": out.with_suffix(".png")}
    if options.select is not None:
        files["sensitivity"] = out.with_suffix(".sensitivity.png")
    files["report"] = out.with_suffix(".train.json")
    existing = [path.name for path in files.values() if path.exists()]
    if existing and not force:
        raise UserError(
            f"{', '.join(existing)} exist already in {out.parent}: choose another --out, or give "
            "--force to replace them"
        )
    there = next(place for place in out.absolute().parents if os.path.lexists(place))
    if not there.is_dir():
        raise UserError(f"{there} is no directory to write {out.name} under: choose another --out")
    if not os.access(there, os.W_OK):
        raise UserError(f"the directory {there} cannot be written to: choose another --out")
    return files


def _prepare(base: BaseModel, chosen: TrainingQuestions, log: WorkLog) -> _Run:
    with log.stage("read questions"):
        train, validation = (
            encode_examples(base.model, base.processor, chosen.splits[split], _telling(log), f"read {split}")
            for split in ("train", "validation")
        )
    report = chosen.splits[chosen.options.report_split]
    return _Run(base=base, options=chosen.options, train=train, validation=validation, report=report, log=log)


def _telling(log: WorkLog) -> ProgressCallback:
    """Progress on the log's current line."""

    def tell(stage: str, done: int, total: int, note: str = "") -> None:
        log.advance(f"{stage} {note}".rstrip(), done, total)

    return tell


def _coefficients(base: BaseModel, options: TrainOptions, result: TrainResult) -> Coefficients:
    """The record of the scalars; what it says of the training holds no times, so runs compare."""
    kept = next(look for look in result.course.history if look.step == result.course.best_step)
    training = {
        **asdict(options),
        "layers": None if options.layers is None else list(options.layers),
        "best_step": result.course.best_step,
        "validation_loss": kept.validation_loss,
    }
    return make_coefficients(
        base.model,
        base.directory,
        scope=result.scope,
        head_scale=result.head_scale,
        mlp_scale=result.mlp_scale,
        layer_indices=result.layer_indices,
        bound=Bound(kind="tanh", r=options.bound),
        training=training,
    )


def _scale_rows(run: _Run, coefficients: Coefficients, result: TrainResult) -> tuple[Row, Row]:
    """The base model and ScAle, each asked with greedy generation."""
    with run.log.stage("evaluate"):
        base = run.measure("s = 1")
        with attach(run.base.model, coefficients):
            scaled = run.measure("ScAle")
    return (
        Row(name="s = 1", parameters=0, accuracy=base, steps=None, best_step=None, seconds=None),
        _row("ScAle", result.trained, scaled, result.course, result.seconds),
    )


def _row(name: str, parameters: int, accuracy: Mapping[Kind, Accuracy], course: Fit, seconds: float) -> Row:
    return Row(
        name=name,
        parameters=parameters,
        accuracy=accuracy,
        steps=course.steps,
        best_step=course.best_step,
        seconds=seconds,
    )


def _baseline_rows(run: _Run) -> list[Row]:
    rows: list[Row] = []
    for baseline in BASELINES if run.options.baselines else ():
        with run.log.stage(baseline.name):
            start = time.perf_counter()
            with trained_baseline(
                baseline,
                run.base.model,
                run.pad_id,
                train=run.train,
                validation=run.validation,
                options=run.options,
                progress=_telling(run.log),
            ) as (model, parameters, course):
                seconds = time.perf_counter() - start
                accuracy = run.measure(baseline.name, model)
        rows.append(_row(baseline.name, parameters, accuracy, course, seconds))
    return rows


def _write(report: TrainReport, base: BaseModel) -> None:
    files = report.files
    files["coefficients"].parent.mkdir(parents=True, exist_ok=True)
    for role in ("coefficients", "twin"):
        save_coefficients(report.coefficients, files[role])
    coefficients, name = report.coefficients, files["coefficients"].stem
    attn, mlp = coefficients.dense(base.spec.num_layers, base.spec.num_heads)
    save_png(heat_map(attn, mlp, title=f"ScAle: {name}", scope=coefficients.scope), files["heat_map"])
    if table := report.result.sensitivity:
        percent = np.round(100 * table.signed / table.loss, 1) + 0.0  # no "-0"
        moved = sensitivity_map(
            percent[:, :-1],
            percent[:, -1],
            layers=table.layer_indices,
            title=f"Sensitivity: {report.options.data}, spatial questions",
            label=f"loss change in % as s moves by {table.delta:g} (blue: turning it up helps)",
        )
        save_png(moved, files["sensitivity"])
    files["report"].write_text(json.dumps(report.to_json(), indent=1) + "\n", encoding="utf-8")


def _row_json(row: Row) -> dict[str, Json]:
    accuracy = {
        kind: {**asdict(a), "share": a.share, "wilson_95": a.interval} for kind, a in row.accuracy.items()
    }
    return {**asdict(row), "accuracy": accuracy}


def _sensitivity_json(table: Sensitivity) -> dict[str, Json]:
    """NaN, the mark of what was not probed, becomes null."""

    def plain(values: Float32) -> list[Json]:
        nothing = np.isnan(values)
        mixed = values.astype(object)
        mixed[nothing] = None
        rows: list[Json] = mixed.tolist()
        return rows

    return {
        "layers": list(table.layer_indices),
        "delta": table.delta,
        "loss": table.loss,
        "exact": table.exact,
        "loss_change": plain(table.loss_change),
        "exact_change": plain(table.exact_change),
        "ranking": table.ranking(),
    }
