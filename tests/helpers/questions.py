"""Small sets in the formats that users have on their disks, made for the tests."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from tests.helpers.pictures import picture

MAP = """Consider a map with multiple objects:
Blue Barn is in the map. Cat Café is to the Northeast of Blue Barn.

Please answer the following multiple-choice question based on the provided information. In which direction is Cat Café \
relative to Blue Barn? Available options:
A. Northeast
B. Northwest
C. Southwest
D. Southeast."""
COUNT = "How many shops are there?\n\nAvailable options:\nA. 1\nB. 11\nC. 2\nD. 4"
OBJECT = "Which one is it?\n\nAvailable options:\nA. Cat\nB. Cat Café\nC. Dog House\nD. Zoo"
PATH = "Is it the shortest path?\n\nAvailable options:\nA. Yes\nB. No"
PHOTO = "How many people are there?\n\nAvailable options:\nA. three\nB. two"
ASKED = {
    "spatialmap": [(MAP, "Northeast"), (OBJECT, "Cat"), (COUNT, "1")],
    "mazenav": [(COUNT, "2"), (COUNT, "4"), (PATH, "No")],
    "spatialgrid": [(COUNT, "11"), (OBJECT, "Dog House"), (OBJECT, "Cat")],
    "spatialreal": [(PHOTO, "two")],
}


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "PNG")
    return buffer.getvalue()


def spatialeval_records(configuration: str = "vqa", instances: int = 12) -> list[dict[str, Any]]:
    """Every question of every task on a few instances, as the published rows are; pictures by their bytes.

    The text configuration has no column of pictures.
    """
    records = []
    for task, questions in ASKED.items():
        for instance in range(instances):
            for number, (text, answer) in enumerate(questions):
                option = next(
                    (line[0] for line in text.splitlines() if line.rstrip(".").endswith(f". {answer}")), ""
                )
                record = {
                    "id": f"{task}.{configuration}.{instance}.{number}",
                    "image": {"bytes": png(instance), "path": f"{task}_{instance}.png"},
                    "text": text,
                    "oracle_answer": answer,
                    "oracle_option": option,
                    "oracle_full_answer": f"{option}. {answer}",
                }
                if configuration == "tqa":
                    del record["image"]
                records.append(record)
    return records


def spatialeval_parquet(directory: Path, configuration: str = "vqa", **changes: Any) -> Path:
    """``directory/vqa/test-0000N-of-00002.parquet``, as the hub's download leaves it; returns that folder."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = directory / configuration
    folder.mkdir(parents=True)
    records = [{**record, **changes} for record in spatialeval_records(configuration)]
    half = len(records) // 2
    for number, part in enumerate((records[:half], records[half:])):
        pq.write_table(pa.Table.from_pylist(part), folder / f"test-{number:05}-of-00002.parquet")
    return folder


def spatialeval_export(directory: Path, **changes: Any) -> Path:
    """One JSONL file with its pictures beside it; returns the directory."""
    (directory / "images").mkdir(parents=True)
    lines = []
    for record in spatialeval_records():
        name = f"images/{record['id']}.png"
        (directory / name).write_bytes(record["image"]["bytes"])
        lines.append(json.dumps({**record, "image": name, **changes}))
    (directory / "spatialeval.jsonl").write_text("\n".join(lines) + "\n")
    return directory


def whatsup(directory: Path, name: str = "coco_qa", *, questions: bool = True) -> Path:
    """What'sUp's captions of 30 photos, AdaptVis' questions on them, and the photos."""
    folder = {"coco_qa": "val2017", "vg_qa": "vg_images"}[name]
    (directory / folder).mkdir(parents=True)
    captions = []
    asked = []
    for i in range(30):
        image_id = 100 + i // 2
        true, false = ("left", "right") if i % 3 else ("right", "left")
        captions.append([image_id, f"A photo of a dog on the {true}", f"A photo of a dog on the {false}"])
        question = "<image>\nUSER: Where is the dog in the photo? Answer with left, right, top or bottom.\nASSISTANT:"
        asked.append({"id": i, "question": question, "answer": [true.capitalize()]})
        stem = f"{image_id:012}" if name == "coco_qa" else str(image_id)
        picture(image_id).save(directory / folder / f"{stem}.jpg")
    (directory / f"{name}_one_obj.json").write_text(json.dumps(captions))
    if questions:
        count = "four" if name == "coco_qa" else "six"
        file = directory / "prompts" / f"{name.upper()}_one_obj_with_answer_{count}_options.jsonl"
        file.parent.mkdir()
        file.write_text("".join(json.dumps(record) + "\n" for record in asked))
    return directory


def coco_qa_2015(directory: Path) -> Path:
    """The older COCO-QA: four aligned files for each of train and test, and COCO's photos of 2014."""
    for split, folder, first in (("train", "train2014", 1000), ("test", "val2014", 2000)):
        (directory / split).mkdir(parents=True)
        (directory / folder).mkdir()
        lines: dict[str, list[str]] = {"img_ids": [], "questions": [], "answers": [], "types": []}
        for i in range(40):
            lines["img_ids"].append(str(first + i // 2))
            lines["questions"].append("what is the color of the bear" if i % 4 == 2 else "where is the bear")
            lines["answers"].append("white" if i % 4 == 2 else "forest")
            lines["types"].append(str((0, 1, 2, 3)[i % 4]))
            name = f"COCO_{folder}_{first + i // 2:012}.jpg"
            Image.new("RGB", (32, 24), (i, 0, 0)).save(directory / folder / name)
        for name, column in lines.items():
            (directory / split / f"{name}.txt").write_text("\n".join(column) + "\n")
    return directory
