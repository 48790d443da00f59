"""What the sets on a user's own disk share: their directory, their splits, their order, and their JSON.

Rules:
    1. A set that was published with one split is divided by the SHA-256 of its instance's name modulo 100: 0 to 49
       train, 50 to 54 calibration, 55 to 69 validation, 70 to 99 test. All questions of an instance go together.
       ``DIR,whole`` makes the whole set the test split, to compare with published figures, and the others empty.
    2. Questions come in the order of that hash, so that the first ones of a split are of every kind.
    3. The argument is a place on one disk: reports don't carry it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from scale_export.core.errors import UserError
from scale_export.core.words import Split

from .question import StoredImage

SHARES: Mapping[Split, range] = {
    "train": range(0, 50),
    "calibration": range(50, 55),
    "validation": range(55, 70),
    "test": range(70, 100),
}
WHOLE = ",whole"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a set lies, and whether all of it is the test split."""

    directory: Path
    whole: bool

    def choose(
        self,
        items: Iterable[T],
        instance: Callable[[T], str],
        split: Split,
        limit: int | None,
        shares: Mapping[Split, range] = SHARES,
    ) -> list[T]:
        """The first ``limit`` items of a split, by rules 1 and 2; items of one instance keep their order."""
        placed = [(_hash(instance(item)), item) for item in items]
        if self.whole:
            placed = placed if split == "test" else []
        else:
            placed = [(key, item) for key, item in placed if key % 100 in shares[split]]
        return [item for _, item in sorted(placed, key=lambda pair: pair[0])][:limit]


def place_of(name: str, argument: str) -> Place:
    """The directory that ``NAME:DIR`` or ``NAME:DIR,whole`` means.

    Raises:
        UserError: no directory was named, or there is none of that name.
    """
    whole = argument.endswith(WHOLE)
    text = argument.removesuffix(WHOLE)
    directory = Path(text).expanduser()
    if not text:
        raise UserError(f"question set {name} is read from your disk: name its directory, {name}:DIR")
    if not directory.is_dir():
        raise UserError(f"there is no directory {directory} to read question set {name} from: check the path")
    return Place(directory, whole)


def _hash(instance: str) -> int:
    return int.from_bytes(hashlib.sha256(instance.encode()).digest()[:8], "big")


def find(directory: Path, name: str, folders: Iterable[str]) -> Path | None:
    """The first file of that name in the folders below ``directory`` (``""`` is itself), or None."""
    return next((path for folder in folders if (path := directory / folder / name).is_file()), None)


def read_lines(path: Path) -> list[str]:
    """A text file's lines; raises UserError where it can't be read."""
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as text ({error}): fetch it again") from None


def read_json(path: Path) -> object:
    """A JSON file; raises UserError where it is none."""
    return _parsed("\n".join(read_lines(path)), str(path))


def read_jsonl(path: Path) -> list[object]:
    """A file with one JSON value a line, empty lines aside; raises UserError where one is none."""
    lines = enumerate(read_lines(path), 1)
    return [_parsed(line, f"{path}, line {number}") for number, line in lines if line.strip()]


def _parsed(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({error}): fetch it again") from None


def text_field(row: object, field: str, where: str) -> str:
    """A text of a record; raises UserError where the record has none of that name."""
    value = row.get(field) if isinstance(row, dict) else None
    if not isinstance(value, str):
        raise UserError(f"{where} has no text {field!r}, so it is not a file of this set: check the path")
    return value


def stored(path: Path) -> StoredImage:
    """A picture's file; raises UserError where there is none."""
    if not path.is_file():
        raise UserError(f"there is no picture {path}, which the set asks about: fetch the set's pictures")
    return StoredImage(path, str(path))
