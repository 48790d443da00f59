"""Measuring graphs whose products round both sides to int8 (``w8a8``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from scale_export.backends.interface import open_planned
from scale_export.core import limits
from scale_export.core.compare import LargestError
from scale_export.core.records import Float32, NotChecked
from scale_export.device.engine import Held, Step
from scale_export.device.generation import EmbeddedPrompt, Generator
from scale_export.plan.portable import generator_of, reference_engine

from .cases import Case
from .last_slots import LastSlots
from .legs import LoweringLeg, Products
from .lockstep import Lockstep
from .measure import Measurement, Steps
from .products import Recorder, first_departure, follow, largest_error
from .report import ParityReport
from .shipped_values import front_errors

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
    NotChecked(
        "rotary tables between the prompts and the last slots",
        "keys at every position come from rounded products, where one code that rounds the other way is an error",
    ),
)


@dataclass(kw_only=True)
class StaticMeasurement(Measurement):
    """The legs of quantized graphs, and in the lowering leg every rounded product on its own."""

    def _lowering(
        self, report: ParityReport, cases: Sequence[Case], package: Generator, strict: list[Float32]
    ) -> Steps:
        """Products one by one: of whole forwards, one code that rounds the other way would be an error."""
        report.not_checked.extend(NOT_RUN)
        products = self._products(report, cases[0])
        front = front_errors(
            cases,
            package,
            self._stored_oracle(self.plan.float_types[0]),
            self.plan.vision_precision,
            self.plan.float_types[0],
        )
        report.lowering = LoweringLeg(
            error=products.error, cases=1, precision=None, front=tuple(front), products=products
        )
        return [("quantization", strict)]

    def _products(self, report: ParityReport, case: Case) -> Products:
        """Every product of the graph on strict kernels, and what lies between, against the reference's.

        Of a prompt with a decode step, and of the last slots of the context.
        """
        plan, recorder = self.plan, Recorder()
        asked = generator_of(plan, open_planned(plan, self.graphs, strict=True, tap=recorder))
        prompt = asked.embed_prompt(case.inputs)
        end = LastSlots(spec=plan.base.spec, context_length=plan.context_length)
        paths: list[tuple[EmbeddedPrompt, Step, Held | None]] = [
            (prompt, asked.decode_step(case.tokens[0], prompt.next_position), None)
        ]
        if end.fits(report):
            paths.append((end.prompt(asked), end.last_step(asked), end.held))
        for path, after, held in paths:
            follow(asked, path, [after], recorder.begin, held)
        lockstep = Lockstep(recorder.forwards)
        oracle = generator_of(plan, reference_engine(plan, self.weights.stored, lockstep.kernels))
        for path, after, held in paths:
            follow(oracle, path, [after], lockstep.begin, held)
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
