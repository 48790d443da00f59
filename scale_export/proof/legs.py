"""The parity legs (``docs/parity.md``): each source of error measured apart, on the same cases, against its own limit.

Rules:
1. A leg compares two neighbours in the chain Hugging Face → portable decoder → portable decoder on the weights that the
   package holds → its graph on strict kernels → the package as it runs. The quantization leg goes from the second to
   the fourth: what it counts is the graph that ships.
2. Every leg is driven along the reference's tokens; the candidate's own choices never excuse it.
3. Limits of errors hold at every position. Distributions (KL, top-1) are compared at the answers' positions only, which
   the reference's path tells: behind an end token there is nothing that anybody reads, or that a model was trained for.
4. A leg that did not run is None and is named in ``not_checked`` with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np

from scale_export.core.compare import LargestError, relative_error, worst_of
from scale_export.core.limits import FOLD_RELATIVE, LOWERING_RELATIVE
from scale_export.core.records import Float32
from scale_export.core.words import Precision

from .cases import Case
from .numbers import number
from .rows import Row, within

RELATIVE = "max |Δlogit| / max |logit|"


class Leg(Protocol):
    """What one comparison came to."""

    name: ClassVar[str]
    """As in ``parity.json``."""
    meaning: ClassVar[str]
    """What is compared with what."""

    @property
    def passed(self) -> bool | None:
        """Whether it is within its limits; None where it has none."""
        ...

    @property
    def counted(self) -> str:
        """On how much it was measured, in words."""
        ...

    def rows(self) -> Sequence[Row]:
        """What was measured, for terminal and page."""
        ...

    def figures(self) -> Mapping[str, float | None]:
        """What a requirement may name, and its value; None where it was not measured or is not finite."""
        ...

    def to_json(self) -> dict[str, object]:
        """As it stands in ``parity.json``."""
        ...


def answer_logits(cases: Sequence[Case], logits: Sequence[Float32]) -> Float32:
    """The rows at the cases' answer positions ``[N, V]``, of logits along every case's path."""
    return np.concatenate([rows[: case.answer_positions] for case, rows in zip(cases, logits, strict=True)])


def largest_error(reference: Sequence[Float32], other: Sequence[Float32], limit: float) -> LargestError:
    """The worst relative error over all cases, ``[positions, V]`` each; infinite without a case."""
    errors = [relative_error(r, o) for r, o in zip(reference, other, strict=True)]
    return LargestError(metric=RELATIVE, value=worst_of(errors), limit=limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldLeg:
    """Hooked Hugging Face model against the folded or gated portable decoder, float32."""

    name: ClassVar = "fold"
    meaning: ClassVar = "PyTorch with ScAle hooks → portable decoder, float32"

    error: LargestError
    cases: int

    @property
    def passed(self) -> bool:
        return self.error.passed

    @property
    def counted(self) -> str:
        return f"{number(self.cases)} cases"

    def rows(self) -> Sequence[Row]:
        return (within(self.name, self.error),)

    def figures(self) -> Mapping[str, float | None]:
        return {"fold": self.error.finite}

    def to_json(self) -> dict[str, object]:
        return {**self.error.to_json(), "cases": self.cases, "passed": self.passed}


def fold_leg(cases: Sequence[Case], portable: Sequence[Float32]) -> FoldLeg:
    """The fold leg of the portable decoder's logits."""
    error = largest_error([case.logits for case in cases], portable, FOLD_RELATIVE)
    return FoldLeg(error=error, cases=len(cases))


@dataclass(frozen=True, slots=True, kw_only=True)
class Products:
    """Every product of a graph whose products round their inputs, each held to the reference's on its own.

    Attributes:
        error: the largest of any product's input or output.
        matrices: how many were compared.
        first_departure: the first matrix beyond the limit, None where there is none.
    """

    error: LargestError
    matrices: int
    first_departure: str | None

    @property
    def passed(self) -> bool:
        """Whether products were compared, and none departs."""
        return self.first_departure is None and self.error.passed

    def row(self, leg: str) -> Row:
        """The row of the leg that they belong to."""
        label = f"each of {number(self.matrices)} rounded products, {self.error.metric}"
        return within(leg, self.error, label)

    def to_json(self) -> dict[str, object]:
        """As it stands in ``parity.json``."""
        return {
            **self.error.to_json(),
            "matrices": self.matrices,
            "first_departure": self.first_departure,
            "passed": self.passed,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LoweringLeg:
    """Portable decoder against the emitted graph in its runtime, both on the same weights.

    Attributes:
        error: of whole forwards; where only single products were compared, theirs.
        precision: of the graph's arithmetic; None where only single products were compared.
        weights: what both sides computed on, where it was not the float weights.
        front: of a quantized package's own tower and table, each held to its own limit; both decoders start there.
        context: in the last slots of the context, and at every position; empty where that was not looked at.
        products: of graphs whose products round their inputs.
    """

    name: ClassVar = "lowering"
    meaning: ClassVar = "portable decoder → emitted graph, on the same weights"

    error: LargestError
    cases: int
    precision: Precision | None
    weights: Literal["dequantized"] | None = None
    front: tuple[LargestError, ...] = ()
    context: tuple[LargestError, ...] = ()
    products: Products | None = None

    @property
    def passed(self) -> bool:
        whole = all(error.passed for error in (self.error, *self.front, *self.context))
        return whole and (self.products is None or self.products.passed)

    @property
    def counted(self) -> str:
        return f"{number(self.cases)} cases"

    def rows(self) -> Sequence[Row]:
        own = (self.error,) if self.precision is not None else ()
        rows = [within(self.name, error) for error in (*own, *self.front, *self.context)]
        return rows if self.products is None else [*rows, self.products.row(self.name)]

    def figures(self) -> Mapping[str, float | None]:
        return {"lowering": self.error.finite}

    def to_json(self) -> dict[str, object]:
        found: dict[str, object] = {**self.error.to_json(), "cases": self.cases, "passed": self.passed}
        if self.precision is not None:
            found["precision"] = self.precision
        if self.weights is not None:
            found["weights"] = self.weights
        if self.front:
            found["front"] = [error.to_json() for error in self.front]
        if self.context:
            found["context"] = [error.to_json() for error in self.context]
        if self.products is not None:
            found["products"] = self.products.to_json()
        return found


def lowering_leg(
    portable: Sequence[Float32],
    emitted: Sequence[Float32],
    precision: Precision,
    weights: Literal["dequantized"] | None = None,
    front: Sequence[LargestError] = (),
    context: Sequence[LargestError] = (),
) -> LoweringLeg:
    """The lowering leg of two decoders' logits on the same ``weights``, behind the same ``front``."""
    error = largest_error(portable, emitted, LOWERING_RELATIVE[precision])
    return LoweringLeg(
        error=error,
        cases=len(portable),
        precision=precision,
        weights=weights,
        front=tuple(front),
        context=tuple(context),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageLeg:
    """Hooked Hugging Face model against the one that loads from a folded checkpoint, both in float32 arithmetic.

    ``dtypes`` are those of the tensors that the scalars changed, as safetensors spells them.
    """

    name: ClassVar = "storage"
    meaning: ClassVar = "PyTorch with ScAle hooks → the model that loads from the checkpoint, float32"

    error: LargestError
    cases: int
    dtypes: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return self.error.passed

    @property
    def counted(self) -> str:
        return f"{number(self.cases)} cases"

    def rows(self) -> Sequence[Row]:
        return (within(self.name, self.error),)

    def figures(self) -> Mapping[str, float | None]:
        return {}

    def to_json(self) -> dict[str, object]:
        head = {**self.error.to_json(), "cases": self.cases, "passed": self.passed}
        return {**head, "dtypes": list(self.dtypes)}
