"""Running a bundle by Apple's runtime. Nothing here imports torch."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import weakref
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import DTypeLike

from scale_export.core.errors import UserError
from scale_export.core.records import Array, Float32
from scale_export.device.engine import Held, Phase, Scalars, Step, check_room, tower_feeds

from .apple import PARITY, load_apple

T = TypeVar("T")

FIRST_SLOTS = 256
"""Slots of a cache that holds nothing yet; it doubles as it fills, up to the context."""


V_CACHE = "v_cache"
"""The state that holds values; ``k_cache`` holds keys."""


class AppleArray(Protocol):
    """``coreai.runtime.NDArray``."""

    shape: Sequence[int]

    def numpy(self) -> Array: ...


class _Descriptor(Protocol):
    shape: Sequence[int]
    dtype: DTypeLike


class _Description(Protocol):
    state_names: Sequence[str]

    def input_descriptor(self, name: str) -> _Descriptor: ...

    def state_descriptor(self, name: str) -> _Descriptor: ...


class AppleFunction(Protocol):
    """A loaded function; it changes ``state`` in place."""

    desc: _Description

    def __call__(
        self, inputs: Mapping[str, AppleArray], *, state: Mapping[str, AppleArray]
    ) -> Coroutine[object, None, Mapping[str, AppleArray]]: ...


class PrivateLoop:
    """An event loop in a thread of its own, so that Apple's coroutines run whatever loop the caller has."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="coreai", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[object, None, T]) -> T:
        """Run to the end and return what it returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def close(self, stack: AsyncExitStack) -> None:
        """Leave every context of ``stack`` on this loop, then end the thread."""
        self.run(stack.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass(kw_only=True)
class RowCache:
    """One row's keys and values, ``[L, 1, K, slots, hd]`` each, and how many slots hold a token."""

    states: dict[str, AppleArray]
    length: int = 0


class CoreAIEngine:
    """An ``Engine`` over one bundle: what Apple's stock engine does, by the assets and their ``metadata.json``.

    Rows run one after the other, since the assets hold one.

    Args:
        graphs: role → asset: ``decoder``, ``vision``, ``embedding``; ``metadata.json`` lies beside them.

    Raises:
        UserError: Apple's packages are not installed, or an asset is missing or damaged.
    """

    def __init__(self, graphs: Mapping[str, Path], *, context_length: int) -> None:
        self._array: Callable[[Array], AppleArray] = load_apple("coreai.runtime").NDArray
        metadata = json.loads((graphs["decoder"].parent / "metadata.json").read_text(encoding="utf-8"))
        self._image_token_id = int(metadata["vision"]["image_token_id"])
        self._gated = (metadata["user_data"]["fold"], metadata["user_data"]["scope"]) == ("gate", "last")
        self._context_length = context_length
        self._loop, stack = PrivateLoop(), AsyncExitStack()
        weakref.finalize(self, self._loop.close, stack)
        opened = self._loop.run(_open(graphs, stack))
        self._decoder, self._vision, self._embedding = (
            opened[role] for role in ("decoder", "vision", "embedding")
        )
        inputs = self._decoder.desc.input_descriptor("inputs_embeds")
        self._hidden_size, self._dtype = int(inputs.shape[2]), np.dtype(inputs.dtype)

    @property
    def hidden_size(self) -> int:
        return self._hidden_size

    @property
    def executed_by(self) -> str:
        return f"Apple's Core AI runtime {version('coreai-core')} on this machine's CPU ({PARITY})"

    @property
    def can_override(self) -> bool:
        return False

    def vision(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        tiles = tower_feeds(inputs)["pixel_values"]
        features = [self._run(self._vision, pixel_values=tile[None])["image_features"] for tile in tiles]
        return {"image_features": np.concatenate(features).astype(np.float32)}

    def embed(self, input_ids: Array, image_features: Array) -> Array:
        rows = [self._run(self._embedding, input_ids=row[None].astype(np.int32)) for row in input_ids]
        embeds = np.concatenate([row["embeddings"] for row in rows])
        if len(image_features):  # a generated image token, without a picture, keeps its word embedding
            embeds[input_ids == self._image_token_id] = image_features.astype(embeds.dtype)
        return embeds

    def new_cache(self, rows: int) -> list[RowCache]:
        slots = min(FIRST_SLOTS, self._context_length)
        return [
            RowCache(states={name: self._state(name, slots) for name in self._states}) for _ in range(rows)
        ]

    def held_cache(self, held: Held) -> list[RowCache]:
        states = {}
        for name in self._states:
            layers, _, heads, _, width = self._decoder.desc.state_descriptor(name).shape
            made = [held.layer(layer, heads, width)[name == V_CACHE] for layer in range(layers)]
            states[name] = self._state(name, held.slots, np.stack(made)[:, None])
        return [RowCache(states=states, length=held.tokens)]

    def cut(self, cache: list[RowCache], tokens: int) -> None:
        cache[0].length = tokens

    def keys(self, layer: int, step: Step, phase: Phase) -> None:
        """Nothing: assets work turns out, the same way at every position."""

    def forward(self, cache: list[RowCache], step: Step, scalars: Scalars | None, phase: Phase) -> Float32:
        if scalars is not None or (self._gated and not step.gated):
            raise ValueError("the scalars of a Core AI decoder are constants: it has no other forward")
        logits = []
        for row, length in enumerate(step.lengths):
            embeds = np.ascontiguousarray(step.inputs_embeds[row : row + 1, :length], self._dtype)
            new = step.position_ids[row, :length]
            positions = np.concatenate((np.arange(cache[row].length), new)).astype(np.int32)
            self._make_room(cache[row], len(positions))
            found = self._run(
                self._decoder, cache[row].states, inputs_embeds=embeds, position_ids=positions[None]
            )
            cache[row].length = len(positions)
            logits.append(found["logits"][:, -1])
        return np.concatenate(logits).astype(np.float32)

    def _run(
        self, function: AppleFunction, states: dict[str, AppleArray] | None = None, **inputs: Array
    ) -> dict[str, Array]:
        arrays = {name: self._array(value) for name, value in inputs.items()}
        found = self._loop.run(function(arrays, state=states or {}))
        return {name: np.array(value.numpy()) for name, value in found.items()}

    @property
    def _states(self) -> list[str]:
        return list(self._decoder.desc.state_names)

    def _state(self, name: str, slots: int, held: Array | None = None) -> AppleArray:
        shape = list(self._decoder.desc.state_descriptor(name).shape)
        shape[3] = slots
        values = np.zeros(shape, self._dtype)
        if held is not None:
            values[:, :, :, : held.shape[3]] = held
        return self._array(values)

    def _make_room(self, cache: RowCache, total: int) -> None:
        check_room(total, self._context_length)
        for name, state in cache.states.items():
            slots = state.shape[3]
            if slots < total:
                grown = min(self._context_length, max(total, 2 * slots))
                cache.states[name] = self._state(name, grown, state.numpy())


async def _open(graphs: Mapping[str, Path], stack: AsyncExitStack) -> dict[str, AppleFunction]:
    """The function ``main`` of each asset, usable until ``stack`` is left."""
    assets = load_apple("coreai.authoring").AIModelAsset
    opened: dict[str, AppleFunction] = {}
    for role, path in graphs.items():
        if not _is_whole(path):
            raise UserError(f"{path} is not a whole Core AI asset: export it again")
        model = await stack.enter_async_context(assets.load(path).executable())
        opened[role] = model.load_function("main")
    return opened


def _is_whole(asset: Path) -> bool:
    """Whether an asset has the digest that was written with it; Apple's runtime ends the process otherwise."""
    try:
        with (asset / "main.mlirb").open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest() == (asset / "main.hash").read_bytes()
    except OSError:
        return False
