"""Whether a base's processor, tokenizer, table and tower belong together, tried before a weight is read."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image

from scale_export.core.borders import refusing
from scale_export.core.errors import UserError
from scale_export.core.records import Array
from scale_export.device.prompts import encode_messages, user_message
from scale_export.model.base import BaseModel

NAMED = 3
"""How many words a sentence names."""

TOGETHER = "take config.json and the tokenizer's and processor's files from one repository"


def trial_prompt(base: BaseModel) -> dict[str, Array]:
    """A prompt with one square picture and a word, as the base's processor prepares it.

    Raises:
        UserError: the processor can't.
    """
    picture = Image.new("RGB", (256, 256))
    with refusing(f"the processor of {base.directory} cannot prepare a prompt with a picture", TOGETHER):
        _check_scales(base)
        return encode_messages(base.processor, [user_message([picture], "?")])


def _check_scales(base: BaseModel) -> None:
    images = base.processor.image_processor
    scales = [*np.atleast_1d(images.image_std if images.do_normalize else 1.0)]
    scales += [images.rescale_factor if images.do_rescale else 1.0]
    if not all(0 < scale < float("inf") for scale in scales):
        raise UserError(
            f"the image processor of {base.directory} divides pixels by image_std {images.image_std} and multiplies "
            f"them by rescale_factor {images.rescale_factor}, and both must be above 0: {TOGETHER}"
        )


def check_words(base: BaseModel) -> None:
    """Refuse a tokenizer that gives ids which the table of embeddings has no rows for.

    More rows than words are common, and right: nothing reads them.

    Raises:
        UserError: names the first of the words, or the image token.
    """
    rows = base.spec.vocab_size
    if not 0 <= base.image_token_id < rows:
        raise UserError(
            f"config.json gives images the token id {base.image_token_id}, and the table of embeddings has {rows:,} "
            f"rows: {TOGETHER}"
        )
    ids: Mapping[str, int] = base.processor.tokenizer.get_vocab()
    beyond = sorted((number, word) for word, number in ids.items() if number >= rows)
    if beyond:
        named = ", ".join(repr(word) for _, word in beyond[:NAMED])
        more = "" if len(beyond) <= NAMED else f" and {len(beyond) - NAMED:,} more"
        raise UserError(
            f"the table of embeddings of {base.directory} has {rows:,} rows, and its tokenizer gives ids beyond them "
            f"to {named}{more}: take those words out of the tokenizer, or save the model after resize_token_embeddings"
        )


def check_rows(base: BaseModel, trial: Mapping[str, Array]) -> None:
    """Refuse a processor that leaves another number of places in a prompt than the tower gives rows for.

    Args:
        trial: a prepared prompt with a picture.

    Raises:
        UserError: the numbers differ, or the prompt's ids are beyond the table.
    """
    places = int(np.count_nonzero(trial["input_ids"] == base.image_token_id))
    with refusing(f"the vision tower that {base.directory / 'config.json'} describes does not fit", TOGETHER):
        rows = _feature_rows(base, trial)
    if places != rows:
        raise UserError(
            f"the processor of {base.directory} leaves {places} places for a picture (image token "
            f"{base.image_token_id}), and the vision tower of config.json gives {rows} rows: {TOGETHER}"
        )


@torch.no_grad()
def _feature_rows(base: BaseModel, trial: Mapping[str, Array]) -> int:
    """How many rows the tower gives for a prepared prompt's pictures, worked out on shapes alone."""
    runtime = base.family.runtime_config(base.config)
    feeds = base.family.tower_inputs(trial, runtime)
    with torch.device("meta"):
        outputs = base.family.vision_module(base.skeleton)(
            **{
                name: torch.from_numpy(np.ascontiguousarray(value)).to("meta")
                for name, value in feeds.items()
            }
        )
    zeros = {name: np.zeros(tuple(value.shape), np.float32) for name, value in outputs.items()}
    return len(base.family.pack(zeros, trial, runtime))
