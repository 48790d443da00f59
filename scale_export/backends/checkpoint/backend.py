"""The checkpoint backend as the pipeline sees it: refuse what can't be folded, write, and say what did not run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scale_export.backends.interface import Backend, Emission
from scale_export.core.records import NotChecked
from scale_export.model.base import BaseModel
from scale_export.model.folding import fold
from scale_export.plan.record import Plan
from scale_export.plan.targets import Target

from .writer import copy_other_files, edits_of, refuse_unfoldable, weight_bytes, write_weights

ROLE = "checkpoint"


class FoldedCheckpoint(Backend):
    """A folded Hugging Face model directory. Nothing here runs it, and its tensors keep the base's dtypes."""

    makes = "checkpoint"
    coefficients = "scale/scale.safetensors"
    """In a folder, since loaders of checkpoints take every safetensors file beside the weights for weights."""

    def check(self, plan: Plan) -> None:
        """Refuse tensors that scalars can't be folded into where they lie; raises UserError."""
        weights = plan.base.stored_weights
        refuse_unfoldable(weights.checkpoint, edits_of(fold(weights, plan.coefficients, "weights"), weights))

    def least_bytes(self, base: BaseModel) -> int:
        return weight_bytes(base.checkpoint)

    def write(self, emission: Emission, directory: Path) -> dict[str, str]:
        """Write the folded model directory; ``checkpoint`` → its one weight file, or the index of several."""
        weights = emission.base.stored_weights
        name = write_weights(weights.checkpoint, edits_of(emission.decoder, weights), directory)
        copy_other_files(emission.base.directory, directory)
        return {ROLE: name}

    def remake(self, emission: Emission, directory: Path) -> None:
        """Copy what the base model has beside its weights."""
        copy_other_files(emission.base.directory, directory)

    def not_checked(self, target: Target) -> Sequence[NotChecked]:
        """What transformers on this machine can't prove of the runtimes that take the checkpoint."""
        reason = (
            "llama.cpp, MLX, vLLM and the rest convert and quantize the checkpoint by themselves, and none of "
            "them ran here"
        )
        return (NotChecked("runtimes", reason),)


BACKEND = FoldedCheckpoint()
