"""The parity legs (``docs/parity.md``): each source of error measured apart, on the same cases, against its own limit.

Rules:
1. A leg compares two neighbours in the chain Hugging Face → portable decoder → emitted graph → quantized graph
   on strict kernels → the package as it runs.
2. Every leg is driven along the reference's tokens; the candidate's own choices never excuse it.
3. Limits of errors hold at every position. Distributions (KL, top-1) are compared at the answers' positions only, which
   the reference's path tells: behind an end token there is nothing that anybody reads, or that a model was trained for.
4. A leg that did not run is None and is named in ``not_checked`` with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol

import numpy as np

from scale_export.core.compare import LargestError, relative_error
from scale_export.core.intervals import mean_kl, top1_agreement
from scale_export.core.limits import FOLD_RELATIVE, LOWERING_RELATIVE
from scale_export.core.records import Float32
from scale_export.core.words import Precision
from scale_export.device.generation import Generator
from scale_export.plan.targets import ParityLimits

from .cases import Case
from .numbers import number
from .rows import Row, at_least, at_most, holds, within

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


def path_logits(generator: Generator, cases: Sequence[Case]) -> list[Float32]:
    """One engine's logits along every case's path, each ``[positions, V]``."""
    return [generator.forced_logits(case.inputs, case.tokens) for case in cases]


def answer_logits(cases: Sequence[Case], logits: Sequence[Float32]) -> Float32:
    """The rows at the cases' answer positions ``[N, V]``, of logits along every case's path."""
    return np.concatenate([rows[: case.answer_positions] for case, rows in zip(cases, logits, strict=True)])


def largest_error(reference: Sequence[Float32], other: Sequence[Float32], limit: float) -> LargestError:
    """The worst relative error over all cases, ``[positions, V]`` each."""
    errors = [relative_error(r, o) for r, o in zip(reference, other, strict=True)]
    return LargestError(metric=RELATIVE, value=float(np.max(errors)), limit=limit)


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
        """Whether no product departs."""
        return self.first_departure is None

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
    """Portable decoder against the unquantized emitted graph in its runtime.

    Attributes:
        error: of whole forwards; where only single products were compared, theirs.
        precision: of the graph's arithmetic; None where only single products were compared.
        weights: what both sides computed on, where it was not the unquantized weights.
        products: of graphs whose products round their inputs.
    """

    name: ClassVar = "lowering"
    meaning: ClassVar = "portable decoder → emitted graph, unquantized"

    error: LargestError
    cases: int
    precision: Precision | None
    weights: Literal["dequantized"] | None = None
    products: Products | None = None

    @property
    def passed(self) -> bool:
        return self.error.passed and (self.products is None or self.products.passed)

    @property
    def counted(self) -> str:
        return f"{number(self.cases)} cases"

    def rows(self) -> Sequence[Row]:
        whole = (within(self.name, self.error),) if self.precision is not None else ()
        return whole if self.products is None else (*whole, self.products.row(self.name))

    def figures(self) -> Mapping[str, float | None]:
        return {"lowering": self.error.finite}

    def to_json(self) -> dict[str, object]:
        found: dict[str, object] = {**self.error.to_json(), "cases": self.cases, "passed": self.passed}
        if self.precision is not None:
            found["precision"] = self.precision
        if self.weights is not None:
            found["weights"] = self.weights
        if self.products is not None:
            found["products"] = self.products.to_json()
        return found


def lowering_leg(
    portable: Sequence[Float32],
    emitted: Sequence[Float32],
    precision: Precision,
    weights: Literal["dequantized"] | None = None,
) -> LoweringLeg:
    """The lowering leg of two decoders' logits on the same ``weights``."""
    error = largest_error(portable, emitted, LOWERING_RELATIVE[precision])
    return LoweringLeg(error=error, cases=len(portable), precision=precision, weights=weights)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """Two distributions over tokens, compared at the ``positions`` that belong to answers.

    Attributes:
        kl: mean Kullback-Leibler divergence in nats; infinite or NaN where logits are not finite.
        top1_agreement: share of the positions with the same best token.
        max_kl, min_top1: their limits; None for none.
    """

    kl: float
    top1_agreement: float
    positions: int
    max_kl: float | None
    min_top1: float | None

    @property
    def passed(self) -> bool | None:
        """Whether both are within their limits; a divergence that is not finite never is."""
        if not np.isfinite(self.kl):
            return False
        checks = [self.max_kl is None or self.kl <= self.max_kl]
        checks.append(self.min_top1 is None or self.top1_agreement >= self.min_top1)
        return None if self.max_kl is None and self.min_top1 is None else all(checks)

    @property
    def finite_kl(self) -> float | None:
        """The divergence, None where it is not finite."""
        return self.kl if np.isfinite(self.kl) else None

    def counted(self, cases: int) -> str:
        """On how much it was measured, in words."""
        return f"{number(cases)} cases, {number(self.positions)} answer positions"

    def rows(self, leg: str) -> tuple[Row, Row]:
        """The rows of the leg that it belongs to."""
        return (
            at_most(leg, "mean KL, nats", self.kl, self.max_kl),
            at_least(leg, "top-1 agreement", self.top1_agreement, self.min_top1, lost="top-1 changed"),
        )

    def to_json(self, cases: int) -> dict[str, object]:
        """As it stands in ``parity.json``, where answer positions are called ``steps``."""
        return {
            "kl": self.finite_kl,
            "top1_agreement": self.top1_agreement,
            "limits": {"kl": self.max_kl, "top1_agreement": self.min_top1},
            "cases": cases,
            "steps": self.positions,
        }


def divergence(
    cases: Sequence[Case],
    reference: Sequence[Float32],
    other: Sequence[Float32],
    max_kl: float | None,
    min_top1: float | None,
) -> Divergence:
    """The divergence of ``other`` from ``reference``, logits along every case's path."""
    left, right = answer_logits(cases, reference), answer_logits(cases, other)
    kl, top1 = mean_kl(left, right), top1_agreement(left, right)
    assert kl is not None and top1 is not None, "there is at least one case"
    return Divergence(kl=kl, top1_agreement=top1, positions=len(left), max_kl=max_kl, min_top1=min_top1)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationLeg:
    """Quantized graph on strict kernels against the unquantized one; folding must not have moved integer codes.

    ``codes``: matrix → SHA-256 of the base's codes and of the package's, for every folded matrix; empty where none is.
    """

    name: ClassVar = "quantization"
    meaning: ClassVar = "unquantized → quantized graph, strictest kernels"

    divergence: Divergence
    cases: int
    codes: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @property
    def codes_identical(self) -> bool:
        """Whether every folded matrix has the codes of the base's."""
        return all(base == packaged for base, packaged in self.codes.values())

    @property
    def passed(self) -> bool | None:
        return self.divergence.passed if self.codes_identical else False

    @property
    def counted(self) -> str:
        return self.divergence.counted(self.cases)

    def rows(self) -> Sequence[Row]:
        rows = self.divergence.rows(self.name)
        label = f"integer codes unchanged by folding, {number(len(self.codes))} matrices"
        return (*rows, holds(label, self.codes_identical)) if self.codes else rows

    def figures(self) -> Mapping[str, float | None]:
        return {"kl": self.divergence.finite_kl, "top1": self.divergence.top1_agreement}

    def to_json(self) -> dict[str, object]:
        found = {**self.divergence.to_json(self.cases), "passed": self.passed}
        if self.codes:
            found["folded_matrices"] = len(self.codes)
            found["codes_sha256"] = {name: packaged for name, (_, packaged) in self.codes.items()}
            found["codes_identical"] = self.codes_identical
        return found


def quantization_leg(
    cases: Sequence[Case],
    plain: Sequence[Float32],
    strict: Sequence[Float32],
    limits: ParityLimits,
    codes: Mapping[str, tuple[str, str]],
) -> QuantizationLeg:
    """The quantization leg of logits on strict kernels, unquantized and quantized; ``codes`` as in the record."""
    found = divergence(cases, plain, strict, limits.max_kl, limits.min_top1_agreement)
    return QuantizationLeg(divergence=found, cases=len(cases), codes=codes)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeLeg:
    """The package's kernels on this machine against the strictest ones."""

    name: ClassVar = "runtime"
    meaning: ClassVar = "strictest kernels → those of this machine"

    divergence: Divergence
    cases: int

    @property
    def passed(self) -> bool | None:
        return self.divergence.passed

    @property
    def counted(self) -> str:
        return self.divergence.counted(self.cases)

    def rows(self) -> Sequence[Row]:
        return self.divergence.rows(self.name)

    def figures(self) -> Mapping[str, float | None]:
        return {"runtime.kl": self.divergence.finite_kl, "runtime.top1": self.divergence.top1_agreement}

    def to_json(self) -> dict[str, object]:
        return {**self.divergence.to_json(self.cases), "passed": self.passed}


def runtime_leg(
    cases: Sequence[Case], strict: Sequence[Float32], shipped: Sequence[Float32], limits: ParityLimits
) -> RuntimeLeg:
    """The runtime leg of the same graphs' logits on strict kernels and as they ship."""
    found = divergence(cases, strict, shipped, limits.runtime_max_kl, limits.runtime_min_top1_agreement)
    return RuntimeLeg(divergence=found, cases=len(cases))
