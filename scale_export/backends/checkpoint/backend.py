"""The checkpoint backend as the pipeline sees it: refuse what can't be folded, write, and say what did not run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scale_export.core.records import NotChecked
from scale_export.model.folding import FoldedDecoder, fold
from scale_export.plan.record import Plan

from .writer import copy_other_files, edits_of, refuse_unfoldable, weight_bytes, write_weights

LIBRARIES: Sequence[str] = ()
ROLE = "checkpoint"
__all__ = ["LIBRARIES", "check", "not_checked", "weight_bytes", "write"]


def check(plan: Plan) -> None:
    """Refuse tensors that scalars can't be folded into where they lie; raises UserError."""
    weights = plan.base.weights
    refuse_unfoldable(weights.checkpoint, edits_of(fold(weights, plan.coefficients, "weights"), weights))


def write(folded: FoldedDecoder, plan: Plan, directory: Path) -> dict[str, str]:
    """Write the folded model directory; ``checkpoint`` → its one weight file, or the index of several."""
    weights = plan.base.weights
    name = write_weights(weights.checkpoint, edits_of(folded, weights), directory)
    copy_other_files(plan.base.directory, directory)
    return {ROLE: name}


def not_checked() -> Sequence[NotChecked]:
    """What transformers on this machine can't prove of the runtimes that take the checkpoint."""
    reason = (
        "llama.cpp, MLX, vLLM and the rest convert and quantize the checkpoint by themselves, and none of "
        "them ran here"
    )
    return (NotChecked("runtimes", reason),)
