"""COCO-QA of 2015 (Ren, Kiros and Zemel): one-word answers to questions made from captions of COCO photos.

``coco_qa_2015:DIR`` reads ``train/`` and ``test/`` with ``img_ids.txt``, ``questions.txt``, ``answers.txt`` and
``types.txt``, aligned line by line. Types are 0 object, 1 number, 2 colour and 3 location, which is the spatial one.
Pictures are COCO's of 2014, under ``DIR``: ``train2014/COCO_train2014_000000123456.jpg`` for ``train`` and ``val2014/``
likewise for ``test``; COCO's other folders and the names of 2017 (``train2017/000000123456.jpg``) are tried too.

The published test split stays the test split; the published train split is divided by picture into train, calibration
and validation: SHA-256 modulo 100, 0 to 79, 80 to 84 and 85 to 99.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from scale_export.core.errors import UserError
from scale_export.core.words import Split
from scale_export.questions.files import place_of, read_lines, stored
from scale_export.questions.question import Question, StoredImage

ON_DISK = True
FILES = ("img_ids.txt", "questions.txt", "answers.txt", "types.txt")
TOPICS = ("object", "number", "colour", "location")
SHARES: Mapping[Split, range] = {
    "train": range(0, 80),
    "calibration": range(80, 85),
    "validation": range(85, 100),
    "test": range(0, 100),
}
PICTURES = (
    "train2014/COCO_train2014_{:012}.jpg",
    "val2014/COCO_val2014_{:012}.jpg",
    "train2017/{:012}.jpg",
    "val2017/{:012}.jpg",
)


def load(argument: str, split: Split, limit: int | None) -> list[Question]:
    """The questions of a split, in the order of their pictures' hashes.

    Raises:
        UserError: no such directory or file, files of different lengths, an unknown type, or a missing picture.
    """
    place = place_of("coco_qa_2015", argument)
    if place.whole:
        raise UserError("coco_qa_2015 has a published test split of its own: leave out ',whole'")
    published = "test" if split == "test" else "train"
    folder = place.directory / published
    columns = [read_lines(folder / name) for name in FILES]
    if len({len(column) for column in columns}) != 1:
        counts = ", ".join(f"{name} {len(column)}" for name, column in zip(FILES, columns, strict=True))
        raise UserError(
            f"the files in {folder} differ in their numbers of lines ({counts}): fetch them again"
        )
    rows = [(i, *(text.strip() for text in row)) for i, row in enumerate(zip(*columns, strict=True))]
    chosen = place.choose(rows, lambda row: f"coco_qa_2015.{row[1]}", split, limit, shares=SHARES)
    return [_question(place.directory, published, *row) for row in chosen]


def _question(
    directory: Path, published: str, line: int, image_id: str, question: str, answer: str, number: str
) -> Question:
    where = f"{directory / published}, line {line + 1},"
    if not image_id.isdecimal() or number not in ("0", "1", "2", "3"):
        raise UserError(
            f"{where} has image {image_id!r} and type {number!r}, so it is not a file of COCO-QA: check the path"
        )
    return Question(
        id=f"coco_qa_2015.{published}.{line}",
        instance=f"coco_qa_2015.{image_id}",
        pictures=(_picture(directory, int(image_id)),),
        prompt=question,
        answer=answer,
        kind="spatial" if number == "3" else "other",
        topic=TOPICS[int(number)],
    )


def _picture(directory: Path, image_id: int) -> StoredImage:
    paths = [directory / pattern.format(image_id) for pattern in PICTURES]
    return stored(next((path for path in paths if path.is_file()), paths[0]))
