"""LoRA and IA3 through ``peft``, on the same batches, steps and stopping rule as the scalars."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import ModuleType

import torch
from torch import nn

from scale_export.core.errors import UserError
from scale_export.core.huggingface import Model
from scale_export.model.sites import text_decoder

from .examples import Example
from .loop import Fit, FullScorer, fit
from .options import ProgressCallback, TrainOptions

LORA_RANK = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """How one ``peft`` method is set up; ``config`` makes its configuration from ``peft`` and the decoder."""

    name: str
    learning_rate: float
    config: Callable[[ModuleType, Sequence[str]], object]


def _ending(modules: Sequence[str], *names: str) -> list[str]:
    return [module for module in modules if module.rsplit(".", 1)[-1] in names]


BASELINES: tuple[Baseline, ...] = (
    Baseline(
        name=f"LoRA r{LORA_RANK}",
        learning_rate=2e-3,
        config=lambda peft, linears: peft.LoraConfig(
            r=LORA_RANK, lora_alpha=2 * LORA_RANK, lora_dropout=0.0, target_modules=list(linears)
        ),
    ),
    Baseline(
        name="IA3",
        learning_rate=5e-2,
        config=lambda peft, linears: peft.IA3Config(
            target_modules=_ending(linears, "k_proj", "v_proj", "down_proj"),
            feedforward_modules=_ending(linears, "down_proj"),
        ),
    ),
)
"""Learning rates were chosen on the validation split of the shipped grid world."""


def import_peft() -> ModuleType:
    """The ``peft`` library.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module("peft")
    except ImportError as error:
        raise UserError(
            "baselines need peft, which is not installed: pip install 'scale-export[train]', or leave out --baselines"
        ) from error


@contextmanager
def trained_baseline(
    baseline: Baseline,
    model: Model,
    pad_id: int,
    *,
    train: Sequence[Example],
    validation: Sequence[Example],
    options: TrainOptions,
    progress: ProgressCallback,
) -> Iterator[tuple[Model, int, Fit]]:
    """The model with a trained baseline in it: (model, trained parameters, course); the base comes back.

    Raises:
        UserError: as ``import_peft`` and ``fit``.
    """
    peft = import_peft()
    wanted = {name: p.requires_grad for name, p in model.named_parameters()}
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name of the past
        torch.manual_seed(options.seed)
        wrapped = peft.get_peft_model(model, baseline.config(peft, decoder_linears(model)))
    wrapped.eval()
    try:
        moved = [p for p in wrapped.parameters() if p.requires_grad]
        course = fit(
            FullScorer(wrapped, None, pad_id),
            moved,
            train,
            validation,
            options=replace(options, learning_rate=baseline.learning_rate),
            progress=progress,
            stage=baseline.name,
        )
        yield wrapped, sum(p.numel() for p in moved), course
    finally:
        wrapped.unload()
        _restore_gradients(model, wanted)


def _restore_gradients(model: Model, wanted: Mapping[str, bool]) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(wanted[name])


def decoder_linears(model: Model) -> list[str]:
    """The names of every linear layer inside the decoder's layers."""
    inside = {id(m) for m in text_decoder(model).layers.modules()}  # type: ignore[union-attr]
    return [name for name, m in model.named_modules() if isinstance(m, nn.Linear) and id(m) in inside]
