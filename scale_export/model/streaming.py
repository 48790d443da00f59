"""Models larger than memory: modules without weights, which are read from the checkpoint when they are used.

Rules:
1. Towers and projectors are loaded in float32; a language decoder's weights and its output head stay on disk.
   Each module of it reads its own, in float32, before its forward and drops them after.
2. The arithmetic is the modules' own, and every weight has the value that a loaded model has: results are the
   same, bit for bit.
3. Who streams says what reads: ``own_reader`` for what is exported, ``independent`` for the reference that proves it.
4. ``reference_choice.must_stream`` is the one place that decides whether a model is loaded or streamed.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from scale_export.core.huggingface import Config, Model

from .arithmetic import TorchKernels
from .checkpoint import Checkpoint
from .sites import text_decoder
from .weights import DecoderWeights

Reader = Callable[[str], Tensor]
"""A parameter by its module's name → its values, float32, read anew at every call."""


def own_reader(checkpoint: Checkpoint) -> Reader:
    """What exports are made with; see ``independent`` for another."""
    return lambda name: checkpoint.tensor(name).to(torch.float32)


def streamed_model(read: Reader, config: Config) -> Model:
    """The Hugging Face model in float32 and in evaluation mode, its language decoder streamed (rule 1).

    Raises:
        UserError: ``read`` finds no weight of it.
    """
    from transformers import AutoModelForImageTextToText
    from transformers.initialization import no_init_weights

    with _parameters_on_meta(), no_init_weights(), torch.random.fork_rng(devices=[]):
        model: Model = AutoModelForImageTextToText.from_config(
            copy.deepcopy(config), dtype=torch.float32, trust_remote_code=False
        )
    model.eval().requires_grad_(False)
    streamed = {*text_decoder(model).modules(), *_head(model)}
    for path, module in model.named_modules():
        names = {name: f"{path}.{name}" if path else name for name in module._parameters}
        if module in streamed:
            _stream(module, names, read)
            continue
        for name, full in names.items():
            if module._parameters[name] is not None:
                module._parameters[name] = _fixed(read(full))
    return model


def _head(model: Model) -> list[nn.Module]:
    head = model.get_output_embeddings()
    return [] if head is None else [head]


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Modules built here have parameters without values; buffers, which no checkpoint holds, are real."""
    register = nn.Module.register_parameter

    def register_empty(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(self, name, param)
        if param is not None:
            self._parameters[name] = nn.Parameter(param.detach().to("meta"), requires_grad=False)

    nn.Module.register_parameter = register_empty  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _fixed(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)


def _stream(module: nn.Module, names: dict[str, str], reader: Reader) -> None:
    """Read the module's own parameters before each forward, and drop them after it."""
    empty = {name: value for name, value in module._parameters.items() if value is not None}
    if not empty:
        return

    def read(module: nn.Module, args: object) -> None:
        for name in empty:
            module._parameters[name] = _fixed(reader(names[name]))

    def drop(module: nn.Module, args: object, output: object) -> None:
        module._parameters.update(empty)

    module.register_forward_pre_hook(read)
    module.register_forward_hook(drop, always_call=True)


class StreamedKernels(TorchKernels):
    """``TorchKernels`` that read each weight when it is used and hold none."""

    def __init__(self, weights: DecoderWeights, dtype: torch.dtype = torch.float32) -> None:
        nn.Module.__init__(self)
        self.spec = weights.spec
        self.tensors = _Unheld(weights, dtype)


class _Unheld(dict[str, Tensor]):
    """Looks like the tensors of ``TorchKernels``; every look reads the weight again."""

    def __init__(self, weights: DecoderWeights, dtype: torch.dtype) -> None:
        super().__init__()
        self._weights, self._dtype = weights, dtype
        self._linears, self._norms = weights.spec.linears(), set(weights.spec.norms())

    def __getitem__(self, name: str) -> Tensor:
        owner = name.removesuffix(".bias")
        if name in self._linears:
            return self._weights.matrix(name).to(self._dtype)
        if owner in self._linears:
            bias = self._weights.bias(owner)
            assert bias is not None, "only biases that exist are asked for"
            return bias.to(self._dtype)
        return self._weights.norm(name).to(self._dtype)

    def get(self, name: str, default: Any = None) -> Any:
        linear = self._linears.get(name.removesuffix(".bias"))
        return default if name.endswith(".bias") and not (linear and linear[2]) else self[name]
