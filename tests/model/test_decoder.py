"""The portable decoder against Hugging Face's, family by family, with pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from scale_export.coefficients.file import Coefficients
from scale_export.core import limits
from scale_export.device.prompts import encode_messages, user_message
from scale_export.model.arithmetic import TorchKernels, empty_cache
from scale_export.model.base import BaseModel
from scale_export.model.decoder import Gate, PortableDecoder, last_index
from scale_export.model.hooks import attach
from tests.helpers.coefficients import random_coefficients
from tests.helpers.decoding import embeddings_of, gate_of, relative
from tests.helpers.models import FAMILIES
from tests.helpers.pictures import picture
from tests.helpers.variants import VARIANTS

CASES = [("llava", variant) for variant in VARIANTS if variant != "own"] + [
    ("llava_next", v) for v in ("llama", "mistral-window", "qwen2")
]
CASES += [(family, variant) for family in ("llava_onevision", "internvl") for variant in ("llama", "qwen2")]
CASES += [("smolvlm", "llama"), ("smolvlm", "qwen2"), ("idefics3", "llama3-rope"), ("internvl", "qwen3")]
CAUSAL = list(CASES)
CASES += [("gemma3", "own"), ("paligemma", "own")]


def prompt_inputs(base: BaseModel) -> dict[str, Tensor]:
    arrays = encode_messages(base.processor, [user_message([picture()], "where is the red circle ?")])
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}


def groups_of(base: BaseModel, inputs: dict[str, Tensor]) -> Tensor | None:
    """Which tokens of a prompt see one another."""
    arrays = {name: value.numpy() for name, value in inputs.items()}
    groups = base.family.attention_groups(arrays, base.family.runtime_config(base.config))
    return None if groups is None else torch.from_numpy(groups)


@pytest.mark.parametrize("scope", ["last", "all"])
@pytest.mark.parametrize(("family", "variant"), CASES)
def test_prefill_and_eight_decode_steps_equal_hooked_hugging_face(
    base_of: Any, family: str, variant: str, scope: Any
):
    base = base_of(family, variant)
    coefficients = random_coefficients(base, scope)
    decoder = PortableDecoder(base.spec, TorchKernels(base.weights))
    gate = gate_of(base, coefficients)
    inputs = prompt_inputs(base)
    with attach(base.model, coefficients), torch.no_grad():
        embeds = embeddings_of(base, inputs)
        expected = base.model(**inputs, use_cache=True)
        tokens = embeds.shape[1]
        mask = torch.ones(1, tokens, dtype=torch.int64)
        logits, cache = decoder(
            embeds,
            mask,
            torch.arange(tokens)[None],
            empty_cache(base.spec, 1),
            gate,
            torch.tensor([-1]),
            groups_of(base, inputs),
        )
        assert relative(expected.logits, logits) <= limits.FOLD_RELATIVE
        for step in range(8):
            token = expected.logits[:, -1:].argmax(-1)
            mask = torch.ones(1, tokens + step + 1, dtype=torch.int64)
            expected = base.model(
                input_ids=token, attention_mask=mask, past_key_values=expected.past_key_values, use_cache=True
            )
            embeds = base.model.get_input_embeddings()(token)
            position = torch.tensor([[tokens + step]])
            logits, cache = decoder(embeds, mask, position, cache, gate, torch.tensor([-1]))
            assert relative(expected.logits, logits) <= limits.FOLD_RELATIVE


@pytest.mark.parametrize(("family", "variant"), CAUSAL)
def test_chunked_prefill_gates_only_the_last_chunk(base_of: Any, family: str, variant: str):
    base = base_of(family, variant)
    coefficients = random_coefficients(base)
    decoder = PortableDecoder(base.spec, TorchKernels(base.weights))
    gate = gate_of(base, coefficients)
    inputs = prompt_inputs(base)
    with attach(base.model, coefficients), torch.no_grad():
        expected = base.model(**inputs).logits[:, -1]
        embeds = embeddings_of(base, inputs)
        tokens = embeds.shape[1]
        cache = empty_cache(base.spec, 1)
        for start in range(0, tokens, 5):
            chunk = embeds[:, start : start + 5]
            end = start + chunk.shape[1]
            position = torch.tensor([-1 if end == tokens else chunk.shape[1]])
            mask = torch.ones(1, end, dtype=torch.int64)
            logits, cache = decoder(chunk, mask, torch.arange(start, end)[None], cache, gate, position)
    assert relative(expected, logits[:, -1]) <= limits.FOLD_RELATIVE


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("family", "variant"), CASES)
def test_padded_rows_equal_the_rows_alone(base_of: Any, family: str, variant: str, side: str):
    base = base_of(family, variant)
    decoder = PortableDecoder(base.spec, TorchKernels(base.weights))
    gate = gate_of(base, random_coefficients(base))
    inputs = prompt_inputs(base)
    embeds, groups = embeddings_of(base, inputs), groups_of(base, inputs)
    tokens, short = embeds.shape[1], embeds.shape[1] - 4
    alone, _ = decoder(
        embeds[:, :short],
        torch.ones(1, short, dtype=torch.int64),
        torch.arange(short)[None],
        empty_cache(base.spec, 1),
        gate,
        torch.tensor([-1]),
        None if groups is None else groups[:, :short],
    )
    padding = torch.zeros(1, 4, embeds.shape[2])
    parts = (padding, embeds[:, :short]) if side == "left" else (embeds[:, :short], padding)
    batch = torch.cat((embeds, torch.cat(parts, dim=1)))
    mask = torch.ones(2, tokens, dtype=torch.int64)
    mask[1, slice(0, 4) if side == "left" else slice(short, tokens)] = 0
    last = tokens - 1 if side == "left" else short - 1
    if groups is not None:
        nowhere = torch.full((1, 4), -1)
        rows = (nowhere, groups[:, :short]) if side == "left" else (groups[:, :short], nowhere)
        groups = torch.cat((groups, torch.cat(rows, dim=1)))
    logits, _ = decoder(
        batch,
        mask,
        (mask.cumsum(-1) - 1).clamp(min=0),
        empty_cache(base.spec, 2),
        gate,
        torch.tensor([tokens - 1, last]),
        groups,
    )
    assert relative(alone[0, -1], logits[1, last]) <= limits.FOLD_RELATIVE


def test_last_logits_only_picks_each_rows_gate_position(base_of: Any):
    base = base_of("llava", "llama")
    kernels = TorchKernels(base.weights)
    embeds = torch.randn(2, 7, base.spec.hidden_size, generator=torch.Generator().manual_seed(0))
    args = (embeds, torch.ones(2, 7, dtype=torch.int64), torch.arange(7)[None].expand(2, 7))
    position = torch.tensor([3, -1])
    every, _ = PortableDecoder(base.spec, kernels)(*args, empty_cache(base.spec, 2), None, position)
    last, _ = PortableDecoder(base.spec, kernels, last_logits_only=True)(
        *args, empty_cache(base.spec, 2), None, position
    )
    torch.testing.assert_close(last[:, 0], torch.stack((every[0, 3], every[1, 6])), rtol=1e-5, atol=1e-5)


def test_gate_positions_count_from_the_end_and_may_lie_outside():
    assert last_index(torch.tensor([-1, -3, 2, 9]), 5).tolist() == [4, 2, 2, 9]


SABOTAGES = {
    "two heads swapped": lambda attn, mlp: (attn[:, [1, 0, *range(2, attn.shape[1])]], mlp),
    "one layer's scalars dropped": lambda attn, mlp: (np.concatenate((attn[:1] * 0 + 1, attn[1:])), mlp),
    "MLP scalars dropped": lambda attn, mlp: (attn, mlp * 0 + 1),
    "layers shifted by one": lambda attn, mlp: (np.roll(attn, 1, axis=0), np.roll(mlp, 1)),
}


@pytest.mark.parametrize("name", SABOTAGES)
@pytest.mark.parametrize(("family", "variant"), CASES)
def test_wrong_scalars_are_far_beyond_the_limit(base_of: Any, family: str, variant: str, name: str):
    base = base_of(family, variant)
    coefficients = random_coefficients(base)
    attn, mlp = SABOTAGES[name](*coefficients.dense(base.spec.num_layers, base.spec.num_heads))
    gate = Gate(
        scope="last",
        attn_scale=torch.from_numpy(np.ascontiguousarray(attn)),
        mlp_scale=torch.from_numpy(np.ascontiguousarray(mlp)),
    )
    assert prefill_error(base, coefficients, gate) > 100 * limits.FOLD_RELATIVE


@pytest.mark.parametrize("shift", [1, -1])
def test_rotary_positions_off_by_one_matter_against_the_cache(base_of: Any, shift: int):
    """A shift of all positions alike leaves rotary attention unchanged; against a cached prefix it doesn't."""
    base = base_of("llava", "llama")
    decoder = PortableDecoder(base.spec, TorchKernels(base.weights))
    embeds = embeddings_of(base, prompt_inputs(base))
    n = embeds.shape[1]
    outputs = []
    for offset in (0, shift):
        cache = empty_cache(base.spec, 1)
        ones = torch.ones(1, n, dtype=torch.int64)
        _, cache = decoder(
            embeds[:, :-1], ones[:, :-1], torch.arange(n - 1)[None], cache, None, torch.tensor([-1])
        )
        outputs.append(
            decoder(embeds[:, -1:], ones, torch.tensor([[n - 1 + offset]]), cache, None, torch.tensor([-1]))[
                0
            ]
        )
    assert relative(*outputs) > 100 * limits.FOLD_RELATIVE


def prefill_error(base: BaseModel, coefficients: Coefficients, gate: Gate) -> float:
    inputs = prompt_inputs(base)
    with attach(base.model, coefficients), torch.no_grad():
        expected = base.model(**inputs).logits[:, -1]
        embeds = embeddings_of(base, inputs)
    n = embeds.shape[1]
    decoder = PortableDecoder(base.spec, TorchKernels(base.weights))
    mask = torch.ones(1, n, dtype=torch.int64)
    logits, _ = decoder(
        embeds,
        mask,
        torch.arange(n)[None],
        empty_cache(base.spec, 1),
        gate,
        torch.tensor([-1]),
        groups_of(base, inputs),
    )
    return relative(expected, logits[:, -1])


def test_every_family_is_tested():
    from scale_export.families import family_names

    assert set(family_names()) == set(FAMILIES)
