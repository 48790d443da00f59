"""Decode steps over what was bound once give the bits of steps that bind everything anew."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from scale_export.core.records import Float32
from scale_export.device.engine import Scalars, Step
from scale_export.device.onnxruntime.engine import DecoderSession
from scale_export.device.onnxruntime.loop import Loop
from scale_export.device.package import open_package

PAST, STEPS = 7, 5


@pytest.fixture(scope="module")
def decoder(package: Any) -> DecoderSession:
    engine: Any = open_package(package, threads=1).engine
    found: DecoderSession = engine._decoders["base"]
    return found


def steps(decoder: DecoderSession, rows: int, lengths: list[int]) -> list[Step]:
    """A prompt of so many tokens in each row, and tokens after it."""
    width = int(decoder.session.get_inputs()[0].shape[2])
    rng, at = np.random.default_rng(0), np.array(lengths)

    def embeds(tokens: int) -> Float32:
        return rng.standard_normal((rows, tokens, width)).astype(np.float32)

    prompt = Step(inputs_embeds=embeds(PAST), lengths=at, position_ids=np.tile(np.arange(PAST), (rows, 1)))
    after = [
        Step(
            inputs_embeds=embeds(1),
            lengths=np.ones(rows, np.int64),
            position_ids=(at + number)[:, None],
            gated=number != 2,
        )
        for number in range(STEPS)
    ]
    return [prompt, *after]


def logits(decoder: DecoderSession, run: list[Step], *, bound: bool) -> list[Float32]:
    """Of every step; the scalars change on the way. A tap without products binds everything anew."""
    decoder.tap = None if bound else lambda *told: None
    try:
        cache = decoder.new_cache(len(run[0].lengths))
        assert decoder.defaults is not None
        found = [
            decoder.forward(cache, step, decoder.defaults.at(0.5) if number == 2 else None)
            for number, step in enumerate(run)
        ]
        assert len(cache.loops) == bound
        return found
    finally:
        decoder.tap = None


@pytest.mark.parametrize(("rows", "lengths"), [(1, [7]), (2, [4, 7])])
def test_steps_are_the_same_to_the_bit(decoder: DecoderSession, rows: int, lengths: list[int]):
    run = steps(decoder, rows, lengths)
    pairs = zip(logits(decoder, run, bound=True), logits(decoder, run, bound=False), strict=True)
    assert all(np.array_equal(one, other) for one, other in pairs)


def test_what_was_handed_out_stays(decoder: DecoderSession):
    found = logits(decoder, steps(decoder, 1, [7]), bound=True)
    assert len({one.tobytes() for one in found}) == len(found)


def test_two_caches_do_not_share_buffers(decoder: DecoderSession):
    prompt, *after = steps(decoder, 1, [7])
    expected = logits(decoder, [prompt, *after], bound=False)[1:3]
    caches = [decoder.new_cache(1) for _ in range(2)]
    for cache in caches:
        decoder.forward(cache, prompt, None)
    for number in range(2):
        for cache in caches:
            scalars = decoder.defaults.at(0.5) if number == 1 and decoder.defaults else None
            assert np.array_equal(decoder.forward(cache, after[number], scalars), expected[number])


@pytest.mark.parametrize(
    "forgotten", ["inputs_embeds", "position_ids", "gate", "attn_scale", "attention_mask"]
)
def test_an_input_that_is_not_renewed_shows(
    decoder: DecoderSession, monkeypatch: pytest.MonkeyPatch, forgotten: str
):
    run, real = steps(decoder, 1, [7]), Loop.run
    expected, first = logits(decoder, run, bound=False), dict[int, Any]()

    def stale(self: Loop, feeds: Any) -> Any:
        kept = first.setdefault(id(self), np.array(feeds[forgotten]))
        return real(self, {**feeds, forgotten: kept})

    monkeypatch.setattr(Loop, "run", stale)
    found = logits(decoder, run, bound=True)
    assert not all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_strength_is_felt_at_the_next_step(decoder: DecoderSession):
    prompt, *after = steps(decoder, 1, [7])
    cache, own = decoder.new_cache(1), decoder.defaults
    assert own is not None
    decoder.forward(cache, prompt, None)
    decoder.forward(cache, after[0], None)
    base = Scalars(attn=np.ones_like(own.attn), mlp=np.ones_like(own.mlp))
    weaker = decoder.forward(cache, after[1], base)
    cache.lengths[:] -= 1
    assert not np.array_equal(decoder.forward(cache, after[1], None), weaker)
