"""``scale-export cache``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from .display import show
from .options import Json


def cache(
    clean: Annotated[
        bool,
        typer.Option("--clean", help="Remove the entries; exports collect them again as they need them."),
    ] = False,
    older_than: Annotated[
        int,
        typer.Option(min=0, max=36_500, help="Only entries that were written so many days ago or earlier."),
    ] = 0,
    place: Annotated[
        Path | None, typer.Option("--cache", help="The cache's folder; by default ~/.cache/scale-export.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Show what scale-export keeps on the disk, and remove it.

    These are statistics of calibrations, and what models wrote to be calibrated on. Models from the hub lie in the
    hub's own cache: see `hf cache --help`.

    Example: scale-export cache --clean --older-than 30
    """
    from scale_export.core.cache import cache_entries, default_cache, remove_entry

    before = time.time() - 86_400 * older_than
    found = [entry for entry in cache_entries(place) if not older_than or entry.used <= before]
    for entry in found if clean else ():
        remove_entry(entry)
    total = sum(entry.bytes for entry in found)
    where = default_cache() if place is None else place
    facts = {
        "cache": str(where),
        "entries": [
            {"name": entry.name, "bytes": entry.bytes, "written": _day(entry.used)} for entry in found
        ],
        "bytes": total,
        "removed": clean,
    }
    verb = "removed from" if clean else "in"
    lines = [f"{entry.name}  {entry.bytes / 1e6:,.1f} MB  {_day(entry.used)}" for entry in found]
    lines.append(f"{len(found)} entries, {total / 1e6:,.1f} MB, {verb} {where}")
    return show(facts, lines, as_json)


def _day(seconds: float) -> str:
    return time.strftime("%Y-%m-%d", time.localtime(seconds))
