"""Driving a Core ML package: embedding rows, padded prefill chunks, decode steps, rotary tables from the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scale_export.core.errors import UserError
from scale_export.core.records import Array, Float32
from scale_export.device.engine import Held, Phase, Scalars, Step, Tap, check_room, tower_feeds

from .host import DecoderPart, HostConfig, RotaryTable, read_host_config, table_names
from .predictor import Arithmetic, Interpreter, Predictor, Products, open_predictor
from .tables import HostTables

MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Of a layer, in the order in which the portable decoder asks for them."""


V_CACHE = "v_cache"
"""The state that holds values; ``k_cache`` holds keys."""


@dataclass(kw_only=True)
class StateCache:
    """The states of every part of the decoder, each of its predictor's own kind, and how many slots are filled."""

    states: list[Any]
    length: int = 0


class CoreMLEngine:
    """An ``Engine`` over the files of one package.

    Args:
        graphs: role → path: ``runtime``, ``tables``, ``vision`` and the decoder's parts.
        strict: run the interpreter in float32 arithmetic, to measure against.
        tap: told of every matrix product of the decoder, which the interpreter runs then.

    Raises:
        UserError: ``runtime.json`` names a part that is none of the graphs, or a package that can't be run.
    """

    def __init__(self, graphs: Mapping[str, Path], *, strict: bool = False, tap: Tap | None = None) -> None:
        self._tap = tap
        self.config: HostConfig = read_host_config(graphs["runtime"])
        by_file = {path.name: path for path in graphs.values()}
        for part in self.config.decoder:
            if part.file not in by_file:
                raise UserError(
                    f"runtime.json names {part.file!r}, which is none of the package's graphs: export it again"
                )
        units = self.config.compute_units
        self._tables = HostTables(graphs["tables"])
        self._vision = open_predictor(graphs["vision"], units, strict=strict)
        arithmetic: Arithmetic = "float32" if strict else "float16"
        self._parts: list[Predictor] = [
            Interpreter(by_file[part.file], arithmetic)
            if tap
            else open_predictor(by_file[part.file], units, strict=strict)
            for part in self.config.decoder
        ]
        defaults = self.config.scalars
        self._defaults: Scalars | None = None
        if defaults is not None:
            attn, mlp = (np.asarray(v, np.float32) for v in (defaults.attn_scale, defaults.mlp_scale))
            self._defaults = Scalars(attn=attn, mlp=mlp)

    @property
    def hidden_size(self) -> int:
        return self.config.hidden_size

    @property
    def executed_by(self) -> str:
        return self._vision.executed_by

    @property
    def can_override(self) -> bool:
        return self._defaults is not None

    def vision(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """See ``Engine.vision``; one tile or picture after the other, patches filled up to the tower's number."""
        takes, feeds = self._vision.inputs("main"), tower_feeds(inputs)
        tiles = [
            self._vision.predict("main", {n: _filled(feeds[n][i], shape) for n, shape in takes.items()}, None)
            for i in range(len(next(iter(feeds.values()))))
        ]
        outputs: dict[str, Array] = {
            name: np.concatenate([tile[name] for tile in tiles]).astype(np.float32) for name in tiles[0]
        }
        return {**outputs, **self._tables.constants}

    def embed(self, input_ids: Array, image_features: Array) -> Array:
        embeds = self._tables.embed(input_ids)
        if len(image_features):  # a generated image token, without a picture, keeps its word embedding
            embeds[input_ids == self.config.image_token_id] = image_features
        return embeds

    def new_cache(self, rows: int) -> StateCache:
        if rows != 1:
            raise UserError(f"a Core ML package answers one prompt at a time, not {rows}: ask one by one")
        return StateCache(states=[part.new_state() for part in self._parts])

    def held_cache(self, held: Held) -> StateCache:
        cache = self.new_cache(1)
        for part, predictor, state in zip(self.config.decoder, self._parts, cache.states, strict=True):
            for name, shape in predictor.states().items():
                check_room(held.slots, shape[2])
                values = np.zeros(shape, np.float32)
                for row, layer in enumerate(range(part.first, part.stop)):
                    made = held.layer(layer, shape[1], shape[3])
                    values[row, :, : held.slots] = made[name == V_CACHE]
                predictor.write_state(state, name, values)
        cache.length = held.tokens
        return cache

    def cut(self, cache: StateCache, tokens: int) -> None:
        cache.length = tokens

    def keys(self, layer: int, step: Step, phase: Phase) -> None:
        """Nothing: the host works turns out, the same way at every position."""

    def forward(self, cache: StateCache, step: Step, scalars: Scalars | None, phase: Phase) -> Float32:
        """See ``Engine.forward``; one row. Chunks are padded to the function's T and leave no trace of it."""
        config, tokens = self.config, int(step.lengths[0])
        check_room(cache.length + tokens, config.context_length)
        logits, start = np.zeros((1, 0), np.float32), 0
        while start < tokens:
            function, width = self._function(phase, tokens - start, cache.length)
            stop = self.chunk_end(step, start, width)
            gated = stop == tokens and step.gated
            logits = self._chunk(cache, step, slice(start, stop), function, width, self.gate(scalars, gated))
            cache.length += stop - start
            start = stop
        return logits

    def chunk_end(self, step: Step, start: int, width: int) -> int:
        """Where a chunk of at most ``width`` tokens ends, so that it cuts no group of tokens that see one another."""
        tokens = int(step.lengths[0])
        stop = end = min(tokens, start + width)
        if step.attention_group is None or stop == tokens:
            return stop
        group = step.attention_group[0]
        while end > start and group[end] >= 0 and group[end] == group[end - 1]:
            end -= 1
        if end == start:
            raise UserError(
                f"{int((group == group[start]).sum())} tokens of this prompt see one another, and the package takes "
                f"{self.config.prefill_tokens} at once: shorten the prompt, or raise prefill_tokens in the target"
            )
        return end

    def _function(self, phase: Phase, left: int, filled: int) -> tuple[str, int]:
        """The function for what is left of a step, and its T."""
        config = self.config
        fits = filled + config.prefill_tokens <= config.cache_slots
        if config.fold == "two-phase":
            prefill = phase == "base"
            if prefill and not fits:
                raise UserError(
                    f"a chunk of {config.prefill_tokens} tokens does not fit behind {filled} in the package's cache of "
                    f"{config.cache_slots}: shorten the prompt, or export the package again, whose cache is larger now"
                )
        else:
            prefill = left > 1 and fits
        return ("prefill", config.prefill_tokens) if prefill else ("decode", 1)

    def gate(self, scalars: Scalars | None, gated: bool) -> Scalars | None:
        """The scalars of one chunk: ones where its last token is not the step's, under scope ``last``."""
        if self._defaults is None or self.config.scalars is None:
            return None
        chosen = scalars or self._defaults
        if gated or self.config.scalars.scope == "all":
            return chosen
        return Scalars(attn=np.ones_like(chosen.attn), mlp=np.ones_like(chosen.mlp))

    def _chunk(
        self,
        cache: StateCache,
        step: Step,
        window: slice,
        function: str,
        width: int,
        scalars: Scalars | None,
    ) -> Float32:
        """Run ``window`` of a step through every part; logits ``[1, V]`` after its last token."""
        count = window.stop - window.start
        feeds: dict[str, Array] = {
            "position": np.array([cache.length], np.int32),
            "valid_length": np.array([count], np.int32),
        }
        for index, rotary in enumerate(self.config.rotaries):
            tables = turns(rotary, step.position_ids[..., 0, window])
            feeds |= {n: padded(t, width) for n, t in zip(table_names(index), tables, strict=True)}
        group = np.full(width, -1, np.int32)
        if step.attention_group is not None:
            group[:count] = step.attention_group[0, window]
        feeds["attention_group"] = group
        hidden = padded(step.inputs_embeds[0, window], width)[None].astype(np.float32)
        outputs: Mapping[str, Array] = {}
        for part, predictor, state in zip(self.config.decoder, self._parts, cache.states, strict=True):
            feeds["hidden_states" if part.first else "inputs_embeds"] = hidden
            if scalars is not None:
                feeds["attn_scale"] = scalars.attn[part.first : part.stop]
                feeds["mlp_scale"] = scalars.mlp[part.first : part.stop]
            takes = predictor.inputs(function)
            if "deepstack" in takes:
                feeds["deepstack"] = self._deepstack(step, window, part, takes["deepstack"])
            wanted = {name: feeds[name] for name in takes}
            if self._tap is not None and isinstance(predictor, Interpreter):
                products = _named_products(self._tap, part, self.config.decoder[-1].stop, count)
                outputs = predictor.predict(function, wanted, state, products)
            else:
                outputs = predictor.predict(function, wanted, state)
            hidden = outputs.get("next_hidden_states", hidden)
        logits: Float32 = np.asarray(outputs["logits"], np.float32)[:, -1]
        return logits

    def _deepstack(self, step: Step, window: slice, part: DecoderPart, shape: Sequence[int]) -> Float32:
        """What one part's layers have added to their outputs, padded to the function's T."""
        added = np.zeros(shape, np.float32)
        if step.deepstack is not None:
            rows = step.deepstack[part.first : part.first + shape[0], :, window]
            added[:, :, : rows.shape[2]] = rows
        return added


def _named_products(tap: Tap, part: DecoderPart, layers: int, tokens: int) -> Products:
    """Products of one part in the portable decoder's order, as ``tap`` wants them: named, and without padding."""
    names = [f"layers.{i}.{matrix}" for i in range(part.first, part.stop) for matrix in MATRICES]
    remaining = iter([*names, "lm_head"] if part.stop == layers else names)
    return lambda given, found: tap(next(remaining), given[:, :tokens], found[:, :tokens])


def turns(rotary: RotaryTable, positions: NDArray[np.int64]) -> tuple[Float32, Float32]:
    """Cos and sin ``[T, hd]`` at positions ``[T]`` or ``[axes, T]``."""
    rows = positions[rotary.axes].T if positions.ndim == 2 else positions[:, None]
    angles = rows.astype(np.float32) * np.asarray(rotary.inv_freq, np.float32)
    angles = np.concatenate((angles, angles), axis=-1)
    scale = np.float32(rotary.scale)
    return np.cos(angles) * scale, np.sin(angles) * scale


def _filled(picture: Array, shape: Sequence[int]) -> Array:
    """One picture's input as the tower's ``[1, ...]``, zeros after its last patch."""
    missing = shape[1] - len(picture)
    if missing < 0:
        raise UserError(
            f"a picture has {len(picture) / shape[1]:.3g} times the patches that the package's vision tower takes: "
            f"make it smaller, or less long and narrow"
        )
    return np.pad(picture, [(0, missing)] + [(0, 0)] * (picture.ndim - 1))[None]


def padded(rows: Array, width: int) -> Array:
    """``[T, …]`` with zeros behind it, up to ``width`` rows."""
    return np.pad(rows, ((0, width - len(rows)), (0, 0)))
