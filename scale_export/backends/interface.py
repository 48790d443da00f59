"""What a backend's ``backend.py`` offers, and finding it by a target's word."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from scale_export.core.records import NotChecked
from scale_export.core.words import Precision
from scale_export.device.engine import Engine, Tap
from scale_export.families._towers.tower import VisionTower
from scale_export.model.folding import FoldedDecoder
from scale_export.plan.record import Plan


class Backend(Protocol):
    """What a backend's ``backend.py`` offers the pipeline, whatever it writes."""

    def check(self, plan: Plan) -> None:
        """Refuse what this runtime can't run faithfully; raises UserError."""
        ...

    def not_checked(self) -> Sequence[NotChecked]:
        """What running its files here can't prove of the device."""
        ...

    @property
    def LIBRARIES(self) -> Sequence[str]:
        """The distributions that shape its files."""
        ...


class GraphBackend(Backend, Protocol):
    """A backend that writes graphs for a runtime."""

    def emit(
        self,
        folded: FoldedDecoder,
        vision: VisionTower,
        plan: Plan,
        directory: Path,
        *,
        precision: Precision,
        vision_precision: Precision,
    ) -> dict[str, str]: ...

    def not_timed(self, plan: Plan) -> str | None:
        """Why this machine's decoding speed says nothing of the plan's; None where it does."""
        ...

    def emit_side_files(self, folded: FoldedDecoder, plan: Plan, directory: Path) -> None: ...

    def open_engine(
        self, graphs: Mapping[str, Path], plan: Plan, *, strict: bool = False, tap: Tap | None = None
    ) -> Engine: ...

    def codes(
        self, graphs: Mapping[str, Path], names: Sequence[str]
    ) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        """The packed integer codes of each named matrix, in ``BlockMatrix``'s bytes."""
        ...

    def code_hashes(self, graphs: Mapping[str, Path], names: Sequence[str]) -> Mapping[str, str]: ...


def load_backend(name: str) -> GraphBackend:
    """The backend of that name, which has graphs."""
    backend: GraphBackend = importlib.import_module(f"scale_export.backends.{name}.backend")
    return backend


def backend_of(plan: Plan) -> Backend:
    """The plan's backend, of which every kind is known to refuse and to name its libraries."""
    return load_backend(plan.target.backend)
