"""Speed of a package on this machine: prefill, decode, time to first token, memory, and the bandwidth floor."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np
import psutil

from scale_export.core.defaults import QUESTION_SET
from scale_export.core.errors import UserError
from scale_export.core.progress import peak_memory

from .engine import Step
from .generation import Generator
from .package import Package


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """What was measured; medians over repetitions.

    Attributes:
        executed_by: what computed, in words; an interpreter's speed says nothing of a device.
        prefill_tokens_per_second: of a prompt of ``prompt_tokens`` embeddings, without the vision tower.
        decode_ms: milliseconds per generated token after that prompt.
        first_token_ms: from picture and question to the first token, preprocessing and vision included.
        peak_memory_bytes: largest resident set of this process so far.
        decoder_bytes: size of the decoder graph's weights, read once per token.
        bandwidth_bytes_per_second: of a sum over memory far larger than the caches, same thread count.
        bandwidth_share: decode speed over what reading the decoder's bytes at that bandwidth allows; None for
            decoders that fit the processor's caches, where memory is not the floor.
    """

    executed_by: str
    threads: int
    prompt_tokens: int
    new_tokens: int
    repeats: int
    prefill_tokens_per_second: float
    decode_ms: float
    first_token_ms: float
    peak_memory_bytes: int
    decoder_bytes: int
    bandwidth_bytes_per_second: float
    bandwidth_share: float | None

    def to_json(self) -> dict[str, str | int | float | None]:
        """All fields as plain values."""
        return asdict(self)


CACHE_BYTES = 64 << 20
"""A decoder smaller than this may stay in the processor's caches between tokens."""


def bench_package(
    package: Package,
    *,
    prompt_tokens: int,
    new_tokens: int,
    repeats: int,
    advance: Callable[[int, int], None],
) -> BenchResult:
    """Measure a package; ``advance`` is told the repetitions done and of how many.

    Raises:
        UserError: prompt and answer don't fit the package's context.
    """
    context = package.files.manifest.context_length
    if prompt_tokens + new_tokens > context:
        raise UserError(
            f"{prompt_tokens} prompt and {new_tokens} new tokens don't fit the package's context of {context}: "
            f"give fewer --prompt-tokens or --new-tokens"
        )
    package.ready()
    prefill, decode, first = [], [], []
    for repeat in range(repeats + 1):  # the first round warms up
        with package.bounded("a round of it", prompt_tokens + new_tokens):
            prefill_seconds, decode_seconds = time_decoder(package.generator, prompt_tokens, new_tokens)
        first_seconds = _time_first_token(package)
        if repeat:
            prefill.append(prefill_seconds)
            decode.append(decode_seconds)
            first.append(first_seconds)
        advance(repeat, repeats)
    peak = peak_memory()  # before the bandwidth test, which takes memory of its own
    decoder_bytes = _decoder_bytes(package)
    threads = package.threads or psutil.cpu_count(logical=False) or 1
    bandwidth = read_bandwidth(threads)
    decode_seconds = float(np.median(decode)) / new_tokens
    share = decoder_bytes / bandwidth / decode_seconds if decoder_bytes > CACHE_BYTES else None
    return BenchResult(
        executed_by=package.engine.executed_by,
        threads=threads,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        repeats=repeats,
        prefill_tokens_per_second=prompt_tokens / float(np.median(prefill)),
        decode_ms=decode_seconds * 1e3,
        first_token_ms=float(np.median(first)) * 1e3,
        peak_memory_bytes=peak,
        decoder_bytes=decoder_bytes,
        bandwidth_bytes_per_second=bandwidth,
        bandwidth_share=share,
    )


def decode_seconds(generator: Generator, *, prompt_tokens: int, new_tokens: int, repeats: int) -> float:
    """Seconds per generated token, the median of ``repeats`` after one that warms up."""
    rounds = [time_decoder(generator, prompt_tokens, new_tokens)[1] for _ in range(repeats + 1)]
    return float(np.median(rounds[1:])) / new_tokens


def time_decoder(generator: Generator, prompt_tokens: int, new_tokens: int) -> tuple[float, float]:
    """Seconds of one prefill over random embeddings, and of ``new_tokens`` decode steps after it."""
    engine = generator.engine
    rng = np.random.default_rng(0)
    embeds = rng.standard_normal((1, prompt_tokens, engine.hidden_size)).astype(np.float32)
    words = {"input_ids": np.zeros((1, prompt_tokens), np.int64)}
    step = Step(
        inputs_embeds=embeds,
        lengths=np.array([prompt_tokens]),
        position_ids=generator.family.positions(words, generator.runtime_config),
        gated=generator.fold != "two-phase",
    )
    cache = engine.new_cache(1)
    started = time.perf_counter()
    logits = generator.forward(cache, step)
    prefilled = time.perf_counter()
    for offset in range(new_tokens):
        logits = generator.decode(cache, int(logits[0].argmax()), prompt_tokens + offset)
    return prefilled - started, time.perf_counter() - prefilled


def _time_first_token(package: Package) -> float:
    """Seconds from a picture and a question to the first token's logits."""
    from scale_export.questions import load_questions

    question = load_questions(QUESTION_SET, "calibration", limit=1)[0]
    started = time.perf_counter()
    package.generator.prefill(package.prepare([question.image] if question.image else [], question.prompt))
    return time.perf_counter() - started


def _decoder_bytes(package: Package) -> int:
    manifest = package.files.manifest
    parts = [
        name
        for role, name in manifest.graphs.items()
        if role.startswith("decoder") and role != "decoder_folded"
    ]
    return sum(entry.size for file, entry in manifest.files.items() if file.startswith(tuple(parts)))


def read_bandwidth(threads: int, size: int = 512 << 20, repeats: int = 3) -> float:
    """Bytes per second of summing ``size`` bytes of float32 on ``threads`` threads, the best of ``repeats``."""
    parts = np.array_split(np.ones(size // 4, np.float32), threads)
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats):
            started = time.perf_counter()
            list(pool.map(np.sum, parts))  # NumPy lets go of the interpreter lock while it adds
            best = min(best, time.perf_counter() - started)
    return size / best
