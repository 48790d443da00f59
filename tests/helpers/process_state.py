"""What a library could change in its user's process, as values to compare.

``python -m tests.helpers.process_state OUT`` exports, trains and asks in a new process, and prints what is different
after it as JSON.
"""

from __future__ import annotations

import gc
import importlib
import json
import locale
import logging
import os
import random
import sys
import warnings
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from transformers.utils import logging as transformers_log

from scale_export import families
from scale_export.core.words import Scope
from scale_export.device.package import open_package
from scale_export.model.base import open_base
from scale_export.pipeline.api import fold
from scale_export.training.options import TrainOptions
from scale_export.training.run import run_training

from .coefficients import random_coefficients
from .models import FAMILIES
from .pictures import picture

SCOPES: tuple[Scope, ...] = ("last", "all")
MODULES = (
    "transformers.processing_utils",
    "transformers.models.auto.processing_auto",
    "transformers.models.internvl.processing_internvl",
    "transformers.models.llava_onevision.processing_llava_onevision",
    "transformers.models.paligemma.processing_paligemma",
    "transformers.models.qwen2_vl.processing_qwen2_vl",
    "transformers.models.qwen2_5_vl.processing_qwen2_5_vl",
    "transformers.models.qwen3_vl.processing_qwen3_vl",
    "transformers.models.smolvlm.processing_smolvlm",
    "torch.nn.modules.module",
    "torch.onnx._internal.exporter._registration",
    "onnxscript.rewriter",
    "onnxscript.optimizer",
    "onnx_ir",
    "coremltools",
    "coremltools.converters.mil.frontend.torch.torch_op_registry",
    "coremltools.converters.mil.mil.program",
)
"""Those that an export touches: they and the classes in them keep every attribute."""

STUBBED = ("transformers.", "coremltools.", "onnxscript.", "torch.", "onnx_ir.", "coreai_torch.")
"""Libraries under whose names nothing else may be imported."""

UPSTREAM: Mapping[str, str] = {
    "coremltools.converters.mil.mil.program.k_num_internal_syms": "coremltools counts its symbols",
    "coremltools.converters.mil.mil.program.Placeholder.counter": "and its inputs",
    "coremltools.converters.mil.mil.program.StateTensorPlaceholder.counter": "and its states",
    "torch.nn.modules.module.Module.smart_apply": "transformers adds it to initialize any model",
    "logger torch.__trace": "torch drops a handler of its own at the first trace",
}
"""What libraries change in themselves with every use, and why."""

CACHES = (".__slotnames__", ".__annotations__")
"""What Python keeps on a class that was copied, or whose annotations were asked for."""

Snapshot = Mapping[str, object]


def snapshot() -> Snapshot:
    """Everything that an export must leave as it was, by a name that says what it is."""
    return dict(_items())


def _items() -> Iterator[tuple[str, object]]:
    for name in MODULES:
        yield from _attributes(importlib.import_module(name))
    registry = importlib.import_module(MODULES[-2])._TORCH_OPS_REGISTRY
    yield "coremltools' operators", dict(registry.name_to_func_mapping)
    yield "warnings.filters", list(warnings.filters)
    yield "warnings.showwarning", warnings.showwarning
    for name, logger in sorted(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger):
            yield f"logger {name}", (logger.level, logger.propagate, logger.disabled, list(logger.handlers))
    yield "root logger", (logging.root.level, list(logging.root.handlers), logging.root.manager.disable)
    yield "os.environ", dict(os.environ)
    yield "transformers' progress bars", transformers_log.is_progress_bar_enabled()
    yield (
        "torch",
        (
            torch.get_default_dtype(),
            torch.get_num_threads(),
            torch.get_num_interop_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_grad_enabled(),
            torch.get_float32_matmul_precision(),
            torch.is_autocast_enabled("cpu"),
            torch.get_default_device(),
        ),
    )
    yield "random numbers", (random.getstate(), torch.get_rng_state().tolist(), repr(np.random.get_state()))
    yield "numpy", (np.geterr(), repr(np.get_printoptions()))
    yield (
        "process",
        (gc.isenabled(), Path.cwd(), list(sys.path), sys.stdout, sys.stderr, locale.setlocale(locale.LC_ALL)),
    )
    yield "stubs", sorted(_stubs())
    yield from (
        (f"sys.modules[{name!r}]", module)
        for name, module in sorted(sys.modules.items())
        if name.startswith(STUBBED)
    )


def _attributes(module: ModuleType) -> Iterator[tuple[str, object]]:
    """A module's attributes and those of its own classes."""
    for name, value in vars(module).items():
        yield f"{module.__name__}.{name}", Same(value)
        if isinstance(value, type) and value.__module__ == module.__name__:
            yield from ((f"{module.__name__}.{name}.{k}", Same(v)) for k, v in vars(value).items())
            yield f"{module.__name__}.{name}.__init__ defaults", getattr(value.__init__, "__defaults__", None)


class Same:
    """Equal to itself held again, not to an equal value."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.value is self.value

    __hash__ = None  # type: ignore[assignment]


def _stubs() -> Iterator[str]:
    """Names in ``sys.modules`` of these libraries under which another module lies."""
    for name, module in list(sys.modules.items()):
        own = getattr(getattr(module, "__spec__", None), "name", None)
        if name.startswith(STUBBED) and isinstance(module, ModuleType) and own not in (name, None):
            yield name


def differences(before: Snapshot, after: Snapshot) -> list[str]:
    """What is gone, or another than before. New may be what an import brings alone: modules, and their loggers."""
    changed = [name for name in before if name not in after or after[name] != before[name]]
    new = [name for name in after if name not in before and not _by_import(name, after)]
    return [name for name in changed + new if name not in UPSTREAM and not name.endswith(CACHES)]


def _by_import(name: str, after: Snapshot) -> bool:
    if name.startswith(("sys.modules", "logger ")):
        return True
    value = after[name]
    return isinstance(value, Same) and isinstance(value.value, ModuleType)


def use_everything(out: Path) -> None:
    """Every target and command that this environment has, on a random model, and the processor of every family."""
    for family, recipe in FAMILIES.items():
        _, processor = recipe.prepared()
        processor.save_pretrained(out / family)
        families.resolve_family(family).load_processor(out / family)
    model = out / "model"
    base = open_base(str(model))
    coefficients = {scope: out / f"{scope}.safetensors" for scope in SCOPES}
    for scope, path in coefficients.items():
        random_coefficients(base, scope).save(path)
    for target in ("cpu", "coreml", *(["coreai"] if find_spec("coreai_torch") else [])):
        precision = "float16" if target == "coreml" else "float32"
        outcome = fold(
            coefficients["last"],
            target,
            out=out / target,
            model=str(model),
            precision=precision,
            evaluation="none",
        )
        if outcome.passed:  # a random model's float16 needn't
            open_package(outcome.path).answer([picture()], "where is the circle ?", max_new_tokens=2)
    fold(coefficients["all"], "checkpoint", out=out / "checkpoint", model=str(model), evaluation="none")
    run_training(
        model, out / "trained.safetensors", TrainOptions(steps=2, batch_size=4, limit=8, evaluate_every=2)
    )


def main(out: Path) -> None:
    """Use everything and print what differs, from what there was after the libraries were imported."""
    FAMILIES["llava"](directory=out / "model")  # which draws random numbers
    before = snapshot()
    use_everything(out)
    print(json.dumps(differences(before, snapshot())))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
