"""A question and its picture, whatever set it comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from PIL import Image

from scale_export.core.errors import UserError
from scale_export.core.pictures import load_picture

Kind = Literal["spatial", "other"]


@dataclass(frozen=True, slots=True)
class StoredImage:
    """A picture still in its file (a path, or the file's bytes); thousands of them fit in memory undecoded.

    ``name`` is what an error calls it.
    """

    source: Path | bytes
    name: str

    def encoded(self) -> bytes:
        """The file's bytes; raises UserError where there is no such file."""
        try:
            return self.source if isinstance(self.source, bytes) else self.source.read_bytes()
        except OSError as error:
            raise UserError(f"{self.name} cannot be read ({error.strerror}): fetch it again") from None

    def decode(self) -> Image.Image:
        """The picture upright in RGB; raises UserError where it can't be read."""
        return load_picture(self.encoded(), self.name)


AnyPicture: TypeAlias = Image.Image | StoredImage
"""A picture in memory, or still in its file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What was asked earlier in a chat, and what was answered."""

    asked: str
    answered: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question, about a picture or several, or about words alone.

    Attributes:
        instance: names what is asked about: questions of one instance never lie in two splits, unless the set's own
            lines put them there.
        pictures: in the order in which the model sees them, before the first words of the chat.
        answer: the right one, and what training and calibration take for it.
        topic: a finer label within ``kind`` ("left_of", "count", ...), for tables.
        rule: how the set's authors judge an answer, one of ``scoring.OFFICIAL``.
        options: what the question lets a model choose from, in the order of its letters A, B, ...; empty for
            an open question.
        accepted: answers that count as right beside ``answer``.
        earlier: turns of the chat before the question.
    """

    id: str
    instance: str
    pictures: tuple[AnyPicture, ...] = ()
    prompt: str
    answer: str
    kind: Kind
    topic: str
    rule: str = "exact"
    options: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()
    earlier: tuple[Turn, ...] = ()

    @property
    def images(self) -> list[Image.Image]:
        """The pictures, decoded at each call where they are stored ones."""
        return [decoded(picture) for picture in self.pictures]

    @property
    def image(self) -> Image.Image | None:
        """The first picture."""
        return decoded(self.pictures[0]) if self.pictures else None


def decoded(picture: AnyPicture) -> Image.Image:
    """A picture, read from its file where it is a stored one; raises UserError as ``StoredImage.decode``."""
    return picture.decode() if isinstance(picture, StoredImage) else picture


def digest(questions: Iterable[Question]) -> str:
    """SHA-256 over ids, instances, prompts, answers, kinds, topics and pixels (a stored picture's bytes), in order.

    Other accepted answers and earlier turns count where there are some.

    It says of two reports whether they asked the same questions; ``calib/gridworld/set.toml`` records it.
    """
    sha = hashlib.sha256()
    for q in questions:
        sha.update("\0".join((q.id, q.instance, q.prompt, q.answer, q.kind, q.topic)).encode())
        if q.accepted or q.earlier:
            turns = [text for turn in q.earlier for text in (turn.asked, turn.answered)]
            sha.update("\0".join(("", *q.accepted, "", *turns)).encode())
        for picture in q.pictures:
            if isinstance(picture, StoredImage):
                sha.update(picture.encoded())
            else:
                sha.update(picture.convert("RGB").tobytes())
    return sha.hexdigest()
