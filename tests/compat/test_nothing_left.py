"""A whole export, training and opened packages leave their process as they found it."""

from __future__ import annotations

import gc
import json
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import onnxscript.rewriter
import pytest
import torch
from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY
from coremltools.converters.mil.mil import Program
from torch.onnx._internal.exporter._registration import ONNXRegistry
from transformers.models.qwen2_vl.processing_qwen2_vl import Qwen2VLProcessor
from transformers.models.smolvlm import processing_smolvlm

from scale_export.compat.process import replaced
from tests.helpers.process_state import differences, snapshot


@pytest.mark.slow
def test_nothing_differs_after_every_target_and_command(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.process_state", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == []


@contextmanager
def attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    with replaced(owner, **{name: value}):
        yield


@contextmanager
def undone(do: Callable[[], Any], undo: Callable[[], Any]) -> Iterator[None]:
    do()
    try:
        yield
    finally:
        undo()


def defaults(function: Any, planted: tuple[Any, ...]) -> Any:
    own = function.__defaults__
    return undone(
        lambda: setattr(function, "__defaults__", planted), lambda: setattr(function, "__defaults__", own)
    )


STUB = "transformers.models.pixtral.image_processing_pixtral"
LOGGER = logging.getLogger("onnxscript")
LEAKS: dict[str, Callable[[], Any]] = {
    "a class method": lambda: attribute(Qwen2VLProcessor, "get_attributes", classmethod(lambda cls: [])),
    "defaults": lambda: defaults(processing_smolvlm.SmolVLMProcessor.__init__, (None, 169, None)),
    "a module's name": lambda: attribute(processing_smolvlm, "num2words", str),
    "an inherited method": lambda: attribute(processing_smolvlm.SmolVLMProcessor, "__call__", print),
    "the exporter's table": lambda: attribute(ONNXRegistry, "from_torchlib", staticmethod(print)),
    "rewrite rules": lambda: attribute(onnxscript.rewriter, "_DEFAULT_REWRITE_RULES", ()),
    "a program's check": lambda: attribute(Program, "validate", print),
    "a parameter's registration": lambda: attribute(torch.nn.Module, "register_parameter", print),
    "an operator": lambda: undone(
        lambda: _TORCH_OPS_REGISTRY.name_to_func_mapping.update(planted=print),
        lambda: _TORCH_OPS_REGISTRY.name_to_func_mapping.pop("planted"),
    ),
    "a stub": lambda: undone(
        lambda: sys.modules.update({STUB: sys.modules["transformers.models.auto.processing_auto"]}),
        lambda: sys.modules.pop(STUB),
    ),
    "a filter": lambda: undone(lambda: warnings.simplefilter("ignore"), lambda: warnings.filters.pop(0)),
    "a log level": lambda: attribute(LOGGER, "level", LOGGER.level + 1),
    "a variable": lambda: undone(lambda: os.environ.update(PLANTED="1"), lambda: os.environ.pop("PLANTED")),
    "a default type": lambda: undone(
        lambda: torch.set_default_dtype(torch.float16), lambda: torch.set_default_dtype(torch.float32)
    ),
    "gradients": torch.no_grad,
    "deterministic algorithms": lambda: undone(
        lambda: torch.use_deterministic_algorithms(True), lambda: torch.use_deterministic_algorithms(False)
    ),
    "random numbers": lambda: torch.random.fork_rng(devices=[]),
    "the collector": lambda: undone(gc.disable, gc.enable),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_a_leak_is_seen(leak: str):
    before = snapshot()
    with LEAKS[leak]():
        if leak == "random numbers":
            torch.rand(1)
        assert differences(before, snapshot())
    assert differences(before, snapshot()) == []


def test_what_an_import_brings_is_no_leak():
    before = snapshot()
    after = {**before, "sys.modules['transformers.new']": ModuleType("transformers.new")}
    assert differences(before, after) == []
    assert differences(before, {**before, "transformers.processing_utils.planted": 1})
