"""transformers 5.0 to 5.24: processors where torchvision is missing, and its words and progress bars."""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from .process import replaced

LIBRARY = "transformers"
MODELS = "transformers.models"
ADVICE = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
LEVEL = "TRANSFORMERS_VERBOSITY"
LOG = "transformers.utils.logging"
VIDEO_WORDS = ("DEFAULT_MEDIA_OUTTRO", "DEFAULT_VIDEO_INTRO", "FRAME_TIMESTAMP_MESSAGE")


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
    """Within a command: no progress bars, advice or log lines of transformers and its hub client.

    Transformers that is imported only within reads the same from variables, and need not be imported for it.
    """
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    root, log, hub_bars = logging.getLogger(LIBRARY), sys.modules.get(LOG), are_progress_bars_disabled()
    level, bars = (root.level, log.is_progress_bar_enabled()) if log else (logging.WARNING, not hub_bars)
    variables = {name: os.environ.get(name) for name in (ADVICE, LEVEL)}
    os.environ.setdefault(ADVICE, "1")
    os.environ.setdefault(LEVEL, "error")
    disable_progress_bars()  # transformers' own follow them when it is imported
    if log:
        log.disable_progress_bar()
    unimported = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, before in variables.items():
            if before is None:
                os.environ.pop(name, None)
        if not hub_bars:
            enable_progress_bars()
        log = sys.modules.get(LOG)
        root.setLevel(level if log else unimported)
        if log and bars:
            log.enable_progress_bar()
            if hub_bars:
                disable_progress_bars()


def stand_in(original: Any, **members: Any) -> Any:
    """A subclass that goes by the name of the class that it stands for, which transformers compares and saves.

    Args:
        members: what it has of its own.
    """
    named = {name: getattr(original, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(original.__name__, (original,), {**named, **members})


def without_videos(path: str) -> Any:
    """A processor's class that takes no video processor, which can't be built where torchvision is missing.

    ``ProcessorMixin`` loads and asks for whatever ``get_attributes`` names.

    Args:
        path: of the class, as ``model_class`` takes it; its ``video_processor`` has a default.
    """
    return _without_videos(model_class(path))


@functools.cache
def _without_videos(original: Any) -> Any:
    return stand_in(original, get_attributes=classmethod(_no_videos))


def _no_videos(kind: object) -> list[str]:
    return ["image_processor", "tokenizer"]


def smolvlm_without_videos() -> Any:
    """SmolVLM's processor for pictures, where torchvision or num2words is missing.

    Its own asks for a video processor without a default and for num2words, which write videos into prompts, and reads
    a video processor's settings with every chat.
    """
    return _smolvlm_without_videos(_smolvlm_module())


@functools.cache
def _smolvlm_without_videos(module: Any) -> Any:
    original = module.SmolVLMProcessor
    length = inspect.signature(original.__init__).parameters["image_seq_len"].default

    def __init__(
        self: object,
        image_processor: object,
        tokenizer: object,
        image_seq_len: int = length,
        chat_template: str | None = None,
    ) -> None:
        own = {"image_seq_len": image_seq_len, "chat_template": chat_template}
        with replaced(module, num2words=module.num2words or str):  # it asks whether there is one
            original.__init__(self, image_processor, tokenizer, None, **own)

    return stand_in(
        original,
        __init__=__init__,
        get_attributes=classmethod(_no_videos),
        apply_chat_template=module.ProcessorMixin.apply_chat_template,
    )


def smolvlm_has_videos() -> bool:
    """Whether SmolVLM's own processor can be built."""
    return has_torchvision() and bool(_smolvlm_module().num2words)


def _smolvlm_module() -> Any:
    """``processing_smolvlm``; before 5.5 it takes words about videos from a module that asks for torchvision."""
    module, missing = f"{MODELS}.smolvlm.processing_smolvlm", f"{MODELS}.smolvlm.video_processing_smolvlm"
    try:
        return importlib.import_module(module)
    except ImportError:
        words = ModuleType(missing)
        vars(words).update(dict.fromkeys(VIDEO_WORDS, ""))
        with _unimported(importlib.import_module(f"{MODELS}.smolvlm"), module, missing):
            sys.modules[missing] = words
            return importlib.import_module(module)


def pixtral_without_torchvision() -> Any:
    """Pixtral's processor, whose module asks for torchvision beside a function that its PIL twin has too.

    The module is imported over the twin and kept here: to the rest of the process neither has been imported. Before
    5.4 there was no twin, and the module asked for no torchvision.
    """
    return _pixtral_without_torchvision(importlib.import_module(f"{MODELS}.pixtral"))


@functools.cache
def _pixtral_without_torchvision(package: ModuleType) -> Any:
    module, missing = f"{MODELS}.pixtral.processing_pixtral", f"{MODELS}.pixtral.image_processing_pixtral"
    try:
        twin = importlib.import_module(f"{MODELS}.pixtral.image_processing_pil_pixtral")
    except ModuleNotFoundError:
        return importlib.import_module(module).PixtralProcessor
    with _unimported(package, module, missing):
        sys.modules[missing] = twin
        return importlib.import_module(module).PixtralProcessor


@contextmanager
def _unimported(package: ModuleType, *modules: str) -> Iterator[None]:
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


def parameter_names(skeleton: Any, stored: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """By what parameter's name transformers loads each stored tensor, and which it computes from stored ones.

    Args:
        skeleton: a ``PreTrainedModel``, whose tensors may be shapes only.
        stored: the names in the files.

    Returns:
        A parameter's name → the stored one; and the names of parameters that are joined, split or turned on loading.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    rules = get_model_conversion_mapping(skeleton)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    due, names, converted = skeleton.state_dict(), {}, []
    for name in stored:
        found, pattern = rename_source_key(name, renamings, converters, skeleton.base_model_prefix, due)
        if found not in due and name in due:  # as transformers goes back on a rule that leads nowhere
            found, pattern = rename_source_key(name, [], [], skeleton.base_model_prefix, due)
        if pattern is not None and found in due:
            converted.append(found)
        names[found] = name
    return names, converted
