"""``scale-export targets`` and ``scale-export families``."""

from __future__ import annotations

import json

from rich.table import Table

from scale_export.core.errors import EXIT_OK

from .display import console, say
from .options import Json


def targets(as_json: Json = False) -> int:
    """List the devices that packages can be made for.

    Example: scale-export targets
    """
    from scale_export.plan.targets import load_target, target_names

    found = [load_target(name) for name in target_names()]
    if as_json:
        print(json.dumps([target.model_dump(mode="json") for target in found]))
        return EXIT_OK
    table = Table()
    for heading in ("target", "what", "backend", "precisions", "fold modes", "context"):
        table.add_column(heading)
    for target in found:
        precisions = ", ".join(f"{p}*" if p == target.default_precision else p for p in target.precisions)
        modes = ", ".join(target.fold_modes)
        table.add_row(
            target.name,
            target.title,
            target.backend,
            precisions,
            modes,
            str(target.context_length or "the model's"),
        )
    console.print(table)
    say("* the default precision")
    return EXIT_OK


def families(as_json: Json = False) -> int:
    """List the model families that are supported, and the errors that their proofs measured.

    Example: scale-export families
    """
    from scale_export.families import GENERIC_ROUTE, proved

    found = proved()
    if as_json:
        print(json.dumps(found | {"generic": GENERIC_ROUTE}))
        return EXIT_OK
    title = "worst relative error of twenty prompts on a random model"
    table = Table(title=title, box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("model_type", *found["columns"]):
        table.add_column(heading.replace(" ", "\n"), no_wrap=True)
    for family, errors in found["worst"].items():
        table.add_row(family, *(f"{errors[column]:.1e}" for column in found["columns"]))
    console.print(table)
    say(GENERIC_ROUTE)
    return EXIT_OK
