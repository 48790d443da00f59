"""The bundle around the assets, as Apple's coreai-models reads it: ``metadata.json`` and ``tokenizer/``.

Layout and keys follow ``python/src/coreai_models/vlm/export.py`` and ``LanguageConfig.swift`` there, schema 0.2.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from scale_export.backends.interface import Emission
from scale_export.core.errors import UserError
from scale_export.core.records import Json, TowerInput
from scale_export.core.version import __version__
from scale_export.device.coreai.apple import PARITY
from scale_export.families._family import Family
from scale_export.plan.record import Plan

DECODER, EMBEDDING, VISION = ASSETS = ("decoder.aimodel", "embed.aimodel", "vision.aimodel")
METADATA = "metadata.json"
TOKENIZER = "tokenizer"


def refuse_unserved(plan: Plan) -> None:
    """Refuse what Apple's stock engine would run without an error, and wrongly.

    Raises:
        UserError: positions of more than one axis, tokens that see later ones, pictures that enter deeper layers,
            are cut into tiles or are not square, or scalars that its engine has no way to place.
    """
    family, spec, reason = plan.base.family, plan.base.spec, None
    if spec.position_axes > 1:
        reason = "it counts tokens 0, 1, 2, …, and this family gives image tokens positions of several axes"
    elif spec.grouped_attention:
        reason = "every token sees what came before it only, and tokens of this family see their whole group"
    elif spec.deepstack_layers:
        reason = "pictures enter as embeddings only, and this family adds them to its first layers' outputs"
    elif family.patched:
        reason = "it shows the model square pictures of one size, and this family takes each in its own shape"
    elif type(family).tiles is not Family.tiles or type(family).pack is not Family.pack:
        reason = "it shows the model one whole picture, and this family cuts pictures into tiles"
    elif (height := pixel_shape(plan.tower_inputs)[1]) != (width := pixel_shape(plan.tower_inputs)[2]):
        reason = f"it prepares square pictures, and this model looks at {height} × {width} pixels"
    elif plan.fold == "two-phase":
        reason = "it runs one decoder for the whole prompt, and two phases need two"
    if reason:
        raise UserError(
            f"{family.model_type} with --fold {plan.fold} is refused for target {plan.target.name}: Apple's stock "
            f"engine cannot serve it exactly, because {reason}; use another target"
        )


def pixel_shape(tower_inputs: Mapping[str, TowerInput]) -> tuple[int, ...]:
    """(3, height, width) of a picture."""
    return tower_inputs["pixel_values"].shape


def write_bundle(emission: Emission, directory: Path, image_tokens: int) -> None:
    """Write ``metadata.json`` and the tokenizer beside the assets.

    Args:
        image_tokens: rows that the vision asset makes of one picture.
    """
    base, spec = emission.base, emission.base.spec
    metadata = {
        "metadata_version": "0.2",
        "kind": "vlm",
        "name": base.name.rpartition("/")[2],
        "assets": {"main": DECODER, "embedding": EMBEDDING, "vision": VISION},
        "language": {
            "tokenizer": base.name,
            "vocab_size": spec.vocab_size,
            "max_context_length": emission.context_length,
            "embedded_tokenizer": True,
            "function_map": {"main": ["main"]},
        },
        "vision": _vision_block(emission, image_tokens),
        "source": {"hf_model_id": base.name, "model_definition": "torch"},
        "user_data": {
            "tool": f"scale-export {__version__}",
            "fold": emission.fold,
            "scope": emission.decoder.coefficients.scope,
            "parity": PARITY,
        },
    }
    text = json.dumps(metadata, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    (directory / METADATA).write_text(text + "\n", encoding="utf-8")
    base.processor.tokenizer.save_pretrained(directory / TOKENIZER)


def _by_channel(values: Sequence[float] | float) -> list[Json]:
    """Three numbers, where one may stand for all."""
    return [values] * 3 if isinstance(values, int | float) else list(values)


def _vision_block(emission: Emission, image_tokens: int) -> dict[str, Json]:
    """How the engine prepares a picture, from the model's own image processor."""
    base, images = emission.base, emission.base.processor.image_processor
    normalized = images.do_normalize
    return {
        "image_size": pixel_shape(emission.tower_inputs)[1],
        "patch_size": base.config.vision_config.patch_size,
        "image_token_count": image_tokens,
        "image_token_id": base.image_token_id,
        "image_mean": _by_channel(images.image_mean if normalized else 0.0),
        "image_std": _by_channel(images.image_std if normalized else 1.0),
        # The engine multiplies 8-bit levels by rescale_factor / 255.
        "rescale_factor": images.rescale_factor * 255 if images.do_rescale else 255.0,
        "image_strategy": "center_crop" if getattr(images, "do_center_crop", False) else "stretch",
        "include_image_info": False,
    }
