"""The ONNX Runtime backend as the pipeline sees it: emit, open, and the strictest kernels to measure against."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from scale_export.backends.interface import Emission, GraphBackend
from scale_export.core.errors import UserError
from scale_export.core.records import NotChecked, SideFacts
from scale_export.core.words import FloatType
from scale_export.device.engine import Engine, Tap
from scale_export.device.onnxruntime import host
from scale_export.device.onnxruntime.engine import OnnxEngine
from scale_export.device.onnxruntime.genai import CONFIG, MODEL_TYPES
from scale_export.plan.record import Plan
from scale_export.plan.targets import Target

from .defaults import FILE as DEFAULTS
from .defaults import write_defaults
from .genai import FOLLOWED, genai_config
from .genai_graphs import fit_graphs
from .graphs import GraphPlan, decoder_codes, emit_graphs, graph_files, write_adapter
from .host import runtime_config
from .kernels import HEAD_DIM, GraphOptions

ADAPTER = "scale.onnx_adapter"
CUDA: Final = "CUDAExecutionProvider"


class OnnxRuntime(GraphBackend):
    """ONNX graphs, run by ONNX Runtime with the target's execution providers."""

    libraries = ("onnx", "onnx-ir", "onnxruntime", "onnxscript")
    batches = True

    def check(self, plan: Plan) -> None:
        """Every refusal, before a weight is loaded.

        Raises:
            UserError: heads of a width that ONNX Runtime's attention has no kernel for, or tokens that see their group
                where it has none for them.
        """
        spec, target = plan.base.spec, plan.target
        if spec.grouped_attention and (CUDA in (target.execution_providers or ()) or target.counts_positions):
            raise UserError(
                f"target {target.name} can't run {plan.base.family.model_type}, whose pictures' tokens see one "
                f"another: that takes attention_bias, which ONNX Runtime's attention on CUDA refuses; choose target cpu"
            )
        if plan.base.spec.head_dim % HEAD_DIM:
            raise UserError(
                f"head_dim {plan.base.spec.head_dim} is not a multiple of {HEAD_DIM}, and ONNX Runtime's attention "
                f"takes no other: choose target coreml or checkpoint"
            )

    def emit(self, emission: Emission, directory: Path) -> dict[str, str]:
        options = GraphOptions(
            precision=emission.precision,
            block_size=emission.block_size,
            accuracy_level=emission.target.accuracy_level or 0,
            activations=emission.float_types[0],
            counts_positions=bool(emission.target.counts_positions),
        )
        plan = GraphPlan(
            options=options,
            vision_precision=emission.vision_precision,
            context_length=emission.context_length,
            image_token_id=emission.base.image_token_id,
            tower_inputs=emission.tower_inputs,
            patched=emission.base.family.patched,
        )
        graphs = emit_graphs(emission.decoder, emission.base.vision, plan, directory)
        _write_runtime(emission, graphs, directory)
        return {**graphs, host.ROLE: host.FILE}

    def remake(self, emission: Emission, directory: Path) -> None:
        """``runtime.json``, what the runtime takes beside graphs, and the processor's files."""
        _write_runtime(emission, graph_files(emission.decoder), directory)
        super().remake(emission, directory)

    def emit_side_files(self, emission: Emission, directory: Path) -> None:
        """Write the scalars in the runtime's own format, where the graph can take them, and onnxruntime-genai's files.

        The latter only where that runtime was seen to run the package as ours does: its families, one decoder, on the
        CPU, activations in floats, and no rules of generation but those that it follows.
        """
        decoder = emission.decoder
        if decoder.gate:
            attn, mlp = decoder.dense()
            write_adapter(attn, mlp, directory / ADAPTER)
            gated = directory / graph_files(decoder)["decoder"]
            write_defaults(gated, decoder.coefficients.scope, (attn, mlp), directory / DEFAULTS)
        only_cpu = emission.target.execution_providers == ("CPUExecutionProvider",)
        as_ours = decoder.scaled is None and only_cpu and emission.precision != "w8a8"
        as_ours = as_ours and FOLLOWED.issuperset(emission.base.rules.acting)
        if emission.base.family.model_type in MODEL_TYPES and as_ours:
            _emit_genai(emission, directory)

    def side_facts(self, directory: Path) -> SideFacts:
        """All that ``runtime.json`` says of prompts and scalars."""
        config = host.read_runtime_config(directory / host.FILE)
        return SideFacts(
            file=host.FILE,
            scalars=config.trained(),
            context_length=config.context_length,
            image_token_id=config.image_token_id,
            end_token_ids=tuple(config.eos_token_ids),
        )

    def strict_type(self, computes: FloatType) -> FloatType:
        """Its strictest kernels still keep activations as the graphs say."""
        return computes

    def open_engine(
        self,
        graphs: Mapping[str, Path],
        *,
        context_length: int,
        providers: Sequence[str],
        strict: bool = False,
        tap: Tap | None = None,
    ) -> Engine:
        """Sessions on this machine, on those of the target's providers that it has; ``strict`` at accuracy level 0."""
        return OnnxEngine(graphs, context_length=context_length, providers=providers, strict=strict, tap=tap)

    def not_timed(self, target: Target) -> str | None:
        """Another provider's speed says nothing of the target's."""
        missing = set(target.execution_providers or ()) - set(ort.get_available_providers())
        if not missing:
            return None
        return f"ONNX Runtime here has no {', '.join(sorted(missing))}: search on the device, or name a size"

    def codes(
        self, graphs: Mapping[str, Path], names: Sequence[str]
    ) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        """As they lie in the decoder that holds the folded scales."""
        return decoder_codes(graphs.get("decoder_folded", graphs["decoder"]), names)

    def not_checked(self, target: Target) -> Sequence[NotChecked]:
        """Providers that this machine's build lacks; nothing where all of the target's ran."""
        missing = [p for p in target.execution_providers or () if p not in ort.get_available_providers()]
        if not missing:
            return ()
        reason = (
            f"ONNX Runtime here has no {', '.join(missing)}, so that the CPU ran the graphs; kernels, placement and "
            f"speed on target {target.name} were not seen"
        )
        return (NotChecked("device", reason),)


BACKEND = OnnxRuntime()


def _write_runtime(emission: Emission, graphs: Mapping[str, str], directory: Path) -> None:
    host.write_runtime_config(runtime_config(emission, graphs, directory), directory / host.FILE)


def _emit_genai(emission: Emission, directory: Path) -> None:
    base, decoder = emission.base, emission.decoder
    config = genai_config(
        base.spec,
        base.config,
        fit_graphs(
            directory,
            base.spec,
            base.image_token_id,
            scope=decoder.coefficients.scope,
            scalars=decoder.dense() if decoder.gate else None,
        ),
        image_token_id=base.image_token_id,
        rules=base.rules,
        context_length=emission.context_length,
    )
    (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
