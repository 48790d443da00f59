"""From questions to trained scalars."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from scale_export.core.huggingface import Model, Processor
from scale_export.core.records import Float32
from scale_export.core.words import Scope
from scale_export.model.hooks import ScaleHandle, attach_trainable
from scale_export.model.sites import decoder_layers
from scale_export.questions.question import Question

from .examples import Example, encode_examples
from .loop import Fit, FullScorer, PrefixScorer, Scorer, fit
from .options import ProgressCallback, TrainOptions, silent
from .parameters import ProbeScales, ScaleParameters, chosen_layers
from .prefix import PrefixStore, can_cache_prefix
from .sensitivity import Sensitivity, measure_sensitivity


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """Trained scalars and how they came about.

    Attributes:
        layer_indices: the trained decoder layers.
        head_scale: float32 ``[nL, H]``, the effective s of each query head.
        mlp_scale: float32 ``[nL]``.
        trained: how many scalars were free to move.
        sensitivity: the ranking's table, None where no layers were selected.
        seconds: wall time of probing and training, without the encoding of questions.
    """

    scope: Scope
    layer_indices: tuple[int, ...]
    head_scale: Float32
    mlp_scale: Float32
    trained: int
    course: Fit
    sensitivity: Sensitivity | None
    seconds: float


def train_scale(
    model: Model,
    processor: Processor,
    options: TrainOptions,
    train: Sequence[Question],
    validation: Sequence[Question],
    *,
    progress: ProgressCallback = silent,
) -> TrainResult:
    """Train scalars on a Hugging Face model. Its weights and modes are as before when this returns.

    ``options.data`` is used in messages only: the questions are the ones given.

    Raises:
        UserError: layers that the model lacks, or questions of a kind that the options need are missing.
    """
    encoded = [
        encode_examples(model, processor, questions, progress, f"read {split}")
        for split, questions in (("train", train), ("validation", validation))
    ]
    pad_id = processor.tokenizer.pad_token_id or 0
    return train_on_examples(model, options, *encoded, pad_id=pad_id, progress=progress)


def train_on_examples(
    model: Model,
    options: TrainOptions,
    train: Sequence[Example],
    validation: Sequence[Example],
    *,
    pad_id: int,
    progress: ProgressCallback,
) -> TrainResult:
    """``train_scale`` on questions that are encoded already."""
    start = time.perf_counter()
    layers = chosen_layers(len(decoder_layers(model)), options.layers, options.select)
    scorer = _scorers(model, options, pad_id)
    sensitivity = None
    with frozen(model):
        if options.select is not None:
            probe = ProbeScales(model, layers, scope=options.scope)
            with attach_trainable(model, probe) as handle:
                scored = scorer(handle)
                sensitivity = measure_sensitivity(
                    scored, probe, validation, options=options, progress=progress
                )
            layers = sensitivity.top_layers(options.select)
        scalars = ScaleParameters(
            model, layers, scope=options.scope, bound=options.bound, sites=options.sites
        )
        with attach_trainable(model, scalars) as handle:
            course = fit(
                scorer(handle), scalars.trained(), train, validation, options=options, progress=progress
            )
    return _result(scalars, course, sensitivity, time.perf_counter() - start)


def _result(
    scalars: ScaleParameters, course: Fit, sensitivity: Sensitivity | None, seconds: float
) -> TrainResult:
    heads, mlp = scalars.arrays()
    return TrainResult(
        scope=scalars.scope,
        layer_indices=scalars.layer_indices,
        head_scale=heads,
        mlp_scale=mlp,
        trained=scalars.count,
        course=course,
        sensitivity=sensitivity,
        seconds=seconds,
    )


def _scorers(model: Model, options: TrainOptions, pad_id: int) -> Callable[[ScaleHandle], Scorer]:
    """The quickest exact way to score for these options, over one store of prefixes."""
    if options.scope == "all" or not can_cache_prefix(model):
        return lambda handle: FullScorer(model, handle, pad_id)
    store = PrefixStore(model, options.cache_mib * 2**20)
    return lambda handle: PrefixScorer(model, handle, store)


@contextmanager
def frozen(model: Model) -> Iterator[None]:
    """Evaluation mode and no gradients for weights inside the block; as before after it."""
    training, wanted = model.training, [(p, p.requires_grad) for p in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        model.train(training)
        for parameter, value in wanted:
            parameter.requires_grad_(value)
