"""``scale-export train``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scale_export.core.errors import EXIT_OK, UserError
from scale_export.core.progress import WorkLog

from .display import console, quiet_libraries, say


@quiet_libraries()
def run_train(
    *, model: Path, out: Path, test: bool, force: bool, layers: str | None, as_json: bool, **options: Any
) -> int:
    """``scale-export train``."""
    from scale_export.training.run import TrainOptions, run_training, training_table

    chosen = TrainOptions(
        layers=_layer_list(layers), report_split="test" if test else "validation", **options
    )
    report = run_training(model, out, chosen, log=WorkLog(), force=force)
    if as_json:
        print(json.dumps(report.to_json()))
        return EXIT_OK
    console.print(training_table(report))
    for role, path in report.files.items():
        say(f"{role.replace('_', ' ')}: {path}")
    return EXIT_OK


def _layer_list(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError as error:
        raise UserError(f"--layers {text!r} is refused: give layer numbers such as 0,2,3") from error
