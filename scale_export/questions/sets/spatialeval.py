"""SpatialEval (MilaWang/SpatialEval): maps, mazes, grids and photos, asked in text, in pictures, or in both.

``spatialeval:DIR`` reads what ``huggingface-cli download`` leaves of one configuration (``DIR/*.parquet``, or
``DIR/vqa/*.parquet`` where ``DIR`` holds one of tqa, vqa and vtqa only), or an export of it: one ``.jsonl`` with the
same fields, whose ``image`` is a path from ``DIR``. Parquet needs pyarrow (the ``[data]`` extra).

Fields: ``id`` (task.configuration.instance.question), ``image``, ``text``, ``oracle_answer``, ``oracle_option``,
``oracle_full_answer``. The set was published with a test split only; it is divided by task and instance, by the rule
of ``_files``. Every question is spatial.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from scale_export.core.errors import UserError
from scale_export.core.inside import is_inside_name
from scale_export.core.words import Split
from scale_export.questions.files import place_of, read_jsonl, stored, text_field
from scale_export.questions.question import Question, StoredImage

ON_DISK = True
CONFIGURATIONS = ("tqa", "vqa", "vtqa")
TASKS: Mapping[str, tuple[str, ...]] = {
    "spatialmap": ("direction", "object", "count"),
    "mazenav": ("right_turns", "turns", "path"),
    "spatialgrid": ("count", "animal_1", "animal_2"),
    "spatialreal": ("photo",),
}
"""Task → what its questions 0, 1, … ask for."""
TEXTS = ("id", "text", "oracle_answer")


@dataclass(frozen=True, slots=True)
class Row:
    """One record without its picture; ``image`` is the export's path, None in parquet files and without one."""

    id: str
    text: str
    answer: str
    image: Path | None

    @property
    def task(self) -> str:
        """``spatialmap``."""
        return self.id.split(".")[0]

    @property
    def number(self) -> int:
        """Which question about the instance."""
        return int(self.id.split(".")[-1])

    @property
    def instance(self) -> str:
        """Task and instance, the same in all three configurations."""
        return f"{self.task}.{self.id.split('.')[2]}"


def load(argument: str, split: Split, limit: int | None) -> list[Question]:
    """The questions of a split, in the order of their instances' hashes.

    Raises:
        UserError: no such directory, no files or several configurations in it, a missing field, an id that is not
            SpatialEval's, a missing picture, or parquet files without pyarrow.
    """
    place = place_of("spatialeval", argument)
    directory = _configuration(place.directory)
    parquet = _parquet_files(directory)
    rows = _parquet_rows(parquet) if parquet else _exported_rows(directory)
    chosen = place.choose(rows, lambda row: row.instance, split, limit)
    pictures = _parquet_pictures(parquet, {row.id for row in chosen}) if parquet else {}
    return [
        _question(row, pictures.get(row.id) or (stored(row.image) if row.image else None)) for row in chosen
    ]


def _configuration(directory: Path) -> Path:
    if _parquet_files(directory) or any(directory.glob("*.jsonl")):
        return directory
    found = [name for name in CONFIGURATIONS if (directory / name).is_dir()]
    if len(found) != 1:
        ways = f"it holds {', '.join(found)}" if found else "neither *.parquet nor *.jsonl lies there"
        raise UserError(
            f"{directory} is not one configuration of SpatialEval, {ways}: name one, such as {directory}/vqa"
        )
    return directory / found[0]


def _parquet_files(directory: Path) -> list[Path]:
    """Those of the set's main branch, or of the hub's converted one."""
    return sorted(directory.glob("*.parquet")) or sorted(directory.glob("test/*.parquet"))


def _question(row: Row, picture: StoredImage | None) -> Question:
    named = TASKS[row.task]
    if picture is None and ".tqa." not in row.id:
        raise UserError(f"question {row.id} of SpatialEval has no picture: fetch the set's files again")
    return Question(
        id=row.id,
        instance=row.instance,
        pictures=() if picture is None else (picture,),
        prompt=row.text,
        answer=row.answer,
        kind="spatial",
        topic=f"{row.task}.{named[min(row.number, len(named) - 1)]}",
        rule="spatialreal" if row.task == "spatialreal" else f"{row.task}.{row.number}",
        options=options_in(row.text),
    )


def options_in(text: str) -> tuple[str, ...]:
    """The lettered lines that end a question, from the last A on; empty where there are no two of them."""
    found = re.findall(r"^\s*\(?([A-H])[.)]\s*(.+?)\s*$", text, re.MULTILINE)
    starts = [i for i, (letter, _) in enumerate(found) if letter == "A"]
    lettered = found[starts[-1] :] if starts else []
    in_turn = all(ord(letter) - ord("A") == i for i, (letter, _) in enumerate(lettered))
    return tuple(option.rstrip(".") for _, option in lettered) if len(lettered) > 1 and in_turn else ()


def _row(record: object, where: str, image: Path | None) -> Row:
    identity, text, answer = (text_field(record, field, where) for field in TEXTS)
    row = Row(identity, text, answer, image)
    parts = row.id.split(".")
    known = len(parts) == 4 and parts[0] in TASKS and parts[1] in CONFIGURATIONS and parts[3].isdecimal()
    if not known or (row.task != "spatialreal" and row.number >= len(TASKS[row.task])):
        raise UserError(
            f"{where} has the id {row.id!r}, not one like spatialmap.vqa.2000.0, so it is not "
            "SpatialEval: check the path"
        )
    return row


def _exported_rows(directory: Path) -> list[Row]:
    files = sorted(directory.glob("*.jsonl"))
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise UserError(f"{directory} should hold one .jsonl file and holds {names}: name another directory")
    rows = []
    for number, record in enumerate(read_jsonl(files[0]), 1):
        where = f"{files[0]}, record {number},"
        image = record.get("image") if isinstance(record, dict) else None
        if not isinstance(image, str | None):
            raise UserError(f"{where} has an image that is not a path: store pictures as files beside it")
        if image and not is_inside_name(image):
            raise UserError(
                f"{where} names the picture {image!r}, which is none inside {directory}: fetch the set again"
            )
        rows.append(_row(record, where, directory / image if image else None))
    return rows


def _parquet_rows(files: Iterable[Path]) -> list[Row]:
    return [_row(record, str(file), None) for file, record in _records(files, list(TEXTS))]


def _parquet_pictures(files: Iterable[Path], ids: set[str]) -> dict[str, StoredImage]:
    """The encoded pictures of the given ids; those of other rows are read past."""
    found = {}
    for file, record in _records(files, ["id", "image"], optional=True):
        image = record.get("image")
        encoded = image.get("bytes") if isinstance(image, dict) else None
        if record["id"] in ids and isinstance(encoded, bytes):
            found[record["id"]] = StoredImage(encoded, f"{file.name}: {record['id']}")
    return found


def _records(
    files: Iterable[Path], columns: list[str], *, optional: bool = False
) -> Iterator[tuple[Path, dict[str, object]]]:
    """Every record of parquet files, some columns of it."""
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError:
        raise UserError(
            "parquet files need pyarrow, which is not installed: pip install 'scale-export[data]'"
        ) from None
    for file in files:
        try:
            with ParquetFile(file) as table:
                held = set(table.schema_arrow.names)
                missing = [name for name in columns if name not in held]
                if missing and not optional:
                    raise UserError(
                        f"{file} has no column {missing[0]!r}, so it is not a file of SpatialEval: check the path"
                    )
                for batch in table.iter_batches(batch_size=16, columns=[c for c in columns if c in held]):
                    yield from ((file, record) for record in batch.to_pylist())
        except (ArrowInvalid, OSError) as error:
            raise UserError(f"{file} cannot be read as parquet ({error}): fetch it again") from None
