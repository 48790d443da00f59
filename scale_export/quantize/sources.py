"""What a model is calibrated on: a question set, plain text, or what it writes itself.

``--calib`` names it: ``NAME`` or ``NAME:ARGUMENT`` of a question set; ``text:PATH`` or ``text:PATH,tokens=N``;
``self``, or ``self:N`` with ``seed=S`` and ``images=DIR``, as in ``self:64,seed=1,images=photos``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from scale_export.core.defaults import TEXT_TOKENS, WRITTEN_SEQUENCES
from scale_export.core.errors import UserError, did_you_mean
from scale_export.questions import dataset_names, load_questions, public_name

MOST_SEQUENCES: Final = 1024
"""How many sequences a model is asked to write at the most."""
TOKENS: Final = range(8, 2049)
"""How many tokens a window of text may have."""
PICTURES: Final = frozenset({".png", ".jpg", ".jpeg", ".mpo", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
"""How the names of pictures end in the folder of ``self:images=DIR``."""


@dataclass(frozen=True, slots=True)
class QuestionSource:
    """The calibration split of a question set, by its name."""

    spec: str

    @property
    def public(self) -> str:
        """What reports and manifests call it."""
        return public_name(self.spec)

    def words(self, limit: int, *, pictures: bool) -> str:
        """It in words, of ``limit`` examples at the most."""
        return f"up to {limit} questions of {self.public}{_without(pictures)}"

    def check(self) -> None:
        """Raises UserError where it can't be loaded, or has nothing to calibrate on."""
        if not load_questions(self.spec, "calibration", limit=1):
            raise UserError(
                f"question set {self.public} has no calibration questions: name another set with --calib, or give its "
                f"lines that split"
            )


@dataclass(frozen=True, slots=True)
class TextSource:
    """Plain text on a disk, a file or a folder of ``.txt`` files, in windows of so many tokens."""

    path: Path
    tokens: int

    @property
    def public(self) -> str:
        """As ``QuestionSource.public``: the place is left out."""
        return f"text:tokens={self.tokens}"

    def words(self, limit: int, *, pictures: bool) -> str:
        """As ``QuestionSource.words``."""
        return f"up to {limit} windows of {self.tokens} tokens of text"

    def files(self) -> list[Path]:
        """The files, in the order of their names; raises UserError where there is none."""
        if self.path.is_dir():
            found = sorted(path for path in self.path.rglob("*.txt") if path.is_file())
            if not found:
                raise UserError(f"there is no .txt file in {self.path} to calibrate on: name another folder")
            return found
        if not self.path.is_file():
            raise UserError(f"there is no text {self.path} to calibrate on: check the path")
        return [self.path]

    def check(self) -> None:
        """Raises UserError where no file is there."""
        self.files()


@dataclass(frozen=True, slots=True)
class SelfSource:
    """Short chats that the model writes itself, most about a picture: a user's, or a generated one."""

    sequences: int = WRITTEN_SEQUENCES
    seed: int = 0
    images: Path | None = None

    @property
    def public(self) -> str:
        """As ``QuestionSource.public``: the place is left out."""
        return f"self:{self.sequences},seed={self.seed}{'' if self.images is None else ',images='}"

    def words(self, limit: int, *, pictures: bool) -> str:
        """As ``QuestionSource.words``."""
        about = "your pictures" if self.images is not None else "generated pictures"
        shown = f"about {about}" if pictures else "without pictures"
        return f"{min(limit, self.sequences)} chats {shown} that the model writes itself (seed {self.seed})"

    def picture_files(self) -> list[Path]:
        """The user's pictures, in the order of their names; raises UserError where there is none."""
        assert self.images is not None, "the pictures are a user's"
        if not self.images.is_dir():
            raise UserError(f"there is no folder {self.images} of pictures to calibrate on: check the path")
        found = sorted(path for path in self.images.iterdir() if path.suffix.lower() in PICTURES)
        if not found:
            raise UserError(f"there is no picture in {self.images} to calibrate on: name another folder")
        return found

    def check(self) -> None:
        """Raises UserError where its pictures aren't there."""
        if self.images is not None:
            self.picture_files()


Source: TypeAlias = QuestionSource | TextSource | SelfSource


def parse_source(spec: str) -> Source:
    """What ``--calib`` names; nothing is read.

    Raises:
        UserError: an unknown name, or an argument that is malformed.
    """
    name, _, argument = spec.partition(":")
    if name == "text":
        return _text(argument)
    if name == "self":
        return _self(argument)
    if name not in dataset_names():
        known = [*dataset_names(), "text", "self"]
        raise UserError(
            f"unknown question set {name!r}{did_you_mean(name, known)}; --calib takes {', '.join(known)}"
        )
    return QuestionSource(spec)


def _text(argument: str) -> TextSource:
    path, found, count = argument.partition(",tokens=")
    if not path or path.startswith("tokens="):
        raise UserError("text is read from your disk: name a file or a folder of .txt files, text:PATH")
    tokens = _number("text", "tokens", count) if found else TEXT_TOKENS
    if tokens not in TOKENS:
        raise UserError(f"text's tokens={tokens} is refused: give {TOKENS.start} to {TOKENS.stop - 1}")
    return TextSource(Path(path).expanduser(), tokens)


def _self(argument: str) -> SelfSource:
    rest, found, images = argument.partition("images=")
    if found and not images:
        raise UserError(
            "self's images= names no folder: give self:images=DIR with your pictures, or leave it out"
        )
    numbers = {"sequences": WRITTEN_SEQUENCES, "seed": 0}
    for part in filter(None, rest.split(",")):
        name, _, value = part.rpartition("=")
        name = name or "sequences"
        if name not in ("sequences", "seed"):
            hint = did_you_mean(name, ("seed", "images"))
            raise UserError(
                f"self has no option {name!r}{hint}: give self:N,seed=S,images=DIR or a part of it"
            )
        numbers[name] = _number("self", name, value)
    if numbers["sequences"] not in range(1, MOST_SEQUENCES + 1):
        raise UserError(f"self:{numbers['sequences']} is refused: give 1 to {MOST_SEQUENCES} sequences")
    return SelfSource(numbers["sequences"], numbers["seed"], Path(images).expanduser() if found else None)


def _number(source: str, name: str, value: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", value):
        raise UserError(
            f"{source}'s {name} must be a whole number, not {value!r}: give one, such as {name}=32"
        )
    return int(value)


def _without(pictures: bool) -> str:
    return "" if pictures else " without their pictures"
