"""``scale-export fold``."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from scale_export.core.errors import EXIT_OK, EXIT_PARITY_FAILED
from scale_export.core.progress import WorkLog
from scale_export.plan.options import ExportOptions

from .display import quiet_libraries, say, show, show_parity

if TYPE_CHECKING:
    from scale_export.core.words import Scoring


@quiet_libraries()
def run_fold(
    *,
    coeffs: Path,
    target: str,
    model: str | None,
    out: Path | None,
    options: ExportOptions,
    bits_plan: str | None,
    budget: str | None,
    evaluation: str,
    eval_limit: int | None,
    scoring: Scoring,
    parity: str,
    dry_run: bool,
    force: bool,
    as_json: bool,
) -> int:
    """``scale-export fold``."""
    from scale_export.pipeline.api import default_out
    from scale_export.pipeline.fold import FoldRequest, fold_package, plan_fold
    from scale_export.plan.bits import bits_plan as named_bits

    request = FoldRequest(
        coeffs=coeffs,
        target=target,
        out=out or default_out(coeffs, target),
        model=model,
        options=replace(options, bits=named_bits(bits_plan)) if bits_plan else options,
        evaluation=evaluation,
        eval_limit=eval_limit,
        scoring=scoring,
        parity=parity,
        budget=budget,
        force=force,
    )
    if dry_run:
        plan = plan_fold(request)
        return show({"dry_run": True, "decisions": list(plan.decisions)}, plan.decisions, as_json)
    log = WorkLog()
    outcome = fold_package(request, log)
    write_log(request.out, log)
    if not as_json:
        for decision in outcome.plan.decisions:
            say(decision)
        show_parity(outcome.parity)
        say(f"{'Package' if outcome.passed else 'Kept for inspection, not shipped'}: {outcome.path}")
        say(f"Report: {outcome.path / 'report.html'}")
    else:
        print(json.dumps({"path": str(outcome.path), "passed": outcome.passed, "parity": outcome.parity}))
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
