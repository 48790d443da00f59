"""Questions of one's own: one JSON object a line, with pictures as files beside it.

``jsonl:FILE`` reads them; ``jsonl:FILE,whole`` makes them all the test split. ``_lines`` has the fields of a line.

Rules:
    1. Either every line names its split or none does. Where none does, the hash of its pictures' names (of its id where
       it has none) decides, as for every set on a disk (``questions.files``).
    2. Lines that name their split and never ``calibration`` are calibrated on by those of ``train``.
    3. The whole file is checked whichever split is asked for, so that a fault shows before anything is exported.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

from scale_export.core.errors import UserError
from scale_export.core.words import Split
from scale_export.questions.files import WHOLE, Place
from scale_export.questions.question import Question, StoredImage

from ._lines import Line, lines_of

ON_DISK = True

ALL: Mapping[Split, range] = {
    "train": range(100),
    "calibration": range(100),
    "validation": range(100),
    "test": range(100),
}
"""Every hash: lines that name their split are in it."""


def load(argument: str, split: Split, limit: int | None) -> list[Question]:
    """The questions of a split, in the order of their instances' hashes.

    Raises:
        UserError: no such file, or a line that is not what ``_lines`` describes.
    """
    name = argument.removesuffix(WHOLE)
    file = Path(name).expanduser()
    if not name:
        raise UserError("question set jsonl is read from your disk: name its file, jsonl:FILE")
    if file.is_dir():
        raise UserError(f"{file} is a folder, and jsonl: takes a file: name the .jsonl file in it")
    if not file.is_file():
        raise UserError(f"there is no file {file} to read question set jsonl from: check the path")
    facts = file.stat()
    lines = _read(file, facts.st_mtime_ns, facts.st_size)
    place = Place(file.parent, argument.endswith(WHOLE))
    if lines[0].split is None or place.whole:
        chosen = place.choose(lines, _instance, split, limit)
    else:
        held = {line.split for line in lines}
        wanted = "train" if split == "calibration" and split not in held else split
        chosen = place.choose(
            [line for line in lines if line.split == wanted], _instance, wanted, limit, shares=ALL
        )
    return [_question(line) for line in chosen]


@functools.lru_cache(maxsize=2)
def _read(file: Path, changed_ns: int, size: int) -> tuple[Line, ...]:
    """A file's lines, read again where it changed since."""
    return tuple(lines_of(file))


def _instance(line: Line) -> str:
    return "\n".join(line.pictures) or line.id


def _question(line: Line) -> Question:
    return Question(
        id=line.id,
        instance=_instance(line),
        pictures=tuple(StoredImage(line.folder / name, f"{line.where}: {name}") for name in line.pictures),
        prompt=line.prompt,
        answer=line.answers[0],
        kind=line.kind,
        topic=line.topic,
        rule=line.rule,
        options=line.options,
        accepted=line.answers[1:],
        earlier=line.earlier,
    )
