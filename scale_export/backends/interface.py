"""What a backend is: an object that writes a package's files. What else it can do, its type says."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from scale_export.core.errors import UserError
from scale_export.core.records import NotChecked, SideFacts, TowerInput
from scale_export.core.words import FloatType, FoldMode, Precision
from scale_export.device.engine import Engine, Tap
from scale_export.device.open import NOT_RUN
from scale_export.model.base import BaseModel
from scale_export.model.blocks import hash_codes
from scale_export.model.folding import FoldedDecoder
from scale_export.plan.record import Plan, float_types
from scale_export.plan.targets import Target

from .processor import copy_processor
from .units import BaseUnits


@dataclass(frozen=True, slots=True, kw_only=True)
class Emission:
    """What one package is made of.

    Attributes:
        decoder: with its scalars placed, and its weights at ``precision``.
        base: whose vision tower, processor and names go with it.
        target: the runtime's settings.
        vision_precision: of the tower; ``int8`` and ``int4`` have towers in a precision of their own.
        block_size: weights per scale of a block-quantized matrix; 0 where there are no blocks.
        tower_inputs: of one tile, or of the largest picture.
        prefill_tokens: how many tokens a runtime of fixed shapes takes at once; None of the others.
    """

    decoder: FoldedDecoder
    base: BaseModel
    target: Target
    fold: FoldMode
    precision: Precision
    vision_precision: Precision
    block_size: int
    context_length: int
    tower_inputs: Mapping[str, TowerInput]
    prefill_tokens: int | None

    @classmethod
    def of(cls, plan: Plan, decoder: FoldedDecoder) -> Self:
        """The plan's package; ``decoder`` is at the plan's precision."""
        return cls(
            decoder=decoder,
            base=plan.base,
            target=plan.target,
            fold=plan.fold,
            precision=plan.precision,
            vision_precision=plan.vision_precision,
            block_size=plan.block_size,
            context_length=plan.context_length,
            tower_inputs=plan.tower_inputs,
            prefill_tokens=plan.prefill_tokens,
        )

    @property
    def float_types(self) -> tuple[FloatType, FloatType]:
        """What the decoder computes in, and keeps in its cache; float weights decide for themselves."""
        return float_types(self.precision, self.target)

    def in_float32(self) -> Self:
        """The same weights in graphs that compute in float32."""
        target = self.target.model_copy(update={"activations": "float32", "kv_cache": "float32"})
        return replace(self, target=target, vision_precision="float32")


class Backend(ABC):
    """A backend, whatever it writes. ``NAME/backend.py`` holds one, called ``BACKEND``."""

    makes: ClassVar[str]
    """What it writes, in a word."""
    libraries: ClassVar[Sequence[str]] = ()
    """The distributions that shape its files."""
    coefficients: ClassVar[str] = "scale.safetensors"
    """Where its packages keep their coefficients."""

    def check(self, plan: Plan) -> None:
        """Refuse what this runtime can't run faithfully, beyond what the target's file says; raises UserError."""
        return

    def least_bytes(self, base: BaseModel) -> int | None:
        """What a package will take at least; None where that is not known before it is written."""
        return None

    @abstractmethod
    def write(self, emission: Emission, directory: Path) -> dict[str, str]:
        """Write everything but what all packages have; role → file name."""

    @abstractmethod
    def remake(self, emission: Emission, directory: Path) -> None:
        """Write what is no graph and no weights once more, into a ``directory`` where those lie."""

    @abstractmethod
    def not_checked(self, target: Target) -> Sequence[NotChecked]:
        """What running its files here can't prove of the target's devices."""


class GraphBackend(Backend):
    """A backend that writes graphs, and opens them."""

    makes = "graphs"
    batches: ClassVar[bool] = False
    """Whether its engines run several prompts in one forward, each row as it would run alone."""

    @abstractmethod
    def emit(self, emission: Emission, directory: Path) -> dict[str, str]:
        """Write the graphs; role → file name."""

    def emit_side_files(self, emission: Emission, directory: Path) -> None:
        """Write what the runtime takes beside graphs that lie in ``directory``."""
        return

    def write(self, emission: Emission, directory: Path) -> dict[str, str]:
        """Write the graphs, what their runtime takes beside them, and the processor's files."""
        graphs = self.emit(emission, directory)
        self.emit_side_files(emission, directory)
        copy_processor(emission.base, directory)
        return graphs

    def embedding_factor(self, plan: Plan) -> float:
        """What embedded tokens and pictures are multiplied by in a plan's graphs, a power of two."""
        return 1.0

    def remake(self, emission: Emission, directory: Path) -> None:
        """What the runtime takes beside graphs, and the processor's files."""
        self.emit_side_files(emission, directory)
        copy_processor(emission.base, directory)

    def side_facts(self, directory: Path) -> SideFacts | None:
        """What the file for the host in ``directory`` says; None where the backend writes none."""
        return None

    def strict_type(self, computes: FloatType) -> FloatType | None:
        """What ``open_engine(strict=True)`` computes in, of graphs whose activations are ``computes``.

        The lowering leg's limit follows from it. None where that arithmetic is too coarse to be held to a limit.
        """
        return "float32"

    @abstractmethod
    def open_engine(
        self,
        graphs: Mapping[str, Path],
        *,
        context_length: int,
        providers: Sequence[str],
        strict: bool = False,
        tap: Tap | None = None,
    ) -> Engine:
        """The graphs (role → file) in their runtime on this machine; ``strict`` on kernels that round nothing."""

    @abstractmethod
    def not_timed(self, target: Target) -> str | None:
        """Why this machine's decoding speed says nothing of the target's; None where it does."""

    @abstractmethod
    def codes(
        self, graphs: Mapping[str, Path], names: Sequence[str]
    ) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        """The packed integer codes of each named matrix, in ``BlockMatrix``'s bytes."""

    def code_hashes(self, graphs: Mapping[str, Path], names: Sequence[str]) -> Mapping[str, str]:
        """SHA-256 of the integer codes of each named matrix."""
        return hash_codes(self.codes(graphs, names))


def load_backend(name: str) -> Backend:
    """The backend of that name, as a target's file says it."""
    backend: Backend = importlib.import_module(f"{__package__}.{name}.backend").BACKEND
    return backend


def graph_backend(name: str) -> GraphBackend:
    """The backend of that name, which has graphs.

    Raises:
        UserError: it has none, so that nothing can be run here.
    """
    backend = load_backend(name)
    if not isinstance(backend, GraphBackend):
        raise UserError(NOT_RUN)
    return backend


def open_planned(
    plan: Plan, graphs: Mapping[str, Path], *, strict: bool = False, tap: Tap | None = None
) -> Engine:
    """The graphs of a plan (role → file), as ``GraphBackend.open_engine`` opens them, in the base model's units.

    Raises as ``graph_backend``.
    """
    backend = graph_backend(plan.target.backend)
    engine = backend.open_engine(
        graphs,
        context_length=plan.context_length,
        providers=plan.target.execution_providers or (),
        strict=strict,
        tap=tap,
    )
    factor = backend.embedding_factor(plan)
    if factor == 1:
        return engine
    return BaseUnits(engine=engine, factor=factor, pictures={"image_features", *plan.base.vision.constants})
