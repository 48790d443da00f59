"""The lines of ``jsonl:FILE``: their fields, and one sentence with the line's number for whatever is wrong.

Fields, all texts unless said:
    1. ``id``, which no other line has.
    2. ``image``, or a list ``images``: paths below the file's folder, ``/`` between their parts. Neither: words alone.
    3. ``question``; or ``messages``, a chat of ``{"role": "user" | "assistant", "content": ...}`` in turn from a user's
       on. The content is a text, or a list with one ``{"type": "text", "text": ...}``, and in the first turn before it
       one ``{"type": "image"}`` for each picture.
    4. ``answer``, or a list ``answers`` of which each is right; not where the chat ends with the assistant's turn,
       which is the answer then.
    5. ``options``: a list of two or more, the answers among them.
    6. ``kind``: ``spatial`` (the default) or ``other``. ``topic``: a finer label for tables; by default the kind.
    7. ``split``: ``train``, ``calibration``, ``validation`` or ``test`` (``calib`` and ``val`` are taken too).
    8. ``scoring``: ``exact``, ``contains``, ``option`` or ``number``; by default ``option`` where there are options,
       else ``exact``. ``RULES`` has what they mean.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn, get_args

from scale_export.core.errors import UserError, did_you_mean
from scale_export.core.inside import check_regular, is_inside_name, is_reachable
from scale_export.core.words import Split
from scale_export.questions.question import Kind, Turn
from scale_export.questions.scoring import numbers, same_words

LONGEST_LINE: Final = 1 << 20
"""Bytes of a line, its end included."""
MOST_LINES: Final = 200_000
MOST_BYTES: Final = 1 << 28
"""Bytes of a file."""

FIELDS: Final = (
    "id",
    "image",
    "images",
    "question",
    "messages",
    "answer",
    "answers",
    "options",
    "kind",
    "topic",
    "split",
    "scoring",
)
SPLITS: Final[Mapping[str, Split]] = {split: split for split in get_args(Split)} | {
    "calib": "calibration",
    "val": "validation",
}
RULES: Final[Mapping[str, str]] = {
    "exact": "words",
    "contains": "holds",
    "option": "option",
    "number": "number",
}
"""What a line calls its scoring → the rule of ``scoring.OWN``."""

STANDS_FOR_A_PICTURE: Final = (
    "<image>",
    "<img>",
    "<|image|>",
    "<|image_pad|>",
    "<|vision_start|>",
    "<image_soft_token>",
    "<start_of_image>",
    "<image_placeholder>",
    "<IMG_CONTEXT>",
    "[IMG]",
)
"""What the prompts of the known families write for a picture; what a model writes beside is refused as it is asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One question as its line says it; ``where`` is what an error calls the line."""

    where: str
    folder: Path
    id: str
    pictures: tuple[str, ...]
    earlier: tuple[Turn, ...]
    prompt: str
    answers: tuple[str, ...]
    options: tuple[str, ...]
    kind: Kind
    topic: str
    split: Split | None
    rule: str


def lines_of(file: Path) -> Iterator[Line]:
    """Every line of a file but empty ones, each checked.

    Raises:
        UserError: the file can't be read, is larger than is taken or holds no question; or a line is not as described.
    """
    seen: dict[str, int] = {}
    first: tuple[int, Split | None] | None = None
    for number, text in _texts(file):
        where = f"{file}, line {number}"
        line = _Reader(where, _record(text, where)).line(file.parent)
        if earlier := seen.get(line.id):
            _refuse(where, f"has the id {line.id!r} of line {earlier}: give every question its own")
        seen[line.id] = number
        first = first or (number, line.split)
        if (line.split is None) != (first[1] is None):
            one, other = ("names no split", "does") if line.split is None else ("names a split", "does not")
            _refuse(where, f"{one} and line {first[0]} {other}: name it in every line or in none")
        yield line
    if first is None:
        raise UserError(f"{file} holds no question: write one JSON object in each line")


def _texts(file: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, with their numbers; read one by one."""
    check_regular(file)
    try:
        if file.stat().st_size > MOST_BYTES:
            raise UserError(
                f"{file} is larger than the {MOST_BYTES:,} bytes that are taken: keep pictures in files of their own, "
                f"or divide it"
            )
        with file.open("rb") as opened:
            number = 0
            while read := opened.readline(LONGEST_LINE + 1):
                number += 1
                where = f"{file}, line {number}"
                if len(read) > LONGEST_LINE:
                    _refuse(
                        where,
                        f"is longer than {LONGEST_LINE:,} bytes: keep pictures in files, one object a line",
                    )
                if number > MOST_LINES:
                    raise UserError(f"{file} has more than {MOST_LINES:,} lines: divide it")
                if number == 1 and read.startswith(b"\xef\xbb\xbf"):
                    _refuse(where, "begins with a byte order mark: save the file as UTF-8 without one")
                if text := _decoded(read, where).strip():
                    yield number, text
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): check its permissions") from None


def _decoded(line: bytes, where: str) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        _refuse(where, f"is not UTF-8 from byte {error.start + 1} on: save the file as UTF-8")


def _record(text: str, where: str) -> dict[str, object]:
    def refuse_constant(word: str) -> NoReturn:
        _refuse(where, f"holds {word}, which is no JSON: write a number or leave it out")

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        record = dict(pairs)
        if len(record) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            _refuse(where, f"has the field {twice!r} twice: keep one")
        return record

    try:
        found = json.loads(text, parse_constant=refuse_constant, object_pairs_hook=unique)
    except RecursionError:
        _refuse(where, "is nested too deeply: write one flat JSON object")
    except ValueError as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        _refuse(where, f"is not JSON ({reason}): write one object in each line")
    if not isinstance(found, dict):
        _refuse(where, f"holds {_kind_of(found)}, not an object: write one {{...}} in each line")
    return found


def _refuse(where: str, what: str) -> NoReturn:
    raise UserError(f"{where} {what}")


def _kind_of(value: object) -> str:
    names = {bool: "true or false", str: "a text", list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), "a number")


class _Reader:
    """The fields of one record, each as it must be."""

    def __init__(self, where: str, record: Mapping[str, object]) -> None:
        self.where, self.record = where, record
        for name in record:
            if name not in FIELDS:
                known = ", ".join(FIELDS)
                self.refuse(f"has an unknown field {name!r}{did_you_mean(name, FIELDS)}: known are {known}")

    def line(self, folder: Path) -> Line:
        """All of them; raises UserError."""
        identity = self.text("id")
        pictures = self.pictures(folder)
        turns, prompt, answered = self.chat(len(pictures))
        answers = self.answers(answered)
        options = self.options(answers)
        kind: Kind = "other" if self.word("kind", get_args(Kind)) == "other" else "spatial"
        split = self.word("split", tuple(SPLITS))
        return Line(
            where=self.where,
            folder=folder,
            id=identity,
            pictures=pictures,
            earlier=turns,
            prompt=prompt,
            answers=answers,
            options=options,
            kind=kind,
            topic=self.text("topic") if "topic" in self.record else kind,
            split=None if split is None else SPLITS[split],
            rule=self.rule(answers, options),
        )

    def refuse(self, what: str) -> NoReturn:
        _refuse(self.where, what)

    def text(self, name: str) -> str:
        """A text that says something."""
        if name not in self.record:
            self.refuse(f"has no {name!r}: add it")
        return self.said(self.record[name], repr(name))

    def said(self, value: object, what: str) -> str:
        if not isinstance(value, str):
            self.refuse(f"has {_kind_of(value)} for {what}: write a text")
        if not value.strip():
            self.refuse(f"has an empty {what}: write it, or take the line out")
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            self.refuse(f"has half a character (a lone surrogate) in {what}: write it whole")
        for word in STANDS_FOR_A_PICTURE:
            if word in value:
                self.refuse(
                    f"has {word!r} in {what}, which stands for a picture in prompts: name pictures in 'images' and "
                    f"take the word out"
                )
        return value

    def texts(self, name: str, least: int) -> tuple[str, ...]:
        """A list of texts."""
        value = self.record[name]
        if not isinstance(value, list):
            self.refuse(f"has {_kind_of(value)} for {name!r}: write a list of texts")
        if len(value) < least:
            self.refuse(f"has {len(value)} in its list {name!r}: write {least} or more")
        found = tuple(self.said(item, f"{name!r}, item {number}") for number, item in enumerate(value, 1))
        if twice := next((item for item in found if found.count(item) > 1), None):
            self.refuse(f"has {twice!r} twice in {name!r}: keep one")
        return found

    def word(self, name: str, known: tuple[str, ...]) -> str | None:
        """One of a few words; None where the field isn't there."""
        if name not in self.record:
            return None
        value = self.text(name)
        if value not in known:
            hint = did_you_mean(value, known)
            self.refuse(f"has an unknown {name} {value!r}{hint}: known are {', '.join(known)}")
        return value

    def one_of(self, first: str, second: str) -> str | None:
        """The name of the field that there is; None without one."""
        there = [name for name in (first, second) if name in self.record]
        if len(there) > 1:
            self.refuse(f"has both {first!r} and {second!r}: keep one")
        return there[0] if there else None

    def pictures(self, folder: Path) -> tuple[str, ...]:
        """The names of the pictures, each of a file below ``folder``."""
        named = self.one_of("image", "images")
        if named is None:
            return ()
        names = (self.text("image"),) if named == "image" else self.texts("images", 1)
        for name in names:
            if not is_inside_name(name):
                self.refuse(
                    f"names the picture {name!r}, which is no path below {folder}: put the picture beside the file and "
                    f"write its name from there"
                )
            try:
                real = (folder / name).resolve(strict=True)
            except (OSError, RuntimeError):
                self.refuse(
                    f"names the picture {name!r}, which is not in {folder}: add it or correct the name"
                )
            if not is_reachable(real, folder):
                self.refuse(
                    f"names the picture {name!r}, a link that leads out of {folder}: copy the picture there"
                )
            if not real.is_file():
                self.refuse(f"names the picture {name!r}, which is no file: name a picture's file")
        return names

    def chat(self, pictures: int) -> tuple[tuple[Turn, ...], str, str | None]:
        """The turns before the question, the question, and the answer that ends the chat, where one does."""
        named = self.one_of("question", "messages")
        if named is None:
            self.refuse("has neither 'question' nor 'messages': ask something")
        if named == "question":
            return (), self.text("question"), None
        messages = self.record["messages"]
        if not isinstance(messages, list) or not messages:
            self.refuse('has no list of turns in \'messages\': write [{"role": "user", "content": ...}, ...]')
        said = [self.turn(message, number, pictures) for number, message in enumerate(messages, 1)]
        answered = said.pop() if len(said) % 2 == 0 else None
        pairs = zip(said[:-1:2], said[1::2], strict=True)
        return tuple(Turn(asked=asked, answered=reply) for asked, reply in pairs), said[-1], answered

    def turn(self, message: object, number: int, pictures: int) -> str:
        """The words of a turn that is in its place."""
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            self.refuse(f'has a turn {number} that is no {{"role": ..., "content": ...}}: write it so')
        due = "user" if number % 2 else "assistant"
        if message["role"] != due:
            self.refuse(
                f"has turn {number} of its chat by {message['role']!r} where {due!r} is due: let user and assistant "
                f"take turns, the user first"
            )
        content = message["content"]
        if isinstance(content, str):
            return self.said(content, f"turn {number}")
        if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
            self.refuse(
                f"has a turn {number} whose content is neither a text nor a list of parts: write a text"
            )
        shown, text = content[:-1], content[-1] if content else {}
        if (
            any(part != {"type": "image"} for part in shown)
            or set(text) != {"type", "text"}
            or text["type"] != "text"
        ):
            self.refuse(
                f'has parts in turn {number} that are not {{"type": "image"}} and then one {{"type": "text", '
                f"\"text\": ...}}: write them so, and name pictures in 'images'"
            )
        if shown and (number > 1 or len(shown) != pictures):
            self.refuse(
                f"shows {len(shown)} pictures in turn {number} and names {pictures}: show every picture in the first "
                f"turn"
            )
        return self.said(text["text"], f"turn {number}")

    def answers(self, answered: str | None) -> tuple[str, ...]:
        """The right answers, the first of them the one to learn."""
        named = self.one_of("answer", "answers")
        if answered is not None:
            if named is not None:
                self.refuse(f"ends its chat with an answer and has {named!r} too: keep one")
            return (answered,)
        if named is None:
            self.refuse("has no 'answer': add it")
        return (self.text("answer"),) if named == "answer" else self.texts("answers", 1)

    def options(self, answers: tuple[str, ...]) -> tuple[str, ...]:
        """What there is to choose from; the answers are among it."""
        if "options" not in self.record:
            return ()
        options = self.texts("options", 2)
        if len(options) > 26:
            self.refuse(f"has {len(options)} options, more than there are letters: keep 26 at the most")
        for answer in answers:
            if not any(same_words(answer, option) for option in options):
                self.refuse(
                    f"has the answer {answer!r}, which is none of its options: write an option in full"
                )
        return options

    def rule(self, answers: tuple[str, ...], options: tuple[str, ...]) -> str:
        """How an answer is judged, by the name that ``scoring`` knows."""
        named = self.word("scoring", tuple(RULES)) or ("option" if options else "exact")
        if named == "option" and not options:
            self.refuse("has the scoring 'option' and no options: add 'options'")
        if named == "number":
            for answer in answers:
                if len(numbers(answer)) != 1:
                    self.refuse(f"has the scoring 'number' and the answer {answer!r}: write one number")
        return RULES[named]
