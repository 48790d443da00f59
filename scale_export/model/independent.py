"""A base model's weights for a reference that must not share our reader: transformers' rules, read by safetensors.

A bug of ``Checkpoint`` or ``CheckpointWeights`` on both sides of a comparison would excuse itself: tensors swapped, a
wrong shard, a lost tie or a wrong cast move both alike. So nothing of them is used here. Which stored tensor a
parameter is, and what is tied to what, transformers says, as it would when it loads the model; where a tensor lies,
safetensors says of every file that the index names, the last of them counting as in transformers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from scale_export.compat.transformers import parameter_names
from scale_export.core.borders import refusing
from scale_export.core.errors import UserError
from scale_export.core.huggingface import Model

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
AGAIN = "download the model again"

READER = "weights read by safetensors, under the names that transformers gives them"
"""What a report says of a reference whose weights come from here."""


class IndependentReader:
    """The parameters of a model directory, one at a time; nothing of them is held.

    Args:
        directory: of the model.
        skeleton: Hugging Face's model of it, shapes only.

    Raises:
        UserError: files that safetensors can't read, or a parameter that transformers would compute from others.
    """

    def __init__(self, directory: Path, skeleton: Model) -> None:
        with refusing(f"the weights in {directory} cannot be read", AGAIN):
            self._files = {name: file for file in _files(directory) for name in _names(file)}
            names, converted = parameter_names(skeleton, self._files)
        if converted:
            raise UserError(
                f"transformers computes {converted[0]} of {directory} from what is stored, which streaming can't: use "
                f"--parity full, with enough memory"
            )
        self._stored = {**names, **_tied(skeleton, names)}
        self._directory = directory

    def __call__(self, name: str) -> Tensor:
        """A parameter of the model in float32, by its module's name; raises UserError where no file holds it."""
        stored = self._stored.get(name)
        if stored is None:
            raise UserError(f"{self._directory} holds nothing that transformers loads as {name}: {AGAIN}")
        file = self._files[stored]
        with refusing(f"{stored} in {file} cannot be read", AGAIN), safe_open(file, framework="pt") as opened:
            value: Tensor = opened.get_tensor(stored)
        return value.to(dtype=torch.float32)


def _files(directory: Path) -> Iterator[Path]:
    if (directory / WHOLE).is_file():
        yield directory / WHOLE
        return
    index = json.loads((directory / INDEX).read_text(encoding="utf-8"))
    yield from (directory / name for name in sorted(set(index["weight_map"].values())))


def _names(file: Path) -> Iterable[str]:
    with safe_open(file, framework="pt") as opened:
        return list(opened.keys())


def _tied(skeleton: Model, stored: Mapping[str, str]) -> dict[str, str]:
    """Parameters that no file holds, by what transformers ties them to, in either direction."""
    ties = [*skeleton.all_tied_weights_keys.items()]
    ties += [(source, target) for target, source in ties]
    return {name: stored[other] for name, other in ties if name not in stored and other in stored}
