"""coremltools 9.0: its message definitions without itself, a linear operator of ours, its checks, draws and log."""

from __future__ import annotations

import importlib
import importlib.util
import io
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from .process import quiet, replaced

_PROTO = "_scale_export_coreml_proto"


def message_definitions() -> ModuleType | None:
    """``coremltools.proto.Model_pb2`` without ``import coremltools``, which takes seconds, logs and loads torch.

    It is imported under a name of ours, so that ``coremltools`` is as unimported as before; None where it is missing.
    """
    if _PROTO not in sys.modules:
        spec = importlib.util.find_spec("coremltools")
        if spec is None or spec.origin is None:
            return None
        package = ModuleType(_PROTO)
        package.__path__ = [str(Path(spec.origin).with_name("proto"))]
        sys.modules[_PROTO] = package
    return importlib.import_module(f"{_PROTO}.Model_pb2")


def import_coremltools() -> Any:
    """coremltools, without its words on libraries that it has not been tested with."""
    with unheard():
        import coremltools

        return coremltools


@contextmanager
def unheard() -> Iterator[None]:
    """Silence coremltools' log, progress bars and warnings, which a user can't act on."""
    names = ("coremltools", "coremltools.converters", "coremltools.models")
    with quiet(*names, level=logging.CRITICAL), redirect_stderr(io.StringIO()):
        yield


@contextmanager
def unwatched() -> Iterator[None]:
    """Spare what coremltools does with the whole program after each pass: its check, and its words for a log.

    They take most of a conversion's time, and there is no switch. The joined program is checked where it is written.
    """
    from coremltools.converters.mil.mil import Program

    def validate(self: object, check_essential_scope: bool = False) -> None:
        return None

    with replaced(Program, validate=validate, __str__=lambda self: "a program"):
        yield


@contextmanager
def undrawn() -> Iterator[None]:
    """A conversion draws from NumPy's global generator, which goes on after it where it was."""
    state = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(state)


@contextmanager
def torch_operator(name: str, convert: Callable[[Any, Any], None]) -> Iterator[None]:
    """Within, coremltools converts the operator ``name`` of a traced module by ``convert(context, node)``.

    Its registry of operators is one for the process, and takes none out again.
    """
    from coremltools.converters.mil.frontend.torch import torch_op_registry

    table = torch_op_registry._TORCH_OPS_REGISTRY
    known = {**table.name_to_func_mapping, name: convert}
    with replaced(table, name_to_func_mapping=known):
        yield
