"""Plain text as calibration examples: windows of tokens in the model's own chat template.

The first half of a window stands where a user's words stand, and runs as a prompt does. The second half is decoded as
an answer is, so that the scalars of scope ``last`` act on each of its positions. Without the template, all positions
but one would be those of a prompt, and the first token, on which attention rests, would be another one than in use.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from scale_export.core.errors import UserError
from scale_export.core.huggingface import Tokenizer
from scale_export.model.base import BaseModel

from .example import Example
from .frame import frame_of
from .sources import TextSource

MOST_BYTES: Final = 1 << 24
"""Bytes of text that are read at the most."""


def text_examples(base: BaseModel, source: TextSource, limit: int) -> list[Example]:
    """Up to ``limit`` windows, evenly spread over the text.

    Raises:
        UserError: a model that takes no text alone, a file that can't be read or is no UTF-8, more text than is taken
            or less than a window, or windows longer than the model's context.
    """
    if not base.family.takes_text_alone:
        raise UserError(
            f"--calib text is refused: model type {base.family.model_type} takes no words without a picture; "
            f"name a question set, or self"
        )
    frame = frame_of(base.processor, ())
    most = base.spec.max_positions - (frame.inputs["input_ids"].shape[1] - frame.stop + frame.start)
    if source.tokens > most:
        raise UserError(
            f"--calib text with tokens={source.tokens} is refused: the model's context holds {most} beside its chat "
            f"template; give fewer"
        )
    windows = list(_windows(base.processor.tokenizer, source, {base.image_token_id}))
    if not windows:
        raise UserError(
            f"{source.path} has fewer than {source.tokens} tokens in each of its files: give more text, or smaller "
            f"windows with text:PATH,tokens=N"
        )
    count = min(limit, len(windows))
    chosen = [windows[number * len(windows) // count] for number in range(count)]
    half = source.tokens // 2
    return [
        Example(inputs=frame.filled(window[:half]), target=tuple(window[half:]), at_once=True)
        for window in chosen
    ]


def _windows(tokenizer: Tokenizer, source: TextSource, barred: Collection[int]) -> Iterator[list[int]]:
    """Each file's whole windows, one behind the other; tokens that are no words are left out."""
    special = {*tokenizer.all_special_ids, *barred}
    left = MOST_BYTES
    for file in source.files():
        text = _read(file, left)
        left -= len(text.encode())
        ids = [i for i in tokenizer(text, add_special_tokens=False).input_ids if i not in special]
        for start in range(0, len(ids) - source.tokens + 1, source.tokens):
            yield ids[start : start + source.tokens]


def _read(file: Path, most: int) -> str:
    try:
        with file.open("rb") as opened:
            read = opened.read(most + 1)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}): check its permissions") from None
    if len(read) > most:
        raise UserError(f"{file} takes the text beyond {MOST_BYTES:,} bytes: calibrate on a part of it")
    try:
        return read.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 from byte {error.start + 1} on: save it as UTF-8") from None
