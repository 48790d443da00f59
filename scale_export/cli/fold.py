"""``scale-export fold``."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from scale_export.core.errors import EXIT_OK, EXIT_PARITY_FAILED, UserError
from scale_export.core.extras import need_export
from scale_export.core.progress import WorkLog
from scale_export.core.words import INTEGER
from scale_export.pipeline.request import FoldRequest

from .display import quiet_libraries, say, show, show_parity, show_requirements
from .options import Json, command

if TYPE_CHECKING:
    from scale_export.pipeline.fold import Outcome


@command(FoldRequest)
@quiet_libraries()
def fold(
    request: FoldRequest,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done and why; write nothing.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Fold scalars into a base model, quantize, export, verify against PyTorch, and write a package.

    Example: scale-export fold --coeffs spatial.pt --target coreml --precision int4
    """
    need_export()
    from scale_export.pipeline.fold import fold_package, plan_fold
    from scale_export.plan.estimate import estimates

    if dry_run:
        plan = plan_fold(request)
        expected = list(estimates(plan, under_budget=request.budget is not None))
        facts = {"dry_run": True, "decisions": list(plan.decisions), "estimates": expected}
        return show(facts, [*plan.decisions, *expected], as_json)
    log = WorkLog()
    check_log(request.destination, force=request.force)
    outcome = fold_package(request, log)
    write_log(request.destination, log, force=request.force)
    if as_json:
        print(json.dumps(_record(outcome)))
    else:
        _show(outcome)
    return EXIT_OK if outcome.passed else EXIT_PARITY_FAILED


def _record(outcome: Outcome) -> dict[str, object]:
    return {
        "path": str(outcome.path),
        "passed": outcome.passed,
        "decisions": list(outcome.plan.decisions),
        "parity": outcome.parity,
        "requirements": [asdict(checked) for checked in outcome.requirements],
    }


def _show(outcome: Outcome) -> None:
    for decision in outcome.plan.decisions:
        say(decision)
    show_parity(outcome.report)
    show_requirements(outcome.requirements)
    say(f"{'Package' if outcome.passed else 'Kept for inspection, not shipped'}: {outcome.path}")
    say(f"Report: {outcome.path / 'report.html'}")
    if not outcome.passed:
        say(_way_on(outcome))


ROUNDING: Final = frozenset({"quantization", "runtime", "task"})
"""The legs that a wider precision may mend."""


def _way_on(outcome: Outcome) -> str:
    """What to do with an export that failed; a sentence."""
    failed, plan = outcome.report.failed, outcome.plan
    if outcome.report.passed:
        return "Next: every leg passed and a requirement did not hold: choose another --precision, or require less."
    rounded = plan.precision in INTEGER and set(failed) & ROUNDING
    finer = ("int8", "float16", "float32")
    wider = [p for p in finer if rounded and p in plan.target.precisions and p != plan.precision]
    doctor = f"scale-export doctor {outcome.path} says which layer and head departs first"
    if not wider:
        return f"Next: {doctor}."
    return f"Next: {doctor}; or try --precision {' or '.join(wider)}, whose rounding is finer."


LOG_KEYS: Final = ("ended", "seconds", "peak_bytes", "total")
"""Of ``<package>.log``: when the run ended, what each stage took of time and memory, and the time of all."""


def log_path(package: Path) -> Path:
    """``<package>.log``, beside it."""
    out = package.resolve()
    return out.with_name(f"{out.name}.log")


def check_log(package: Path, *, force: bool) -> None:
    """Refuse a log's place that holds anything but a former log; ``force`` replaces another file, and never a link.

    Raises:
        UserError: the place is taken.
    """
    path = log_path(package)
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_file():
        raise UserError(
            f"{path} is a link or no file, and the log goes there: move it away or choose another --out"
        )
    if not force and not _is_log(path):
        raise UserError(
            f"{path} is not a log of ours, which goes there: choose another --out, or give --force"
        )


def _is_log(path: Path) -> bool:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(record, dict) and record.keys() == set(LOG_KEYS)


def write_log(package: Path, log: WorkLog, *, force: bool = False) -> None:
    """Write ``<package>.log`` as JSON; raises as ``check_log``."""
    check_log(package, force=force)
    ended, total = time.strftime("%Y-%m-%dT%H:%M:%S%z"), sum(log.seconds.values())
    record = dict(zip(LOG_KEYS, (ended, log.seconds, log.peak_bytes, total), strict=True))
    follow_no_link = getattr(os, "O_NOFOLLOW", 0)
    place = os.open(log_path(package), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | follow_no_link, 0o666)
    with os.fdopen(place, "w", encoding="utf-8") as file:
        file.write(json.dumps(record, indent=2) + "\n")
