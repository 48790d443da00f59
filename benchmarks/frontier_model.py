"""The pretrained text model that ``frontier.py`` quantizes, the texts that it is measured on, and the measuring."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from scale_export.quantize import Moments

LENGTH = 256
"""Tokens of a sequence."""
COUNTS = {"documentation": 9, "written by the model": 9, "calibration": 9}
"""Sequences of each kind; 18 of 255 predicting positions are measured on."""
MEASURED = ("documentation", "written by the model")
INPUTS = {"q_proj": "self_attn", "o_proj": "self_attn", "gate_proj": "mlp", "down_proj": "mlp"}
SAME_INPUT = {"k_proj": "q_proj", "v_proj": "q_proj", "up_proj": "gate_proj"}
Array = NDArray[np.float32]


@torch.no_grad()
def shuffled(model: Any, seed: int = 0) -> None:
    """The same function with its channels in another order, in place.

    The published file is Q4_1: every 32 neighbours of a row have 16 values only. A quantizer with a scale and a zero
    point for the same 32 would find them again and lose nothing, as it would for no model of 16 bits. Residual
    channels, MLP channels and the channels of a value head are permuted, so that no block has the neighbours of the
    file.
    """
    rng = np.random.default_rng(seed)

    def order(length: int) -> Tensor:
        return torch.from_numpy(rng.permutation(length))

    config, residual = model.config, order(model.config.hidden_size)
    groups = config.num_attention_heads // config.num_key_value_heads
    model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight[:, residual])
    model.model.norm.weight.copy_(model.model.norm.weight[residual])
    for layer in model.model.layers:
        attention, mlp, inner = layer.self_attn, layer.mlp, order(config.intermediate_size)
        heads = [h * config.head_dim + order(config.head_dim) for h in range(config.num_key_value_heads)]
        spread = [
            columns % config.head_dim + (h * groups + g) * config.head_dim
            for h, columns in enumerate(heads)
            for g in range(groups)
        ]
        values, outputs = torch.cat(heads), torch.cat(spread)
        for module in (layer.input_layernorm, layer.post_attention_layernorm):
            module.weight.copy_(module.weight[residual])
        for module in (attention.q_proj, attention.k_proj):
            module.weight.copy_(module.weight[:, residual])
        attention.v_proj.weight.copy_(attention.v_proj.weight[values][:, residual])
        attention.o_proj.weight.copy_(attention.o_proj.weight[residual][:, outputs])
        for module in (mlp.gate_proj, mlp.up_proj):
            module.weight.copy_(module.weight[inner][:, residual])
        mlp.down_proj.weight.copy_(mlp.down_proj.weight[residual][:, inner])


def documentation(encode: Callable[[str], Sequence[int]], first: int) -> Iterator[list[int]]:
    """Sequences of Python's own help, every second topic from ``first`` (0 or 1) on."""
    names = sorted(topics.topics)[first::2]
    ids: list[int] = []
    for name in names:
        ids += encode(topics.topics[name])
        while len(ids) >= LENGTH:
            yield ids[:LENGTH]
            ids = ids[LENGTH:]


@torch.no_grad()
def own_writing(model: Any, count: int, seed: int) -> list[list[int]]:
    """Sequences drawn from the model's own distribution, each from a random word on."""
    torch.manual_seed(seed)
    start = torch.randint(17, 40_000, (count, 1))
    ids = model.generate(
        input_ids=start,
        attention_mask=torch.ones_like(start),
        min_new_tokens=LENGTH - 1,
        max_new_tokens=LENGTH - 1,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=None,
        pad_token_id=0,
    )
    return [row.tolist() for row in ids]


def texts(model: Any, tokenizer: Any, file: Path) -> dict[str, list[list[int]]]:
    """Kind → sequences, from ``file`` where they were made before."""
    if file.exists():
        found: dict[str, list[list[int]]] = json.loads(file.read_text())
        return found

    def encode(text: str) -> Sequence[int]:
        ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    help_texts = [documentation(encode, first) for first in (0, 1)]
    found = {
        "documentation": [next(help_texts[0]) for _ in range(COUNTS["documentation"])],
        "calibration": [next(help_texts[1]) for _ in range(COUNTS["calibration"])],
        "written by the model": own_writing(model, COUNTS["written by the model"], seed=0),
    }
    file.write_text(json.dumps(found))
    return found


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """A quantization against the float model.

    Attributes:
        kl: mean KL(float ‖ quantized) in nats.
        kl_error: its standard error, sequences taken as independent.
        top1: share of positions with the same best token.
        perplexity: on the documentation.
    """

    positions: int
    kl: float
    kl_error: float
    top1: float
    perplexity: float


class Ruler:
    """The float model's log-probabilities, and what another model's logits are against them."""

    def __init__(self, model: Any, sequences: Mapping[str, list[list[int]]], file: Path) -> None:
        self.measured = [(kind, ids) for kind in MEASURED for ids in sequences[kind]]
        self.model = model
        vocabulary = model.config.vocab_size
        shape = (len(self.measured), LENGTH - 1, vocabulary)
        if not file.exists():
            part = file.with_suffix(".part")
            stored = np.memmap(part, np.float32, "w+", shape=shape)
            for place, logits in enumerate(self.asked()):
                stored[place] = logits.log_softmax(-1).numpy()
            stored.flush()
            part.rename(file)
        self.float = np.memmap(file, np.float32, "r", shape=shape)

    @torch.no_grad()
    def asked(self) -> Iterator[Tensor]:
        """The model as it is now, ``[T − 1, V]`` for each sequence."""
        for _, ids in self.measured:
            yield self.model(input_ids=torch.tensor([ids])).logits[0, :-1].float()

    def divergence(self, answers: Iterator[Tensor]) -> Divergence:
        """``answers``: logits ``[T − 1, V]`` of each sequence, in the order of ``measured``."""
        kl, same, losses = [], [], []
        for (kind, ids), reference, logits in zip(self.measured, self.float, answers, strict=True):
            p, q = torch.from_numpy(np.array(reference)), logits.log_softmax(-1)
            kl.append(float((p.exp() * (p - q)).sum(-1).double().mean()))
            same.append(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
            if kind == "documentation":
                losses.append(-float(q[torch.arange(len(q)), torch.tensor(ids[1:])].double().mean()))
        return Divergence(
            positions=len(kl) * (LENGTH - 1),
            kl=float(np.mean(kl)),
            kl_error=float(np.std(kl, ddof=1) / np.sqrt(len(kl))),
            top1=float(np.mean(same)),
            perplexity=float(np.exp(np.mean(losses))),
        )


class Recorded:
    """Statistics of every matrix's inputs on the calibration text, as quantization methods ask for them."""

    def __init__(self, moments: Mapping[str, Array], peaks: Mapping[str, Array]) -> None:
        self.stored, self.stored_peaks = dict(moments), dict(peaks)

    @classmethod
    @torch.no_grad()
    def on(cls, model: Any, sequences: Sequence[Sequence[int]], file: Path) -> Recorded:
        """From ``file`` where they were collected before."""
        if not file.exists():
            _collect(model, sequences, file)
        with np.load(file) as arrays:
            split = {kind: {k[2:]: arrays[k] for k in arrays if k[0] == kind} for kind in "mp"}
        return cls(split["m"], split["p"])

    @staticmethod
    def _place(name: str) -> str:
        layer, _, part = name.rpartition(".")
        return f"{layer}.{SAME_INPUT.get(part, part)}" if layer else name

    def moments(self, name: str) -> Moments | None:
        found = self.stored.get(self._place(name))
        return None if found is None else Moments(found)

    def peaks(self, name: str) -> Array | None:
        return self.stored_peaks.get(self._place(name))


def _collect(model: Any, sequences: Sequence[Sequence[int]], file: Path) -> None:
    sums: dict[str, Tensor] = {}
    peaks: dict[str, Tensor] = {}
    modules = {"lm_head": model.lm_head}
    for i, layer in enumerate(model.model.layers):
        modules |= {f"layers.{i}.{part}": getattr(getattr(layer, at), part) for part, at in INPUTS.items()}

    def hook_of(name: str) -> Callable[..., None]:
        def hook(_: Any, arguments: tuple[Tensor]) -> None:
            x = arguments[0].reshape(-1, arguments[0].shape[-1])
            sums[name] = sums.get(name, 0) + x.T @ x
            peaks[name] = torch.maximum(peaks.get(name, torch.zeros(x.shape[1])), x.abs().amax(0))

        return hook

    hooks = [module.register_forward_pre_hook(hook_of(name)) for name, module in modules.items()]
    for ids in sequences:
        model(input_ids=torch.tensor([list(ids)]))
    for hook in hooks:
        hook.remove()
    seen = sum(map(len, sequences))
    arrays = {f"m:{name}": (value / seen).numpy() for name, value in sums.items()}
    np.savez(file, **arrays, **{f"p:{name}": value.numpy() for name, value in peaks.items()})


def load(directory: Path) -> Any:
    """In float32."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def prepare(source: Path, directory: Path, *, shuffle: bool) -> None:
    """Write the model to be quantized, shuffled or as it is, where it isn't there yet."""
    if (directory / "config.json").exists():
        return
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    if shuffle:
        shuffled(model)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(source).save_pretrained(directory)
