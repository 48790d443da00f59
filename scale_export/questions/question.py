"""A question and its picture, whatever set it comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question about one picture.

    Attributes:
        instance: names the picture: questions of one instance never lie in two splits.
        topic: a finer label within ``kind`` ("left_of", "count", ...), for tables.
        rule: how the set's authors judge an answer, one of ``scoring.OFFICIAL``.
        options: what the question lets a model choose from, in the order of its letters A, B, ...; empty for
            an open question.
    """

    id: str
    instance: str
    picture: Image.Image | StoredImage | None
    prompt: str
    answer: str
    kind: Kind
    topic: str
    rule: str = "exact"
    options: tuple[str, ...] = ()

    @property
    def image(self) -> Image.Image | None:
        """The picture, decoded at each call where it is a stored one."""
        return self.picture.decode() if isinstance(self.picture, StoredImage) else self.picture

    @property
    def images(self) -> list[Image.Image]:
        """The picture in a list, or an empty one."""
        image = self.image
        return [] if image is None else [image]


def digest(questions: Iterable[Question]) -> str:
    """SHA-256 over ids, instances, prompts, answers, kinds, topics and pixels (a stored picture's bytes), in order.

    It says of two reports whether they asked the same questions; ``calib/gridworld/set.toml`` records it.
    """
    sha = hashlib.sha256()
    for q in questions:
        sha.update("\0".join((q.id, q.instance, q.prompt, q.answer, q.kind, q.topic)).encode())
        if isinstance(q.picture, StoredImage):
            sha.update(q.picture.encoded())
        elif q.picture is not None:
            sha.update(q.picture.convert("RGB").tobytes())
    return sha.hexdigest()
