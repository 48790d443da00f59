"""transformers 5.0 to 5.24: processors where torchvision is missing, and its words and progress bars."""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .process import replaced

MODELS = "transformers.models"
ADVICE = "TRANSFORMERS_NO_ADVISORY_WARNINGS"


def model_class(path: str) -> Any:
    """A class of ``transformers.models`` by ``package.module.Class``, where the lazy top level doesn't offer it."""
    module, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(f"{MODELS}.{module}"), name)


def has_torchvision() -> bool:
    """Whether transformers finds torchvision, which its video processors take."""
    from transformers.utils import is_torchvision_available

    return bool(is_torchvision_available())


@contextmanager
def errors_only() -> Iterator[None]:
    """Nothing but errors from transformers' log, which else advises on every processor that it loads."""
    from transformers.utils import logging as log

    level = log.get_logger().level
    log.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        log.set_verbosity(level)


@contextmanager
def off_the_screen() -> Iterator[None]:
    """Within a command: no progress bars, advice or log lines of transformers and its hub client."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
    from transformers.utils import logging as log

    advice, bars, hub_bars = (
        os.environ.get(ADVICE),
        log.is_progress_bar_enabled(),
        are_progress_bars_disabled(),
    )
    os.environ.setdefault(ADVICE, "1")
    log.disable_progress_bar()
    try:
        with errors_only():
            yield
    finally:
        if advice is None:
            os.environ.pop(ADVICE, None)
        if bars:
            log.enable_progress_bar()
        if hub_bars:
            disable_progress_bars()


@functools.cache
def without_videos(path: str) -> Any:
    """A processor's class that takes no video processor, which can't be built where torchvision is missing.

    ``ProcessorMixin`` loads and asks for whatever ``get_attributes`` names. The subclass goes by the name of the class
    that it stands for, which is what transformers compares and saves.

    Args:
        path: of the class, as ``model_class`` takes it; its own ``video_processor`` must have a default.
    """
    original = model_class(path)

    @classmethod  # type: ignore[misc]
    def get_attributes(cls: Any) -> list[str]:
        return ["image_processor", "tokenizer"]

    return type(original.__name__, (original,), {**_named_as(original), "get_attributes": get_attributes})


@functools.cache
def smolvlm_without_videos() -> Any:
    """SmolVLM's processor for pictures, where torchvision or num2words is missing.

    Its own asks for a video processor without a default and for num2words, which write videos into prompts, and reads
    a video processor's settings with every chat.
    """
    from transformers.models.smolvlm import processing_smolvlm as module

    original = module.SmolVLMProcessor
    length = inspect.signature(original.__init__).parameters["image_seq_len"].default

    def __init__(
        self: Any,
        image_processor: Any,
        tokenizer: Any,
        image_seq_len: int = length,
        chat_template: Any = None,
    ) -> None:
        with replaced(module, num2words=module.num2words or str):  # it asks whether there is one
            original.__init__(
                self,
                image_processor,
                tokenizer,
                None,
                image_seq_len=image_seq_len,
                chat_template=chat_template,
            )

    chat = module.ProcessorMixin.apply_chat_template
    own = {"__init__": __init__, "apply_chat_template": chat}
    return type(
        original.__name__,
        (without_videos("smolvlm.processing_smolvlm.SmolVLMProcessor"),),
        {**_named_as(original), **own},
    )


def smolvlm_has_videos() -> bool:
    """Whether SmolVLM's own processor can be built."""
    from transformers.models.smolvlm import processing_smolvlm

    return has_torchvision() and bool(processing_smolvlm.num2words)


@functools.cache
def pixtral_without_torchvision() -> Any:
    """Pixtral's processor, whose module asks for torchvision beside a function that its PIL twin has too.

    The module is imported over the twin and kept here: to the rest of the process neither has been imported.
    """
    package = importlib.import_module(f"{MODELS}.pixtral")
    module, missing = f"{MODELS}.pixtral.processing_pixtral", f"{MODELS}.pixtral.image_processing_pixtral"
    twin = importlib.import_module(f"{MODELS}.pixtral.image_processing_pil_pixtral")
    with _unimported(package, module, missing):
        sys.modules[missing] = twin
        return importlib.import_module(module).PixtralProcessor


@contextmanager
def _unimported(package: Any, *modules: str) -> Iterator[None]:
    """Modules of a package that are imported anew within, and are after it what they were before."""
    names = [module.rpartition(".")[2] for module in modules]
    loaded = {module: sys.modules.pop(module, None) for module in modules}
    own = {name: vars(package)[name] for name in names if name in vars(package)}
    try:
        yield
    finally:
        for module, before in loaded.items():
            if before is None:
                sys.modules.pop(module, None)
            else:
                sys.modules[module] = before
        for name in names:
            vars(package).pop(name, None)
        vars(package).update(own)


def _named_as(original: Any) -> dict[str, Any]:
    return {name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")}
