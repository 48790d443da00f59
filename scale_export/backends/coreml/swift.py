"""A Swift sample that drives the package, written with the package's own names, shapes and file names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from scale_export.core.records import DecoderSpec, TowerInput
from scale_export.device.coreml.host import HostConfig
from scale_export.device.rules import GenerationRules

FILE = "ScaleExportModel.swift"


def covers(spec: DecoderSpec, tower_inputs: Mapping[str, TowerInput], rules: GenerationRules) -> bool:
    """Whether the sample can drive such a model: causal, positions counting tokens, pictures entering as pixels.

    It always takes the best token, so that no other rule of generation may act.
    """
    causal = spec.position_axes == 1 and not spec.grouped_attention and not spec.deepstack_layers
    return causal and not rules.acting and set(tower_inputs) == {"pixel_values"}


def write_swift(config: HostConfig, quantized_table: bool, image_shape: tuple[int, ...], path: Path) -> None:
    """Write ``ScaleExportModel.swift``: load, embed, prefill, decode, for the package beside it.

    Args:
        quantized_table: which of the two layouts of ``tables`` the package has.
        image_shape: (3, height, width) of ``pixel_values``.
    """
    template = Path(__file__).with_name("sample.swift").read_text(encoding="utf-8")
    values = {
        "PARTS": "\n".join(
            f'        Part(file: "{part.file.removesuffix(".mlpackage")}", first: {part.first}, stop: {part.stop}),'
            for part in config.decoder
        ),
        "COMPUTE_UNITS": {
            "all": ".all",
            "cpu_and_gpu": ".cpuAndGPU",
            "cpu_and_ne": ".cpuAndNeuralEngine",
            "cpu_only": ".cpuOnly",
        }[config.compute_units],
        "PREFILL_TOKENS": str(config.prefill_tokens),
        "CACHE_SLOTS": str(config.cache_slots),
        "CONTEXT_LENGTH": str(config.context_length),
        "HIDDEN_SIZE": str(config.hidden_size),
        "HEAD_DIM": str(config.head_dim),
        "VOCAB_SIZE": str(config.vocab_size),
        "IMAGE_TOKEN_ID": str(config.image_token_id),
        "EOS_TOKEN_IDS": ", ".join(map(str, config.eos_token_ids)),
        "IMAGE_HEIGHT": str(image_shape[1]),
        "IMAGE_WIDTH": str(image_shape[2]),
        "TWO_PHASE": "true" if config.fold == "two-phase" else "false",
        "GATED": "true" if config.scalars else "false",
        "GATES_EVERY_TOKEN": "true" if config.scalars and config.scalars.scope == "all" else "false",
        "QUANTIZED_TABLE": "true" if quantized_table else "false",
    }
    for name, value in values.items():
        template = template.replace(f"«{name}»", value)
    assert "«" not in template, "every place is filled"
    path.write_text(template, encoding="utf-8")
