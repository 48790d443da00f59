"""``scale-export fold``."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from scale_export.core.errors import EXIT_OK, EXIT_PARITY_FAILED
from scale_export.core.extras import need_export
from scale_export.core.progress import WorkLog
from scale_export.pipeline.request import FoldRequest

from .display import quiet_libraries, say, show, show_parity
from .options import Json, command


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

    if dry_run:
        plan = plan_fold(request)
        return show({"dry_run": True, "decisions": list(plan.decisions)}, plan.decisions, as_json)
    log = WorkLog()
    outcome = fold_package(request, log)
    write_log(request.destination, log)
    if as_json:
        print(json.dumps({"path": str(outcome.path), "passed": outcome.passed, "parity": outcome.parity}))
    else:
        for decision in outcome.plan.decisions:
            say(decision)
        show_parity(outcome.report)
        say(f"{'Package' if outcome.passed else 'Kept for inspection, not shipped'}: {outcome.path}")
        say(f"Report: {outcome.path / 'report.html'}")
    return EXIT_OK if outcome.passed else EXIT_PARITY_FAILED


def write_log(package: Path, log: WorkLog) -> None:
    """Write ``<package>.log``: when the run ended and how long each stage took, as JSON."""
    record = {
        "ended": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seconds": log.seconds,
        "peak_bytes": log.peak_bytes,
        "total": sum(log.seconds.values()),
    }
    package.with_name(f"{package.name}.log").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
