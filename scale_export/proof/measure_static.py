"""Measuring graphs whose products round both sides to int8 (``w8a8``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from scale_export.backends.interface import open_planned
from scale_export.core import limits
from scale_export.core.compare import LargestError
from scale_export.core.records import Float32, NotChecked
from scale_export.plan.portable import generator_of, reference_engine

from .cases import Case
from .legs import LoweringLeg, Products
from .lockstep import Lockstep
from .measure import Measurement
from .products import Recorder, first_departure, follow, largest_error
from .report import ParityReport

NOT_RUN = (
    NotChecked(
        "TensorRT and QNN",
        "the QuantizeLinear and DequantizeLinear of this package ran on ONNX Runtime's CPU kernels only",
    ),
    NotChecked(
        "clipping",
        "activations are rounded in the ranges of the calibration questions with ScAle attached, which other inputs, "
        "or scalars overridden at run time, may pass",
    ),
)


@dataclass(kw_only=True)
class StaticMeasurement(Measurement):
    """The legs of quantized graphs, and in the lowering leg every rounded product on its own."""

    def _lowering(
        self,
        report: ParityReport,
        cases: Sequence[Case],
        portable: Sequence[Float32],
        strict: Sequence[Float32],
    ) -> list[Float32]:
        report.not_checked.extend(NOT_RUN)
        if self._streamed is None:
            plain = super()._lowering(report, cases, portable, strict)
        else:
            plain = list(portable)
            report.skip(
                f"an unquantized graph of this size ({self._streamed})",
                "the lowering leg holds the rounded products, and the quantization leg compares the graph with the "
                "portable decoder in float32",
            )
        with self.log.stage("rounded products, one by one"):
            products = self._products(cases[0])
        whole = report.lowering or LoweringLeg(error=products.error, cases=1, precision=None)
        report.lowering = replace(whole, products=products)
        return plain

    def _products(self, case: Case) -> Products:
        """Every product of the graph on strict kernels, and what lies between, against the reference's."""
        plan, recorder = self.plan, Recorder()
        asked = generator_of(plan, open_planned(plan, self.graphs, strict=True, tap=recorder))
        prompt = asked.embed_prompt(case.inputs)
        after = asked.decode_step(case.tokens[0], prompt.next_position)
        follow(asked, prompt, after, recorder.begin)
        lockstep = Lockstep(recorder.forwards)
        oracle = generator_of(plan, reference_engine(plan, self.weights.stored, lockstep.kernels))
        follow(oracle, prompt, after, lockstep.begin)
        limit = limits.PRODUCT_RELATIVE
        first = first_departure(lockstep.forwards, recorder.forwards, limit)
        return Products(
            error=LargestError(
                metric="max |Δ| / max |value| of a product's inputs and outputs",
                value=largest_error(lockstep.forwards, recorder.forwards),
                limit=limit,
            ),
            matrices=len(recorder.forwards[0]),
            first_departure=None if first is None else first.matrix,
        )
