"""Running emitted graphs: sessions, I/O binding, and a KV cache whose buffers are both past and present."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from scale_export.core.errors import UserError
from scale_export.core.records import Array, Float32
from scale_export.core.words import Scope
from scale_export.device.engine import Held, Phase, Scalars, Step, Tap, check_room, tower_feeds

from .altered import altered_bytes, tap_names
from .host import GATE, ROLE, SCALARS, read_runtime_config
from .loop import MASK, Loop, bind_cache

DEFAULT_THREADS: int | None = None
"""Threads of a session that was not told how many; None leaves it to ONNX Runtime."""

CPU = "CPUExecutionProvider"
QUIET = 3  # errors only
STATIC_SETTINGS = {False: {"session.qdqisint8allowed": "1"}, True: {"session.disable_quant_qdq": "1"}}
"""How rounded products run, by ``strict``: in integers (x86's default is to leave them in floats), or as written."""
DATA_FOLDER = "session.model_external_initializers_file_folder_path"
NUMPY_TYPES: dict[str, np.dtype[np.generic]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
}


@dataclass(kw_only=True)
class SharedCache:
    """Keys and values of every layer, ``[rows, K, context_length, hd]``, and how full each row is.

    A row's slots hold its tokens without gaps: the next one's is ``lengths[row]``.
    """

    buffers: dict[str, Array]
    lengths: NDArray[np.int64]
    loops: dict[int, Loop] = field(default_factory=dict)
    """By the session's ``id``: steps of one token over all rows."""

    @functools.cached_property
    def values(self) -> dict[str, ort.OrtValue]:
        """The buffers as a session takes them: their own memory."""
        return {name: ort.OrtValue.ortvalue_from_numpy(buffer) for name, buffer in self.buffers.items()}

    def row(self, index: int) -> SharedCache:
        """One row on its own, in the same memory."""
        one = slice(index, index + 1)
        buffers = {name: buffer[one] for name, buffer in self.buffers.items()}
        return SharedCache(buffers=buffers, lengths=self.lengths[one])


def usable_providers(wanted: Sequence[str]) -> list[str]:
    """Those that this build of ONNX Runtime has; the others' nodes fall to the CPU, where that is wanted too.

    Raises:
        UserError: one is missing, and ``CPUExecutionProvider`` is not among the wanted.
    """
    available = ort.get_available_providers()
    missing = [provider for provider in wanted if provider not in available]
    if missing and CPU not in wanted:
        raise UserError(
            f"ONNX Runtime here has no {missing[0]}; it has {', '.join(available)}: install a build that has it"
        )
    return [provider for provider in wanted if provider in available]


def open_session(
    path: Path,
    *,
    providers: Sequence[str],
    threads: int | None = None,
    strict: bool = False,
    tapped: bool = False,
    only: str | None = None,
    growing: bool = False,
    profile: Path | None = None,
) -> ort.InferenceSession:
    """A session on one graph.

    ``growing`` is for a graph whose inputs have other shapes at every run, as a decoder's mask has: ONNX Runtime would
    plan its memory anew each time, and keep every plan.

    ``strict`` sets every accuracy level in it to 0 as it is loaded, and computes QuantizeLinear, DequantizeLinear and
    MatMul as they are written; ``tapped`` makes what goes into and comes out of
    each matrix outputs of the graph, as ``tap_names`` calls them; ``only`` leaves nothing but what one output is made
    of (sessions run a whole graph, whatever is fetched of it). ``profile`` is what the name of the runtime's own
    record of its runs begins with, which ``end_profiling`` writes.

    Raises:
        UserError: this build of ONNX Runtime lacks a provider, or refuses the graph.
    """
    usable = usable_providers(providers)
    options = ort.SessionOptions()
    options.log_severity_level = QUIET
    options.enable_mem_pattern = not growing
    if threads or DEFAULT_THREADS:
        options.intra_op_num_threads = threads or DEFAULT_THREADS
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    for setting, value in STATIC_SETTINGS[strict].items():
        options.add_session_config_entry(setting, value)
    model: Path | bytes = path
    if strict or tapped or only:
        model, folder = altered_bytes(path, strict=strict, tapped=tapped, only=only)
        options.add_session_config_entry(DATA_FOLDER, str(folder))
    try:
        return ort.InferenceSession(model, options, providers=usable)
    except Exception as error:  # ONNX Runtime raises one class per status code, with no common base
        raise UserError(f"ONNX Runtime cannot load {path.name}: {str(error).splitlines()[0]}") from error


class DecoderSession:
    """One decoder graph. The same instance may serve many caches, one call at a time.

    Args:
        scope: which tokens of a gated step the scalars act on.
        defaults: the scalars of a step that is given none; None where the graph takes none.
        only: a session on what one output is made of; None fetches it of the whole graph.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        context_length: int,
        tap: Tap | None = None,
        *,
        scope: Scope = "last",
        defaults: Scalars | None = None,
        only: Callable[[str], ort.InferenceSession] | None = None,
    ) -> None:
        self.session = session
        self.scope = scope
        self.defaults = defaults
        self.only = only or (lambda output: session)
        self.tap = tap
        names = [output.name for output in session.get_outputs()]
        self.products = [n.removeprefix("tap.").removesuffix(".input") for n in names if n.endswith(".input")]
        inputs = {i.name: i for i in session.get_inputs()}
        self.dtype = NUMPY_TYPES[inputs["inputs_embeds"].type]
        self.cache_shapes = {n: tuple(i.shape) for n, i in inputs.items() if n.startswith("past_key_values.")}
        self.takes_positions = "position_ids" in inputs
        self.several_axes = self.takes_positions and len(inputs["position_ids"].shape) > 2
        self.takes_groups = "attention_group" in inputs
        self.deepstack = [name for name in inputs if name.startswith("deepstack.")]
        self.context_length = context_length
        logits = next(output for output in session.get_outputs() if output.name == "logits")
        self._vocabulary, self._logits_dtype = int(logits.shape[-1]), NUMPY_TYPES[logits.type]
        self._filled = np.ones((1, context_length), np.int64)
        self.can_override = SCALARS[0] in inputs

    def new_cache(self, rows: int) -> SharedCache:
        buffers = {
            name: np.zeros((rows, shape[1], self.context_length, shape[3]), self.dtype)
            for name, shape in self.cache_shapes.items()
        }
        return SharedCache(buffers=buffers, lengths=np.zeros(rows, np.int64))

    def held_cache(self, held: Held) -> SharedCache:
        """See ``Engine.held_cache``."""
        cache = self.new_cache(1)
        for name, buffer in cache.buffers.items():
            layer, part = name.split(".")[1:]
            made = held.layer(int(layer), buffer.shape[1], buffer.shape[3])
            buffer[0, :, : held.slots] = made[part == "value"]
        cache.lengths[:] = held.tokens
        return cache

    def keys(self, layer: int, step: Step) -> Float32 | None:
        """See ``Engine.keys``; graphs work the turns of several axes out, and look those of one up.

        A graph that counts positions has as many empty slots before the step, which the first layer's keys don't see.
        """
        if self.several_axes or not (self.takes_positions or layer == 0):
            return None
        rows, tokens = step.inputs_embeds.shape[:2]
        before = 0 if self.takes_positions else int(step.position_ids[0, 0])
        ends = (before + step.lengths)[:, None]
        feeds = self._feeds(step, np.arange(before + tokens) < ends, None)
        for name, shape in self.cache_shapes.items():
            feeds[name] = np.zeros((rows, shape[1], before, shape[3]), self.dtype)
        wanted = f"present.{layer}.key"
        session = self.only(wanted)
        taken = {given.name: feeds[given.name] for given in session.get_inputs()}
        keys: Array = session.run([wanted], taken)[0]
        return keys[:, :, before:].astype(np.float32)

    def forward(self, cache: SharedCache, step: Step, scalars: Scalars | None) -> Float32:
        """See ``Engine.forward``.

        GroupQueryAttention takes several new tokens over a cache that holds some in one row without padding only, so
        rows run one by one then.
        """
        tokens = step.inputs_embeds.shape[1]
        if tokens == 1 or not cache.lengths.any():
            return self._run(cache, step, scalars)
        check_room(int((cache.lengths + step.lengths).max()), self.context_length)
        rows = range(len(step.lengths))
        return np.concatenate([self._run(cache.row(row), step.row(row), scalars) for row in rows])

    def _run(self, cache: SharedCache, step: Step, scalars: Scalars | None) -> Float32:
        """One run of the graph."""
        tokens = step.inputs_embeds.shape[1]
        total = int(cache.lengths.max()) + tokens
        check_room(total, self.context_length)
        after = cache.lengths + step.lengths
        alone = len(after) == 1 and tokens == 1  # a row alone has no gaps
        mask = self._filled[:, :total] if alone else np.arange(total) < after[:, None]
        feeds = self._feeds(step, mask, scalars)
        if tokens == 1 and self.tap is None:
            following = self._next(cache, feeds)
            cache.lengths[:] = after
            return following
        binding = self.session.io_binding()
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value)))
        bind_cache(binding, cache.values)
        wanted = ["logits", *(name for matrix in self.products for name in tap_names(matrix))]
        for name in wanted:
            binding.bind_output(name)
        self.session.run_with_iobinding(binding)
        cache.lengths[:] = after
        outputs = dict(zip(wanted, binding.get_outputs()[-len(wanted) :], strict=True))
        if self.tap is not None:
            for matrix in self.products:
                given, found = (outputs[name].numpy().astype(np.float32) for name in tap_names(matrix))
                self.tap(matrix, given, found)
        logits: Float32 = outputs["logits"].numpy()
        return logits[:, -1]

    def _next(self, cache: SharedCache, feeds: Mapping[str, Array]) -> Float32:
        """A step of one token, over what was bound at the first one."""
        loop = cache.loops.get(id(self.session))
        if loop is None:
            logits = np.empty((len(cache.lengths), 1, self._vocabulary), self._logits_dtype)
            loop = cache.loops[id(self.session)] = Loop(self.session, cache.values, feeds, logits)
        last: Float32 = loop.run(feeds)[:, -1].copy()
        return last

    def _feeds(
        self, step: Step, mask: NDArray[np.bool_] | NDArray[np.int64], scalars: Scalars | None
    ) -> dict[str, Array]:
        """The inputs of a step but its cache; ``mask [B, P + T]`` says which slots hold a token."""
        feeds: dict[str, Array] = {
            "inputs_embeds": step.inputs_embeds.astype(self.dtype, copy=False),
            MASK: mask.astype(np.int64, copy=False),
            GATE: gated_tokens(step, self.scope),
        }
        if self.takes_positions:  # else attention counts them itself
            feeds["position_ids"] = step.position_ids
        chosen = self.defaults if scalars is None else scalars
        if self.can_override and chosen is not None:
            feeds |= dict(zip(SCALARS, (chosen.attn, chosen.mlp), strict=True))
        if self.takes_groups:
            none = np.full(step.inputs_embeds.shape[:2], -1, np.int64)
            feeds["attention_group"] = none if step.attention_group is None else step.attention_group
        for row, name in enumerate(self.deepstack):
            added = np.zeros_like(step.inputs_embeds) if step.deepstack is None else step.deepstack[row]
            feeds[name] = added.astype(self.dtype, copy=False)
        return feeds


def gated_tokens(step: Step, scope: Scope) -> Float32:
    """g of a step, ``[B, T]``: 1 where the scalars act, else 0.

    Of scope ``last`` that is each row's last token, unless another chunk follows; of scope ``all`` every token.
    """
    places = np.arange(step.inputs_embeds.shape[1])
    last = (places == step.lengths[:, None] - 1) & step.gated
    return np.asarray(places < step.lengths[:, None] if scope == "all" else last, np.float32)


class OnnxEngine:
    """An ``Engine`` over the graphs of one package.

    Args:
        graphs: role → file: ``runtime`` (its ``runtime.json``), ``decoder``, ``vision``, ``embedding``, and
            ``decoder_folded`` for two phases.
        strict: run on kernels that round nothing, to measure against.
        tap: told of every matrix product of the decoders, in their order.
        profile: an empty folder for the runtime's own record of every graph's runs; see ``profiles``.
    """

    def __init__(
        self,
        graphs: Mapping[str, Path],
        *,
        context_length: int,
        providers: Sequence[str],
        threads: int | None = None,
        strict: bool = False,
        tap: Tap | None = None,
        profile: Path | None = None,
    ) -> None:
        config = read_runtime_config(graphs[ROLE])
        opened = functools.partial(open_session, providers=providers, threads=threads, strict=strict)
        sessions = {
            role: opened(
                path,
                tapped=tap is not None and role.startswith("decoder"),
                growing=role.startswith("decoder"),
                profile=None if profile is None else profile / role,
            )
            for role, path in graphs.items()
            if role != ROLE
        }
        self._profiled = sessions if profile is not None else {}
        self._vision = sessions["vision"]
        self._embedding = sessions["embedding"]
        self._hidden_size = int(self._embedding.get_outputs()[0].shape[2])

        def decoder(role: str) -> DecoderSession:
            only = functools.lru_cache(maxsize=1)(lambda output: opened(graphs[role], only=output))
            scope, defaults = config.scope, config.defaults()
            return DecoderSession(
                sessions[role], context_length, tap, scope=scope, defaults=defaults, only=only
            )

        base = decoder("decoder")
        self._decoders: dict[Phase, DecoderSession] = {
            "base": base,
            "scaled": decoder("decoder_folded") if "decoder_folded" in sessions else base,
        }

    @property
    def hidden_size(self) -> int:
        return self._hidden_size

    @property
    def executed_by(self) -> str:
        return f"ONNX Runtime {ort.__version__}, {', '.join(self._vision.get_providers())}"

    def profiles(self) -> dict[str, Path]:
        """Role → the runtime's record of what ran, which ends here."""
        return {role: Path(session.end_profiling()) for role, session in self._profiled.items()}

    @property
    def can_override(self) -> bool:
        return self._decoders["base"].can_override

    def vision(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        names = [output.name for output in self._vision.get_outputs()]
        outputs = self._vision.run(names, tower_feeds(inputs))
        return dict(zip(names, outputs, strict=True))

    def embed(self, input_ids: Array, image_features: Array) -> Array:
        feeds = {"input_ids": input_ids.astype(np.int64), "image_features": image_features.astype(np.float32)}
        embeds: Array = self._embedding.run(None, feeds)[0]
        return embeds

    def new_cache(self, rows: int) -> SharedCache:
        return self._decoders["base"].new_cache(rows)

    def forward(self, cache: SharedCache, step: Step, scalars: Scalars | None, phase: Phase) -> Float32:
        return self._decoders[phase].forward(cache, step, scalars)

    def held_cache(self, held: Held) -> SharedCache:
        return self._decoders["base"].held_cache(held)

    def cut(self, cache: SharedCache, tokens: int) -> None:
        cache.lengths[:] = tokens

    def keys(self, layer: int, step: Step, phase: Phase) -> Float32 | None:
        return self._decoders[phase].keys(layer, step)
