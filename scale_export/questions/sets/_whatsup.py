"""COCO-QA and VG-QA as What'sUp cut them: where a thing is in a photo, or in relation to another thing.

Files, in ``DIR`` or its ``data`` and ``prompts`` folders, as the repositories of What'sUp and AdaptVis leave them:
``coco_qa_one_obj.json``, ``coco_qa_two_obj.json`` (``vg_qa_…``), lists of ``[image_id, true_caption, false_caption]``;
pictures in ``val2017/000000123456.jpg`` (``vg_images/123456.jpg``); and, where AdaptVis' questions lie there,
``COCO_QA_one_obj_with_answer_four_options.jsonl`` and its kin (``…_six_options``), one ``{id, question, answer}`` a
line, where ``id`` counts the captions' records.

Where there are questions they are asked, without the chat words around them. Where there are captions only, a question
shows both, in an order that its own hash decides, and asks which is true. One of the two files of captions is enough.
The sets were published with one split each; they are divided by picture, by the rule of ``_files``. Every question is
spatial.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scale_export.core.errors import UserError
from scale_export.core.words import Split
from scale_export.questions.files import find, place_of, read_json, read_jsonl, stored
from scale_export.questions.question import Question, StoredImage

FOLDERS = ("", "data", "prompts")
OBJECTS = ("one", "two")
OPTION_COUNTS = ("four", "six")


@dataclass(frozen=True, slots=True)
class Files:
    """How one of the two sets calls its files; ``picture`` is the format of a path from the image's id."""

    name: str
    picture: str

    def load(self, argument: str, split: Split, limit: int | None) -> list[Question]:
        """The questions of a split, in the order of their pictures' hashes.

        Raises:
            UserError: no such directory, none of the set's files in it, a malformed record, or a missing picture.
        """
        place = place_of(self.name, argument)
        asked = [item for objects in OBJECTS for item in self._asked(place.directory, objects)]
        if not asked:
            captions = ", ".join(f"{self.name}_{objects}_obj.json" for objects in OBJECTS)
            raise UserError(f"{place.directory} holds none of {captions}: name the directory that does")
        chosen = place.choose(asked, lambda item: item.instance, split, limit)
        return [item.question(self._picture(place.directory, item.image_id)) for item in chosen]

    def _asked(self, directory: Path, objects: str) -> Iterator[Asked]:
        path = find(directory, f"{self.name}_{objects}_obj.json", FOLDERS)
        if path is None:
            return
        captions = read_json(path)
        if not isinstance(captions, list):
            raise UserError(f"{path} is not a list of captions: fetch it again")
        records = [_captions(record, f"{path}, record {i},") for i, record in enumerate(captions)]
        questions = self._questions(directory, objects)
        for i, (image_id, true, false) in enumerate(records):
            key = f"{self.name}_{objects}_obj.{i}"
            instance = f"{self.name}.{image_id}"
            if questions is None:
                yield Asked(key, instance, image_id, objects, *_choice(key, true, false), "captions")
            elif i in questions:
                prompt, answer = questions[i]
                options = offered(prompt, answer)
                yield Asked(key, instance, image_id, objects, prompt, answer, options, "contains")

    def _questions(self, directory: Path, objects: str) -> dict[int, tuple[str, str]] | None:
        """Record number → AdaptVis' question and answer; None where its file isn't there."""
        names = [
            f"{self.name.upper()}_{objects}_obj_with_answer_{count}_options.jsonl" for count in OPTION_COUNTS
        ]
        path = next((path for name in names if (path := find(directory, name, FOLDERS))), None)
        if path is None:
            return None
        records = enumerate(read_jsonl(path), 1)
        return dict(_adaptvis(record, f"{path}, record {number},") for number, record in records)

    def _picture(self, directory: Path, image_id: str) -> StoredImage:
        name = self.picture.format(int(image_id))
        path = find(directory, name, FOLDERS)
        return stored(path or directory / name)


@dataclass(frozen=True, slots=True)
class Asked:
    """A question without its picture."""

    key: str
    instance: str
    image_id: str
    objects: str
    prompt: str
    answer: str
    options: tuple[str, ...]
    rule: str

    def question(self, picture: StoredImage) -> Question:
        """The same with it."""
        return Question(
            id=self.key,
            instance=self.instance,
            pictures=(picture,),
            prompt=self.prompt,
            answer=self.answer,
            kind="spatial",
            topic=f"{self.objects}_object",
            rule=self.rule,
            options=self.options,
        )


def _captions(record: object, where: str) -> tuple[str, str, str]:
    """Image id, true caption, false caption."""
    if isinstance(record, list) and len(record) == 3:
        image_id, true, false = record
        if str(image_id).isdecimal() and isinstance(true, str) and isinstance(false, str):
            return str(image_id), true, false
    raise UserError(f"{where} is not [image id, true caption, false caption]: fetch the file again")


def _adaptvis(record: object, where: str) -> tuple[int, tuple[str, str]]:
    """Record number, question, answer."""
    if isinstance(record, dict):
        number, question, answer = (record.get(field) for field in ("id", "question", "answer"))
        if isinstance(number, int) and isinstance(question, str) and isinstance(answer, list) and answer:
            return number, (bare(question), str(answer[0]))
    raise UserError(f"{where} is not {{id, question, answer: [...]}}: fetch the file again")


def bare(question: str) -> str:
    """A question without the image token and the chat words that AdaptVis' files put around it."""
    text = re.sub(r"^\s*<image>\s*", "", question)
    text = re.sub(r"^USER:\s*", "", text)
    return re.sub(r"\s*ASSISTANT:\s*$", "", text).strip()


def offered(prompt: str, answer: str) -> tuple[str, ...]:
    """What "Answer with left, right, top or bottom." offers, and the true answer where it isn't among it."""
    found = re.search(r"answer with (.+?)\.", prompt, re.IGNORECASE)
    words = re.split(r",\s*(?:or\s+)?|\s+or\s+", found[1].strip()) if found else []
    options = tuple(dict.fromkeys(word.strip().lower() for word in words if word.strip()))
    if not options or answer.lower() in options:
        return options
    return (*options, answer.lower())


def _choice(key: str, true: str, false: str) -> tuple[str, str, tuple[str, ...]]:
    """Prompt, answer and options of a question that shows both captions; the key decides which comes first."""
    options = (true, false) if hashlib.sha256(key.encode()).digest()[0] % 2 else (false, true)
    lines = "\n".join(f"{letter}. {option}" for letter, option in zip("AB", options, strict=True))
    return f"Which description of the picture is true?\n{lines}\nAnswer with A or B.", true, options
