"""The base model that scalars belong to: its files, config, family, processor and Hugging Face module."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from scale_export.core.borders import refusing
from scale_export.core.errors import UserError
from scale_export.core.hub import fetch, hub_name
from scale_export.core.huggingface import Config, Model, Processor
from scale_export.core.inside import check_regular
from scale_export.core.records import DecoderSpec
from scale_export.device.rules import GenerationRules, read_rules
from scale_export.families import resolve_family
from scale_export.families._family import Family
from scale_export.families._generic import without_weights
from scale_export.families._layout import module_shapes
from scale_export.families._towers.tower import VisionTower

from .checkpoint import Checkpoint
from .independent import IndependentReader
from .plain import check_no_adapter, check_plain
from .settings import AGAIN, check_shapes, read_config
from .streaming import own_reader, streamed_model
from .weights import CheckpointWeights


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """An opened base model; heavy parts load on first use.

    ``name`` is what a package records: the hub id, or a local directory's own name without its path.
    ``picture_size`` stands in for the image processor's own ``size``; see ``Family.fitting_size``. ``held`` keeps the
    decoder's weights in memory once they were read, for models that fit.
    """

    name: str
    checkpoint: Checkpoint
    config: Config
    family: Family
    picture_size: Mapping[str, int] | None = None
    held: bool = False

    @property
    def directory(self) -> Path:
        return self.checkpoint.directory

    @functools.cached_property
    def spec(self) -> DecoderSpec:
        """The language decoder's shape; raises UserError where the config describes none."""
        path = self.directory / "config.json"
        with refusing(f"{path} describes no decoder of {self.family.model_type}", AGAIN):
            return self.family.decoder_spec(self.config)

    @functools.cached_property
    def skeleton(self) -> Model:
        """The Hugging Face model, its tensors shapes only, which are those of the checkpoint.

        Raises:
            UserError: Hugging Face can't build it from the config, or weights are missing or of other shapes.
        """
        with refusing(f"transformers cannot build the model of {self.directory / 'config.json'}", AGAIN):
            model = without_weights(self.config)
        check_shapes(_shapes(model), self.checkpoint)
        check_shapes(module_shapes(self.spec, self.family.text_prefix).items(), self.checkpoint)
        return model

    @property
    def image_token_id(self) -> int:
        """The id of the token that stands where image features go."""
        with refusing(f"{self.directory / 'config.json'} names no image token", AGAIN):
            return self.family.image_token_id(self.config)

    @functools.cached_property
    def stored_weights(self) -> CheckpointWeights:
        """The language decoder's weights, read from disk tensor by tensor; nothing is held."""
        return CheckpointWeights(checkpoint=self.checkpoint, spec=self.spec, prefix=self.family.text_prefix)

    @functools.cached_property
    def weights(self) -> CheckpointWeights:
        """The language decoder's weights: each tensor is read once where ``held`` says so, else at every use."""
        return replace(self.stored_weights, held={}) if self.held else self.stored_weights

    @functools.cached_property
    def processor(self) -> Processor:
        """Hugging Face's processor of this model, its pictures of ``picture_size`` where that is given."""
        if self.picture_size is None:
            return self.own_processor
        processor = self.family.load_processor(self.directory)
        processor.image_processor.size = type(processor.image_processor.size)(**self.picture_size)
        return processor

    @functools.cached_property
    def own_processor(self) -> Processor:
        """The same as its owner uses it, whatever a target's limit makes of its pictures."""
        return self.family.load_processor(self.directory)

    @functools.cached_property
    def rules(self) -> GenerationRules:
        """By which the tokens of an answer are chosen; raises UserError as ``read_rules``."""
        return read_rules(self.directory, self.processor.tokenizer)

    @functools.cached_property
    def model(self) -> Model:
        """The Hugging Face model in float32, in evaluation mode: the reference of every parity leg."""
        import torch
        from transformers import AutoModelForImageTextToText

        model = AutoModelForImageTextToText.from_pretrained(
            self.directory, dtype=torch.float32, trust_remote_code=False
        )
        quiet: Model = model.eval().requires_grad_(False)
        return quiet

    @functools.cached_property
    def streamed_model(self) -> Model:
        """The same model with its language decoder's weights left on disk; see ``streaming``."""
        return streamed_model(own_reader(self.checkpoint), self.config)

    @functools.cached_property
    def streamed_reference(self) -> Model:
        """The same, its weights read without ``checkpoint``: what exports of models larger than memory are held to."""
        return streamed_model(IndependentReader(self.directory, self.skeleton), self.config)

    @functools.cached_property
    def vision(self) -> VisionTower:
        """The vision tower with its projector in float32; loads nothing else."""
        return self.family.vision_module(self.streamed_model)


def _shapes(model: Model) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, weight in model.named_parameters(remove_duplicate=False):
        yield name, tuple(weight.shape)


def open_base(name: str, *, relative_to: Path | None = None) -> BaseModel:
    """Open a base model by directory (tried relative to ``relative_to`` first) or by hub id, ``@REVISION`` behind it.

    Raises:
        UserError: nothing of that name here or on the hub, a model type that is not supported, weights that are
            quantized, or an adapter beside them.
    """
    local = _local_directory(name, relative_to)
    directory, name = (local, local.name) if local else _download(name)
    for file in directory.iterdir():
        check_regular(file)
    check_no_adapter(directory)
    checkpoint = Checkpoint(directory)
    check_plain(checkpoint)
    vision = checkpoint.config.get("vision_config")
    tower = vision.get("model_type") if isinstance(vision, dict) else None
    family = resolve_family(
        str(checkpoint.config.get("model_type")), tower if isinstance(tower, str) else None
    )
    config = read_config(checkpoint)
    return BaseModel(name=name, checkpoint=checkpoint, config=config, family=family)


def _local_directory(name: str, relative_to: Path | None) -> Path | None:
    candidates = [relative_to / name] if relative_to else []
    for candidate in (*candidates, Path(name)):
        if os.path.isdir(candidate):  # noqa: PTH112 - false of a name that no file can have, where Path raises
            return candidate.resolve()
    return None


def _download(name: str) -> tuple[Path, str]:
    """The snapshot of a model on the hub, and its id without a revision."""
    found = hub_name(name)
    if found is None:
        raise UserError(
            f"there is no base model directory {name}: name one that exists, or a hub id OWNER/NAME"
        )
    files = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
    return fetch(found, "base model", files=files), found.repo
