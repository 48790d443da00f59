"""The hooked reference against an independent implementation, written out by hand for one row."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scale_export.coefficients.file import Coefficients
from scale_export.core.errors import UserError
from scale_export.core.words import Scope
from scale_export.model.base import BaseModel
from scale_export.model.hooks import attach, attach_trainable
from scale_export.model.sites import decoder_layers
from tests.helpers.coefficients import random_coefficients

MakeCoefficients = Callable[..., Coefficients]

LAYERS, HEADS, HEAD_DIM = 3, 4, 32
PAD, EOS, IMAGE, PLAIN = 0, 2, 5, range(10, 300)
"""Token ids of the tiny models; any of ``PLAIN`` is an ordinary word."""
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def model(base_of: Callable[[str, str], BaseModel]) -> Any:
    """A random Llava whose decoder has grouped queries and a bias wherever Llama allows one."""
    return base_of("llava", "llama-biased").model


@pytest.fixture(scope="module")
def coefficients(base_of: Callable[[str, str], BaseModel]) -> MakeCoefficients:
    base = base_of("llava", "llama-biased")

    def make(scope: Scope, *, layers: tuple[int, ...] | None = None, **changes: Any) -> Coefficients:
        return replace(random_coefficients(base, scope, layers), **changes)

    return make


def hook_count(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def ids(length: int, seed: int = 0) -> Tensor:
    return torch.randint(PLAIN.start, PLAIN.stop, (1, length), generator=torch.Generator().manual_seed(seed))


def norm(x: Tensor, module: Any) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon) * module.weight


def rotate(x: Tensor, inv_freq: Tensor) -> Tensor:
    angles = torch.arange(x.shape[0])[:, None] * torch.cat([inv_freq, inv_freq])
    half = x.shape[-1] // 2
    turned = torch.cat([-x[..., half:], x[..., :half]], -1)
    return x * angles.cos()[:, None] + turned * angles.sin()[:, None]


def naive(model: Any, tokens: Tensor, gate: Tensor, scales: Coefficients, swap_heads: bool = False) -> Tensor:
    """Logits ``[T, V]`` of one unpadded row, written out without hooks, cache or library attention."""
    decoder = model.model.language_model
    attn, mlp = (torch.from_numpy(s) for s in scales.dense(LAYERS, HEADS))
    attn = attn.flip(1) if swap_heads else attn
    x, count = decoder.embed_tokens(tokens), len(tokens)
    causal = torch.full((count, count), float("-inf")).triu(1)
    for index, layer in enumerate(decoder.layers):
        y, a = norm(x, layer.input_layernorm), layer.self_attn
        q, k, v = (p(y).view(count, -1, HEAD_DIM) for p in (a.q_proj, a.k_proj, a.v_proj))
        q, k = rotate(q, decoder.rotary_emb.inv_freq), rotate(k, decoder.rotary_emb.inv_freq)
        rows = torch.empty(count, HEADS, HEAD_DIM)
        for head in range(HEADS):
            group = head // (HEADS // k.shape[1])
            weights = (q[:, head] @ k[:, group].T / HEAD_DIM**0.5 + causal).softmax(-1)
            rows[:, head] = (1 + gate * (attn[index, head] - 1))[:, None] * (weights @ v[:, group])
        x = x + rows.flatten(1) @ a.o_proj.weight.T + a.o_proj.bias
        y, m = norm(x, layer.post_attention_layernorm), layer.mlp
        out = (F.silu(m.gate_proj(y)) * m.up_proj(y)) @ m.down_proj.weight.T + m.down_proj.bias
        x = x + (1 + gate * (mlp[index] - 1))[:, None] * out
    return model.lm_head(norm(x, decoder.norm))


def one_hot_tail(length: int, ones: int) -> Tensor:
    return (torch.arange(length) >= length - ones).float()


def close(actual: Tensor, expected: Tensor) -> bool:
    return bool((actual - expected).abs().max() / expected.abs().max() < TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("scope", ["last", "all"])
@pytest.mark.parametrize("layers", [(0, 1, 2), (1,)])
def test_prefill_equals_c1(
    model: Any, coefficients: MakeCoefficients, scope: Scope, layers: tuple[int, ...]
) -> None:
    scales, tokens = coefficients(scope, layers=layers), ids(7)
    gate = torch.ones(7) if scope == "all" else one_hot_tail(7, 1)
    with attach(model, scales):
        logits = model(input_ids=tokens).logits[0]
    expected = naive(model, tokens[0], gate, scales)
    assert close(logits, expected)
    assert not close(naive(model, tokens[0], gate, scales, swap_heads=True), expected)
    assert not close(naive(model, tokens[0], 1 - gate, scales), expected)


@torch.no_grad()
@pytest.mark.parametrize("scope", ["last", "all"])
def test_decode_over_the_cache_gates_every_generated_token(
    model: Any, coefficients: MakeCoefficients, scope: Scope
) -> None:
    scales, tokens = coefficients(scope), ids(9)
    with attach(model, scales):
        past = model(input_ids=tokens[:, :6], use_cache=True).past_key_values
        steps = [
            model(
                input_ids=tokens[:, t : t + 1], attention_mask=torch.ones(1, t + 1), past_key_values=past
            ).logits[0, 0]
            for t in range(6, 9)
        ]
        again = model(input_ids=tokens).logits[0, -1]
    gate = torch.ones(9) if scope == "all" else one_hot_tail(9, 4)
    assert close(torch.stack(steps), naive(model, tokens[0], gate, scales)[6:])
    # The documented trap: without a cache, scope `last` is another function.
    assert close(again, steps[-1]) == (scope == "all")


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_gates_each_rows_last_token(model: Any, coefficients: MakeCoefficients, side: str) -> None:
    scales, lengths, width = coefficients("last"), (3, 7, 5), 7
    batch, mask = torch.full((3, width), PAD), torch.zeros(3, width, dtype=torch.long)
    for row, length in enumerate(lengths):
        columns = slice(width - length, width) if side == "left" else slice(0, length)
        batch[row, columns], mask[row, columns] = ids(length, seed=row), 1
    with attach(model, scales):
        logits = model(
            input_ids=batch, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(0)
        ).logits
    for row, length in enumerate(lengths):
        expected = naive(model, ids(length, seed=row)[0], one_hot_tail(length, 1), scales)[-1]
        column = width - 1 if side == "left" else length - 1
        assert close(logits[row, column], expected)


@torch.no_grad()
def test_right_padded_prefill_then_decode(model: Any, coefficients: MakeCoefficients) -> None:
    """The mask of a decode step is [B, P+1] with holes; its last column is the new token."""
    scales, tokens = coefficients("last"), ids(6)
    batch = torch.cat([tokens[:, :4], torch.full((1, 2), PAD)], dim=1)
    mask = torch.tensor([[1, 1, 1, 1, 0, 0]])
    with attach(model, scales):
        past = model(input_ids=batch, attention_mask=mask, use_cache=True).past_key_values
        step = model(
            input_ids=tokens[:, 4:5],
            attention_mask=torch.cat([mask, torch.ones(1, 1, dtype=torch.long)], dim=1),
            position_ids=torch.tensor([[4]]),
            past_key_values=past,
        ).logits[0, 0]
    assert close(step, naive(model, tokens[0, :5], one_hot_tail(5, 2), scales)[-1])


@torch.no_grad()
@pytest.mark.parametrize("how", ["enabled", "position"])
def test_chunked_prefill_gates_the_final_chunk_only(
    model: Any, coefficients: MakeCoefficients, how: str
) -> None:
    scales, tokens = coefficients("last"), ids(8)
    with attach(model, scales) as handle:
        if how == "enabled":
            handle.gate_enabled = False
        else:
            handle.gate_position = torch.tensor([5])
        past = model(input_ids=tokens[:, :5], use_cache=True).past_key_values
        handle.gate_enabled = True
        handle.gate_position = torch.tensor([-1]) if how == "position" else None
        logits = model(input_ids=tokens[:, 5:], past_key_values=past).logits[0, -1]
    assert close(logits, naive(model, tokens[0], one_hot_tail(8, 1), scales)[-1])
    with attach(model, scales):
        past = model(input_ids=tokens[:, :5], use_cache=True).past_key_values
        careless = model(input_ids=tokens[:, 5:], past_key_values=past).logits[0, -1]
    assert not close(careless, logits)


@torch.no_grad()
def test_gate_position_per_row(model: Any, coefficients: MakeCoefficients) -> None:
    scales, tokens = coefficients("last"), ids(6).expand(4, 6)
    with attach(model, scales) as handle:
        handle.gate_position = torch.tensor([2, -1, 6, -4])
        logits = model(input_ids=tokens).logits
    for row, position in enumerate([2, 5, None, 2]):
        gate = torch.zeros(6)
        if position is not None:
            gate[position] = 1
        assert close(logits[row], naive(model, tokens[0], gate, scales))


@torch.no_grad()
def test_generate_batches_greedy_sampling_and_beams(model: Any, coefficients: MakeCoefficients) -> None:
    scales, lengths, width = coefficients("last"), (4, 7), 7
    batch, mask = torch.full((2, width), PAD), torch.zeros(2, width, dtype=torch.long)
    for row, length in enumerate(lengths):
        batch[row, width - length :], mask[row, width - length :] = ids(length, seed=row), 1
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "pad_token_id": PAD}
    with attach(model, scales) as handle:
        greedy = model.generate(input_ids=batch, attention_mask=mask, do_sample=False, **options)
        torch.manual_seed(0)
        sampled = model.generate(input_ids=batch, attention_mask=mask, do_sample=True, **options)
        beams = model.generate(input_ids=batch, attention_mask=mask, num_beams=3, do_sample=False, **options)
        # A static cache hides the padding from the model, so it must be told; here it is on the left.
        static = {"cache_implementation": "static", "disable_compile": True, "do_sample": False, **options}
        with pytest.raises(UserError, match="gate_position"):
            model.generate(input_ids=batch, attention_mask=mask, **static)
        handle.gate_position = torch.tensor([-1])
        assert torch.equal(model.generate(input_ids=batch, attention_mask=mask, **static), greedy)
    for row, length in enumerate(lengths):
        tokens = greedy[row, width - length : -1]
        expected = naive(model, tokens, one_hot_tail(len(tokens), 5), scales)[-5:]
        expected[:, EOS] = float("-inf")  # min_new_tokens forbids the end token
        assert greedy[row, -5:].tolist() == expected.argmax(-1).tolist()
    assert sampled.shape == greedy.shape
    assert beams.shape == greedy.shape
    assert beam_score(model, beams, scales, lengths) >= beam_score(model, greedy, scales, lengths) - 1e-4


def beam_score(model: Any, sequences: Tensor, scales: Coefficients, lengths: tuple[int, ...]) -> float:
    total = 0.0
    for row, length in zip(sequences, lengths, strict=True):
        tokens = row[-(length + 5) :]
        logits = naive(model, tokens[:-1], one_hot_tail(len(tokens) - 1, 5), scales)[-5:].log_softmax(-1)
        total += float(logits.gather(1, tokens[-5:, None]).sum())
    return total


@torch.no_grad()
def test_image_rows_are_gated_by_the_same_mask(model: Any, coefficients: MakeCoefficients) -> None:
    scales = coefficients("last")
    tokens = torch.cat([torch.full((1, 9), IMAGE), ids(5)], dim=1)
    pixels = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    padded = torch.cat([torch.full((1, 2), PAD), tokens], dim=1)
    mask = torch.tensor([[0] * 2 + [1] * 14])
    with attach(model, scales):
        alone = model(input_ids=tokens, pixel_values=pixels).logits[0, -1]
        batched = model(
            input_ids=padded,
            attention_mask=mask,
            pixel_values=pixels,
            position_ids=(mask.cumsum(1) - 1).clamp(0),
        )
    assert close(batched.logits[0, -1], alone)
    assert not close(model(input_ids=tokens, pixel_values=pixels).logits[0, -1], alone)


@torch.no_grad()
def test_strength_and_hooks_removed(model: Any, coefficients: MakeCoefficients) -> None:
    scales, tokens = coefficients("last"), ids(6)
    base = model(input_ids=tokens).logits
    hooks = hook_count(model)
    with attach(model, scales, strength=0.0) as handle:
        assert torch.equal(model(input_ids=tokens).logits, base)
        handle.strength = 1.0
        full = model(input_ids=tokens).logits
        handle.strength = 0.5
        half = model(input_ids=tokens).logits[0]
    with attach(model, scales):
        assert torch.equal(model(input_ids=tokens).logits, full)
    between = coefficients(
        "last", head_scale=tuple((1 + s) / 2 for s in scales.head_scale), mlp_scale=(1 + scales.mlp_scale) / 2
    )
    assert close(half, naive(model, tokens[0], one_hot_tail(6, 1), between))
    with pytest.raises(RuntimeError, match="stop"), attach(model, scales):
        raise RuntimeError("stop")
    assert torch.equal(model(input_ids=tokens).logits, base)
    assert hook_count(model) == hooks


@torch.no_grad()
def test_a_failed_forward_leaves_no_stale_mask(model: Any, coefficients: MakeCoefficients) -> None:
    scales, tokens = coefficients("last"), ids(6)
    with attach(model, scales):
        good = model(input_ids=tokens).logits
        with pytest.raises(IndexError):
            model(input_ids=tokens + 1000, attention_mask=torch.tensor([[1, 1, 1, 0, 0, 0]]))
        assert torch.equal(model(input_ids=tokens).logits, good)


@torch.no_grad()
def test_inner_models_and_positional_masks_are_understood(model: Any, coefficients: MakeCoefficients) -> None:
    scales = coefficients("last")
    batch, mask = torch.cat([ids(4), torch.full((1, 2), PAD)], dim=1), torch.tensor([[1, 1, 1, 1, 0, 0]])
    with attach(model, scales):
        whole = model(input_ids=batch, attention_mask=mask).logits[0, 3]
        inner = model.model(input_ids=batch, attention_mask=mask).last_hidden_state[0, 3]
        decoder = model.model.language_model(batch, mask).last_hidden_state[0, 3]
    assert close(model.lm_head(inner), whole)
    assert close(model.lm_head(decoder), whole)


@torch.no_grad()
def test_a_mask_that_hides_the_padding_is_refused(model: Any, coefficients: MakeCoefficients) -> None:
    opaque = torch.zeros(1, 1, 6, 6)
    with attach(model, coefficients("last")) as handle:
        with pytest.raises(UserError, match="gate_position"):
            model(input_ids=ids(6), attention_mask=opaque)
        handle.gate_position = torch.tensor([-1])
        model(input_ids=ids(6), attention_mask=opaque)
        handle.gate_position = torch.tensor([0, 1, 2])
        with pytest.raises(UserError, match=r"gate_position has shape \[3\]"):
            model(input_ids=ids(6))
        handle.gate_mask = torch.ones(1, 5)
        with pytest.raises(UserError, match="gate_mask has shape"):
            model(input_ids=ids(6))


@torch.no_grad()
def test_half_precision_multiplies_in_its_own_dtype(model: Any, coefficients: MakeCoefficients) -> None:
    scales, tokens = coefficients("last"), ids(6)
    half = copy.deepcopy(model).to(torch.bfloat16)
    layer = decoder_layers(half)[0].self_attn
    seen: dict[str, Tensor] = {}
    layer.o_proj.register_forward_pre_hook(lambda _, args: seen.update(before=args[0]))
    with attach(half, scales):
        layer.o_proj.register_forward_pre_hook(lambda _, args: seen.update(after=args[0]))
        half(input_ids=tokens)
    factor = torch.from_numpy(scales.head_scale[0]).to(torch.bfloat16).repeat_interleave(HEAD_DIM)
    assert seen["after"].dtype == torch.bfloat16
    assert torch.equal(seen["after"][:, :-1], seen["before"][:, :-1])
    assert torch.equal(seen["after"][:, -1], seen["before"][:, -1] * factor)


class Doubled:
    """A trainable source with one parameter for everything."""

    scope: Scope = "last"
    layer_indices = tuple(range(LAYERS))

    def __init__(self) -> None:
        self.value = torch.tensor(2.0, requires_grad=True)

    def effective(self) -> tuple[list[Tensor], Tensor]:
        return [self.value.expand(HEADS)] * LAYERS, self.value.expand(LAYERS)


def test_trainable_scalars_get_the_naive_gradient(model: Any, coefficients: MakeCoefficients) -> None:
    tokens, gate = ids(7), one_hot_tail(7, 3)
    source = Doubled()
    with attach_trainable(model, source) as handle:
        handle.gate_mask = gate[None]
        model(input_ids=tokens).logits[0, -3:].sum().backward()
    assert source.value.grad is not None

    def total(value: float) -> float:
        scales = coefficients(
            "last",
            head_scale=tuple(np.full(HEADS, value, np.float32) for _ in range(LAYERS)),
            mlp_scale=np.full(LAYERS, value, np.float32),
        )
        with torch.no_grad():
            return float(naive(model, tokens[0], gate, scales)[-3:].sum())

    slope = (total(2.01) - total(1.99)) / 0.02
    assert float(source.value.grad) == pytest.approx(slope, rel=2e-3)


def test_coefficients_that_do_not_fit_are_refused(model: Any, coefficients: MakeCoefficients) -> None:
    hooks, other = hook_count(model), replace(coefficients("last").base, model_type="qwen2_vl")
    cases = {
        r"has 4 query heads, the adapter has 3 head scalars": coefficients(
            "last", head_scale=tuple(np.ones(3, np.float32) for _ in range(LAYERS))
        ),
        r"scales decoder layer 5, but the model has 0 to 2": coefficients("last", layer_indices=(0, 1, 5)),
        r"heads of 16 columns": coefficients("last", head_dim=16),
        r"scale the MLP at 'post_norm'": coefficients("last", mlp_site="post_norm"),
        r"belong to a 'qwen2_vl' model": coefficients("last", base=other),
    }
    for message, wrong in cases.items():
        with pytest.raises(UserError, match=message), attach(model, wrong):
            pass
    with (
        pytest.raises(UserError, match="not a finite number"),
        attach(model, coefficients("all"), strength=float("nan")),
    ):
        pass
    assert hook_count(model) == hooks
