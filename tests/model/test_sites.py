"""Where scalars act: the output of a norm after the MLP, and layouts that nobody knows."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, GPT2Config, GPT2LMHeadModel

from scale_export.core.errors import UserError
from scale_export.model.hooks import attach
from scale_export.model.sites import attention_site, decoder_layers, head_count, mlp_site, mlp_site_of
from tests.helpers.coefficients import random_coefficients

HEADS, HEAD_DIM = 2, 8


@pytest.fixture(scope="module")
def gemma() -> Any:
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=1,
        head_dim=HEAD_DIM,
        vocab_size=32,
    )
    return Gemma3ForCausalLM(config).eval()


@torch.no_grad()
def test_a_norm_after_the_mlp_is_the_site(gemma: Any, base_of: Any) -> None:
    layer = decoder_layers(gemma)[1]
    assert mlp_site_of(layer, "layer") == "post_norm"
    llava = random_coefficients(base_of("llava", "llama"), layers=(1,))
    scales = replace(
        llava,
        head_scale=(np.full(HEADS, 0.5, np.float32),),
        head_dim=HEAD_DIM,
        mlp_site="post_norm",
        base=replace(llava.base, model_type="gemma3_text"),
    )
    seen: dict[str, Tensor] = {}
    norm = layer.post_feedforward_layernorm
    spy = norm.register_forward_hook(lambda *a: seen.update(before=a[2]))
    with attach(gemma, scales):
        after = norm.register_forward_hook(lambda *a: seen.update(after=a[2]))
        gemma(input_ids=torch.arange(5)[None])
    spy.remove()
    after.remove()
    assert torch.equal(seen["after"][:, :-1], seen["before"][:, :-1])
    assert torch.equal(seen["after"][:, -1], seen["before"][:, -1] * float(scales.mlp_scale[0]))


def test_sites_have_one_group_per_head_and_one_for_the_mlp(base_of: Any) -> None:
    model = base_of("llava", "llama").model
    layer, heads = decoder_layers(model)[0], head_count(model)
    assert attention_site(layer, heads, "layer").groups == heads == 4
    assert mlp_site(layer, "layer").module is layer.mlp
    assert mlp_site_of(layer, "layer") == "output"


def test_unknown_layouts_are_refused(gemma: Any) -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16))
    with pytest.raises(UserError, match="cannot find the decoder layers of GPT2LMHeadModel"):
        decoder_layers(gpt2)
    with pytest.raises(UserError, match=r"layer 0 has no self_attn\.o_proj"):
        attention_site(nn.Module(), 2, "layer 0")
    with pytest.raises(UserError, match="layer 0 has no mlp"):
        mlp_site(nn.Module(), "layer 0")
    with pytest.raises(UserError, match="16 columns, which 3 heads do not divide"):
        attention_site(decoder_layers(gemma)[0], 3, "layer 0")


def test_a_config_without_heads_is_refused() -> None:
    model = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda decoder: SimpleNamespace()))
    with pytest.raises(UserError, match="the config of SimpleNamespace names no num_attention_heads"):
        head_count(model)
