"""Packages that other environments are to open: ``python -m tests.environments.packages OUT`` folds them here.

Every family's random model in float32, and the trained one of ``examples/tiny_vlm`` in the other formats, whose parity
legs a random model doesn't pass. Beside each package lie its answer and its logits on one question, as given here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import save_file

from scale_export.model.base import open_base
from scale_export.pipeline.api import fold
from tests.helpers.coefficients import random_coefficients, saved
from tests.helpers.models import FAMILIES
from tests.helpers.pictures import picture

from .packages_check import ANSWER, LOGITS, PICTURE, ask

TINY = Path(__file__).parents[2] / "examples/tiny_vlm"
FORMATS = (("cpu", "int4"), ("cpu", "w8a8"), ("coreml", "float16"), ("coreml", "int4"))
"""Target and precision of the trained model's packages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A package to fold."""

    name: str
    coefficients: Path
    model: Path
    target: str = "cpu"
    precision: str = "float32"


def wanted(families: Sequence[str], out: Path) -> Iterator[Wanted]:
    """What is folded; a family's random model is written to ``out`` as its turn comes."""
    for family in families:
        model = out / "models" / family
        FAMILIES[family](directory=model)
        coefficients = saved(random_coefficients(open_base(str(model))), model)
        yield Wanted(name=family, coefficients=coefficients, model=model)
    for target, precision in FORMATS:
        yield Wanted(
            name=f"tiny_vlm-{target}-{precision}",
            coefficients=TINY / "spatial.pt",
            model=TINY / "model",
            target=target,
            precision=precision,
        )


def write(package: Wanted, folder: Path) -> None:
    """Fold it to ``folder/package`` and ask it.

    Raises:
        RuntimeError: it failed its parity legs.
    """
    outcome = fold(
        package.coefficients,
        package.target,
        out=folder / "package",
        model=str(package.model),
        precision=package.precision,
        evaluation="none",
    )
    if not outcome.passed:
        raise RuntimeError(f"{package.name} failed its parity legs: see {outcome.path}")
    picture().save(folder / PICTURE)
    asked = ask(folder / "package", folder / PICTURE)
    save_file({"logits": asked.logits}, folder / LOGITS)
    (folder / ANSWER).write_text(json.dumps(asked.answer), encoding="utf-8")


def main(arguments: Sequence[str]) -> None:
    """Write the packages that are missing, of the families that follow the folder or of all."""
    out = Path(arguments[0])
    for package in wanted(arguments[1:] or sorted(FAMILIES), out):
        folder = out / package.name
        if not (folder / ANSWER).is_file():
            folder.mkdir(exist_ok=True)
            write(package, folder)
            print(package.name, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
