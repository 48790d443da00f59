"""``scale-export doctor``."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from scale_export.core.errors import EXIT_OK, EXIT_PARITY_FAILED
from scale_export.core.progress import WorkLog

from .display import console, figure, quiet_libraries, say, verdict


@quiet_libraries()
def run_doctor(
    *,
    package: Path,
    model: str | None,
    target: str | None,
    calib: str | None,
    cache: Path | None,
    as_json: bool,
) -> int:
    """``scale-export doctor``."""
    from scale_export.doctor.examine import examine

    found = examine(package, model=model, target=target, calib=calib, cache=cache, log=WorkLog())
    if as_json:
        print(json.dumps({"fault": found.fault and asdict(found.fault), **asdict(found)}))
        return EXIT_PARITY_FAILED if found.fault else EXIT_OK
    table = Table("stage", "verdict", "error", "limit", "found", box=None)
    for stage in found.stages:
        limit = "" if stage.limit is None else f"{stage.limit:g}"
        table.add_row(stage.name, verdict(stage.passed), figure(stage.value), limit, stage.words)
    console.print(table)
    for stage in found.stages:
        for matrix, error in (stage.table or {}).items():
            say(f"  {stage.name}: {matrix} {error:.2g}")
    for words in found.known_faults:
        say(f"Known fault that fits: {words}")
    if found.fault is None:
        say("No fault was found on this machine.")
        return EXIT_OK
    say(f"First fault: {found.fault.name}, at {found.fault.place or 'no single place'}: {found.fault.words}.")
    return EXIT_PARITY_FAILED
