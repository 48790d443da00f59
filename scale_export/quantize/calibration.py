"""Calibration: second moments and ranges of every matrix's inputs, layer by layer from the portable decoder.

1. The decoder runs as it is deployed: the base weights with ScAle as a gate, a prefill of the prompt and one forward
   for each token of the right answer, whatever the fold mode (folding into weights is the same function). Long answers
   run in one forward, each position with its scalars, which is the same function again (``Example.at_once``).
2. One layer's weights and moments are in memory at a time, beside the hidden states of all examples. Each layer's
   moments go to a file of the cache when they are whole: a run that was stopped goes on behind the last of them.
3. A cache entry is named by a hash of all that decides it: the model's weights and configuration, the scalars, the
   prepared inputs (token ids, pixels, answers) and the weighting.
4. A file counts only with a record of its hash beside it (``layers.0.json``) that is right: what is damaged, changed or
   of another schema is collected again.
5. ``lm_head`` sees the positions that predict an answer and no others, as on the device.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from scale_export.coefficients.file import Coefficients
from scale_export.core.cache import CALIBRATION, default_cache
from scale_export.core.errors import UserError
from scale_export.core.progress import WorkLog, peak_memory
from scale_export.core.records import Array, DecoderSpec, Float32
from scale_export.core.words import Weighting
from scale_export.device.engine import Engine, Step
from scale_export.device.generation import Generator
from scale_export.model.arithmetic import TorchKernels, empty_cache
from scale_export.model.base import BaseModel
from scale_export.model.decoder import Cache, Gate, PortableDecoder
from scale_export.model.engine import ReferenceInputs
from scale_export.model.weights import DecoderWeights

from .example import Example, question_examples
from .method import CalibrationOptions, Moments
from .plain_text import text_examples
from .self_written import self_examples
from .sources import QuestionSource, SelfSource, TextSource, parse_source
from .stored import add_inputs, make_entry, model_facts, read_recorded, recorded_sha256, write_whole

SCHEMA = 2
"""Part of every cache entry's name; to be raised where the same inputs would give other statistics."""

REPRESENTATIVE = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
"""Matrices that share another one's inputs → that one."""

OUTPUT = "output.safetensors"
"""The file of ``lm_head``'s moments."""

PEAKS = ".peaks"
"""What a matrix's ranges are called beside its moments."""


@dataclass(frozen=True, slots=True)
class StoredStatistics:
    """The moments in one cache entry, read layer by layer; ``digests`` are its files' SHA-256, by their names."""

    directory: Path
    digests: tuple[tuple[str, str], ...]

    def moments(self, name: str) -> Moments | None:
        """Of a matrix's inputs, by its portable name; None for the embedding.

        Raises:
            UserError: the file was changed since it was checked, or lacks them.
        """
        return None if name == "embedding" else Moments(self._stored(name, ""))

    def peaks(self, name: str) -> Float32 | None:
        """max |x| of each of its input channels, whatever a token counts for; None as above."""
        return None if name == "embedding" else self._stored(name, PEAKS)

    def _stored(self, name: str, kind: str) -> Array:
        prefix, _, part = name.rpartition(".")
        site = f"{prefix}.{REPRESENTATIVE.get(part, part)}" if prefix else name
        file = _file_of(name)
        found = _read(self.directory / file, dict(self.digests)[file]).get(f"{site}{kind}")
        if found is None or found.dtype != np.float32 or found.ndim != (1 if kind else 2):
            raise UserError(f"{self.directory / file} lacks the statistics of {name}: remove it")
        return found

    @property
    def sha256(self) -> str:
        """One hash of all moments: two machines that agree on it quantize by the same numbers."""
        digest = hashlib.sha256()
        for file, found in sorted(self.digests):
            digest.update(file.encode() + bytes.fromhex(found))
        return digest.hexdigest()


@functools.lru_cache(maxsize=1)
def _read(file: Path, sha256: str) -> dict[str, Array]:
    return read_recorded(file, sha256)


def _file_of(name: str) -> str:
    """The cache file that holds a matrix's moments."""
    return f"{'.'.join(name.split('.')[:2])}.safetensors" if name.startswith("layers.") else OUTPUT


def calibrate(
    base: BaseModel,
    coefficients: Coefficients,
    options: CalibrationOptions,
    log: WorkLog,
    cache: Path | None = None,
) -> StoredStatistics:
    """The statistics of one model, one set of scalars and one source: from the cache, or collected into it.

    Raises:
        UserError: the source can't be loaded, or holds an answer without tokens; or the cache can't be written.
    """
    place = cache or default_cache()
    examples = calibration_examples(base, coefficients, options, log, place)
    entry = place / CALIBRATION / _key(base, coefficients, options, examples)
    names = [*(f"layers.{layer}.safetensors" for layer in range(base.spec.num_layers)), OUTPUT]
    found = {name: recorded_sha256(entry / name) for name in names}
    if None in found.values():
        make_entry(entry)
        with log.stage("calibration"), torch.no_grad():
            started = time.perf_counter()
            lacking = {name for name, digest in found.items() if digest is None}
            collect(base, coefficients, options.weighting, examples, entry, lacking, log)
            seconds = time.perf_counter() - started
        facts = {"options": str(options), "seconds": seconds, "peak_bytes": peak_memory()}
        (entry / "run.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        found = {name: recorded_sha256(entry / name) for name in names}
    whole = {name: digest for name, digest in found.items() if digest is not None}
    if whole.keys() != found.keys():
        raise UserError(f"{entry} was changed while it was written: give another folder with --cache")
    return StoredStatistics(entry, tuple(sorted(whole.items())))


def calibration_examples(
    base: BaseModel, coefficients: Coefficients, options: CalibrationOptions, log: WorkLog, cache: Path
) -> list[Example]:
    """What to calibrate on, in order; raises UserError as ``calibrate``."""
    match parse_source(options.source):
        case QuestionSource(spec):
            return question_examples(base, spec, limit=options.limit, pictures=options.pictures)
        case TextSource() as text:
            return text_examples(base, text, options.limit)
        case SelfSource() as own:
            pictures, limit = options.pictures, options.limit
            return self_examples(
                base, coefficients, own, limit=limit, pictures=pictures, log=log, cache=cache
            )


def _key(
    base: BaseModel, coefficients: Coefficients, options: CalibrationOptions, examples: Sequence[Example]
) -> str:
    """The name of a cache entry (rule 3)."""
    digest = model_facts(base, coefficients, SCHEMA, options.weighting)
    for example in examples:
        add_inputs(digest, example.inputs)
        digest.update(json.dumps(example.target).encode())
    return digest.hexdigest()[:32]


@dataclass(slots=True, kw_only=True)
class _Path:
    """One example on its way through the layers: the forwards of its prompt, and of its answer's tokens.

    Attributes:
        steps: positions and extras of each forward; the first is the prompt's.
        hidden: float32 ``[1, T, D]`` before the next layer, one per forward.
        token_weights: float32 ``[T]``, one per forward.
    """

    steps: list[Step]
    hidden: list[Tensor]
    token_weights: list[Tensor]


def collect(
    base: BaseModel,
    coefficients: Coefficients,
    weighting: Weighting,
    examples: Sequence[Example],
    entry: Path,
    lacking: Collection[str],
    log: WorkLog,
) -> None:
    """Write the files that an entry lacks, layer by layer (rule 2)."""
    spec = base.spec
    paths = list(_paths(base, examples, weighting, log))
    attn, mlp = (torch.from_numpy(values) for values in coefficients.dense(spec.num_layers, spec.num_heads))
    last = spec.num_layers - 1
    for layer in range(spec.num_layers):
        names = [f"layers.{layer}.safetensors", *([OUTPUT] if layer == last else [])]
        files = [entry / name for name in names]
        whole = not set(names) & set(lacking)
        kernels = _Recorder(base.weights, layer=layer)
        rows = slice(layer, layer + 1)
        gate = Gate(scope=coefficients.scope, attn_scale=attn[rows], mlp_scale=mlp[rows])
        for done, path in enumerate(paths, 1):
            _advance(kernels, spec, gate, path, layer, recorded=not whole)
            log.advance(f"calibration, layer {layer + 1} of {spec.num_layers}", done, len(paths))
        if not whole:
            found = kernels.sums.statistics()
            for file in files:
                write_whole(
                    {name: value for name, value in found.items() if _file_of(name) == file.name}, file
                )


def _paths(
    base: BaseModel, examples: Sequence[Example], weighting: Weighting, log: WorkLog
) -> Iterator[_Path]:
    """Every question's embedded tokens."""
    image_token = base.image_token_id
    front = ReferenceInputs(base.weights, base.vision, image_token)
    generator = Generator(
        engine=cast(Engine, front),
        family=base.family,
        fold="gate",
        image_token_id=image_token,
        runtime_config=base.family.runtime_config(base.config),
    )
    for done, example in enumerate(examples, 1):
        prompt = generator.embed_prompt(example.inputs)
        steps = [prompt.step(slice(0, prompt.tokens), gated=True)]
        answer = [
            generator.decode_step(token, prompt.next_position + offset)
            for offset, token in enumerate(example.target[:-1])
        ]
        steps += [_together(answer)] if example.at_once and answer else answer
        at_image = example.inputs["input_ids"][0] == image_token
        yield _Path(
            steps=steps,
            hidden=[torch.from_numpy(np.ascontiguousarray(step.inputs_embeds, np.float32)) for step in steps],
            token_weights=_token_weights(
                weighting, at_image, [step.inputs_embeds.shape[1] for step in steps]
            ),
        )
        log.advance("calibration, pictures", done, len(examples))


def _together(steps: Sequence[Step]) -> Step:
    """Forwards of one token each as one forward."""
    return Step(
        inputs_embeds=np.concatenate([step.inputs_embeds for step in steps], axis=1),
        lengths=np.full(1, len(steps), np.int64),
        position_ids=np.concatenate([step.position_ids for step in steps], axis=-1),
    )


def _token_weights(weighting: Weighting, at_image: Array, forwards: Sequence[int]) -> list[Tensor]:
    """What each token counts for, by forward: ``at_image [T]`` says it of the prompt, which is the first of them."""
    tokens = sum(forwards)
    chosen = np.zeros(tokens, np.bool_)
    if weighting == "last":
        chosen[len(at_image) - 1 :] = True
    elif weighting == "image":
        chosen[: len(at_image)] = at_image
    picked = int(chosen.sum())
    weights = np.ones(tokens, np.float32)
    if 0 < picked < tokens:
        weights[chosen] = (tokens - picked) / picked
    return [torch.from_numpy(part) for part in np.split(weights, np.cumsum(forwards)[:-1])]


def _advance(
    kernels: _Recorder, spec: DecoderSpec, gate: Gate, path: _Path, layer: int, *, recorded: bool
) -> None:
    """One example through one layer, forward by forward over a growing cache.

    Every position of an answer carries the scalars, and predicts (rule 5).
    """
    layers = range(layer, layer + 1)
    prompt = PortableDecoder(spec, kernels, layers=layers, last_logits_only=True), gate
    answer = PortableDecoder(spec, kernels, layers=layers), replace(gate, scope="all")
    cache: list[Cache] = empty_cache(spec, 1)[:1]
    seen = 0
    for index, (step, hidden) in enumerate(zip(path.steps, path.hidden, strict=True)):
        seen += hidden.shape[1]
        group, deepstack = step.attention_group, step.deepstack
        kernels.token_weights = path.token_weights[index] if recorded else None
        decoder, acting = answer if index else prompt
        path.hidden[index], cache = decoder(
            hidden,
            torch.ones(1, seen, dtype=torch.int64),
            torch.from_numpy(step.position_ids),
            cache,
            acting,
            torch.tensor([-1]),
            None if group is None else torch.from_numpy(group),
            () if deepstack is None else list(torch.from_numpy(deepstack[layer : layer + 1])),
        )


class _Sums:
    """Weighted sums of x xᵀ by matrix, of the weights, and the largest |x|."""

    def __init__(self) -> None:
        self.products: dict[str, Tensor] = {}
        self.peaks: dict[str, Tensor] = {}
        self.totals: dict[str, float] = {}

    def add(self, name: str, x: Tensor, weights: Tensor) -> None:
        """``x [T, in]``, ``weights [T]``."""
        if name not in self.products:
            self.products[name] = torch.zeros(x.shape[1], x.shape[1])
            self.peaks[name] = torch.zeros(x.shape[1])
            self.totals[name] = 0.0
        self.products[name].addmm_((x * weights[:, None]).T, x)
        self.peaks[name] = torch.maximum(self.peaks[name], x.abs().amax(dim=0))
        self.totals[name] += float(weights.sum())

    def statistics(self) -> dict[str, Array]:
        """By matrix E[x xᵀ], float32 ``[in, in]``, symmetric to the bit, and max |x|, ``[in]``."""
        means = {name: product / self.totals[name] for name, product in self.products.items()}
        moments = {name: ((mean + mean.T) / 2).numpy() for name, mean in means.items()}
        return moments | {f"{name}{PEAKS}": peaks.numpy() for name, peaks in self.peaks.items()}


class _Recorder(TorchKernels):
    """Kernels of one layer that take note of what goes into each matrix, once where several share it."""

    def __init__(self, weights: DecoderWeights, *, layer: int) -> None:
        super().__init__(weights, layer=layer)
        self.sums = _Sums()
        self.token_weights: Tensor | None = None

    def linear(self, name: str, x: Tensor) -> Tensor:
        if self.token_weights is not None and name.rpartition(".")[2] not in REPRESENTATIVE:
            # The output's matrix sees one position of each forward (rule 5).
            weights = self.token_weights if x.shape[1] == len(self.token_weights) else torch.ones(x.shape[1])
            self.sums.add(name, x[0], weights)
        return super().linear(name, x)
