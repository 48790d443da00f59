"""onnxruntime 1.30 to 1.32: its quantizer, whose module sets the process's own log to INFO as it is imported."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


def weight_quantizer() -> ModuleType:
    """``onnxruntime.quantization.matmul_nbits_quantizer``, without what its import does to the log and the path."""
    with _log_and_path_kept():
        return importlib.import_module("onnxruntime.quantization.matmul_nbits_quantizer")


@contextmanager
def _log_and_path_kept() -> Iterator[None]:
    """It calls ``logging.basicConfig``, and a package beside it puts its folder on ``sys.path``."""
    root, path = logging.getLogger(), list(sys.path)
    level, handlers = root.level, list(root.handlers)
    try:
        yield
    finally:
        sys.path[:] = path
        root.setLevel(level)
        root.handlers[:] = handlers
