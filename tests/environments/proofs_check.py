"""Proving families and folding tiny_vlm: ``python -m tests.environments.proofs_check`` prints a JSON line each."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from scale_export.families import family_names
from scale_export.pipeline.api import fold
from tests.families.proof import missed, proof

from .packages import FORMATS, TINY


def proved(family: str) -> Mapping[str, object]:
    """A family's worst errors column by column, and the columns that miss their limits."""
    with tempfile.TemporaryDirectory() as directory:
        errors = proof(family, Path(directory))
    return {"worst": errors, "missed": missed(errors)}


def folded(target: str, precision: str) -> Mapping[str, object]:
    """The trained model's parity legs that failed for one target and precision."""
    with tempfile.TemporaryDirectory() as directory:
        outcome = fold(
            TINY / "spatial.pt",
            target,
            out=Path(directory) / "package",
            model=str(TINY / "model"),
            precision=precision,
            evaluation="none",
        )
        legs = outcome.parity["legs"]
    return {"missed": sorted(name for name, leg in legs.items() if leg and leg["passed"] is False)}


def line(kind: str, name: str, measure: Callable[[], Mapping[str, object]]) -> str:
    """One result as JSON; what fails says so and stops nothing."""
    try:
        found = measure()
    except Exception as error:  # whatever a version of a library raises is the finding
        found = {"error": f"{type(error).__name__}: {error}"}
    return json.dumps({"kind": kind, "name": name, **found})


def main(families: Sequence[str]) -> None:
    """Prove the given families or all, then fold the trained model in every format."""
    torch.set_num_threads(1)
    for family in families or family_names():
        print(line("family", family, lambda family=family: proved(family)), flush=True)  # type: ignore[misc]
    for target, precision in FORMATS:
        name = f"tiny_vlm-{target}-{precision}"
        print(line("fold", name, lambda t=target, p=precision: folded(t, p)), flush=True)  # type: ignore[misc]


if __name__ == "__main__":
    main(sys.argv[1:])
