"""``scale-export train``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from scale_export.core.errors import EXIT_OK
from scale_export.core.extras import need_export
from scale_export.core.progress import WorkLog
from scale_export.training.options import TrainOptions

from .display import console, quiet_libraries, say
from .options import Json, command


@command(TrainOptions)
@quiet_libraries()
def train(
    options: TrainOptions,
    *,
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The base model's directory.")],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="Coefficient file to write, .pt or .safetensors; the other is written beside it.",
        ),
    ],
    test: Annotated[
        bool,
        typer.Option("--test", help="Measure the final table on the test split, which nothing has seen."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace existing files.")] = False,
    as_json: Json = False,
) -> int:
    """Train ScAle scalars on a frozen model and write a coefficient file.

    Example: scale-export train path/to/base --out spatial.pt --data gridworld
    """
    need_export()
    from scale_export.training.run import run_training, training_table

    chosen = replace(options, report_split="test") if test else options
    report = run_training(model, out, chosen, log=WorkLog(), force=force)
    if as_json:
        print(json.dumps(report.to_json()))
        return EXIT_OK
    console.print(training_table(report))
    for role, path in report.files.items():
        say(f"{role.replace('_', ' ')}: {path}")
    return EXIT_OK
