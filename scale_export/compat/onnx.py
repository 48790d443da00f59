"""torch 2.13's exporter to ONNX with onnxscript 0.7: two costs that it has no switch for, and its log."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from .process import quiet, replaced


@contextmanager
def spared() -> Iterator[None]:
    """Spare the exporter two things that leave our graphs as they are.

    Its table of operators is made once: making it takes as long as a small graph. And it looks for no two Slices that
    are one Split: our graphs have none, and the search takes the square of their nodes, most of a large tower's time.
    """
    from onnxscript import rewriter
    from onnxscript.rewriter.rules.common._basic_rules import slice_split_rule
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    rules = tuple(rule for rule in rewriter._DEFAULT_REWRITE_RULES if rule is not slice_split_rule)
    with (
        replaced(ONNXRegistry, from_torchlib=staticmethod(_kept_tables())),
        replaced(rewriter, _DEFAULT_REWRITE_RULES=rules),
    ):
        yield


@functools.cache
def _kept_tables() -> Callable[..., object]:
    """``ONNXRegistry.from_torchlib``, which makes each table once; first called before the class is changed."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    return functools.cache(ONNXRegistry.from_torchlib)


def unheard() -> AbstractContextManager[None]:
    """No log lines and deprecation warnings of the exporter's own calls, which a user can't act on."""
    return quiet("torch.onnx", "onnx_ir", "onnxscript")
