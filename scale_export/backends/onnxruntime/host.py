"""What ``runtime.json`` says of one package: its graphs as they lie there, its prompts, and its rule for pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import onnx
from PIL import Image
from pydantic import JsonValue

from scale_export.backends.interface import Emission
from scale_export.core.huggingface import ImageProcessor, Processor
from scale_export.device.coreml.host import RotaryTable, ScalarDefaults
from scale_export.device.onnxruntime import host
from scale_export.device.prompts import Message, encode_messages, user_message
from scale_export.model.base import BaseModel

MARK: Final = "QUESTION"
QUESTIONS: Final = (MARK, "is the red circle left of it?")
"""What a prompt's text is checked with."""
SHAPES: Final = ((64, 64), (96, 48), (48, 96))
"""Pictures, width and height, that must take as many tokens each where a model states one number."""

RULES: Final[Mapping[str, host.ImageRule]] = {
    "BlipImageProcessor": "fixed",
    "CLIPImageProcessor": "fixed",
    "Gemma3ImageProcessor": "fixed",
    "SiglipImageProcessor": "fixed",
    "ViTImageProcessor": "fixed",
    "LlavaNextImageProcessor": "anyres",
    "LlavaOnevisionImageProcessor": "anyres_max",
    "Idefics3ImageProcessor": "idefics3",
    "SmolVLMImageProcessor": "idefics3",
    "GotOcr2ImageProcessor": "internvl",
    "Qwen2VLImageProcessor": "qwen",
    "PixtralImageProcessor": "pixtral",
}
"""Transformers' image processors whose way of cutting pictures has a name in ``runtime.json``."""
TILES: Final = (
    "image_grid_pinpoints",
    "do_image_splitting",
    "max_image_size",
    "crop_to_patches",
    "min_patches",
    "max_patches",
)
PATCHES: Final = ("patch_size", "merge_size", "temporal_patch_size", "min_pixels", "max_pixels")
PAD: Final = ("pad_size", "size_divisor")


def runtime_config(emission: Emission, graphs: Mapping[str, str], directory: Path) -> host.RuntimeConfig:
    """The record of a package whose graphs (role → file) lie in ``directory``."""
    base, decoder = emission.base, emission.decoder
    spec, scope = decoder.weights.spec, decoder.coefficients.scope
    scalars = None
    if decoder.gate:
        attn, mlp = decoder.dense()
        scalars = ScalarDefaults(scope=scope, attn_scale=attn.tolist(), mlp_scale=mlp.tolist())
    computes, keeps = emission.float_types
    rules = base.rules
    return host.RuntimeConfig(
        model_type=base.family.model_type,
        fold=emission.fold,
        scope=scope,
        context_length=emission.context_length,
        hidden_size=spec.hidden_size,
        num_layers=spec.num_layers,
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        vocab_size=spec.vocab_size,
        activations=computes,
        position_axes=spec.position_axes,
        kv=host.KeyValueFacts(dtype=keeps, shape=("batch", spec.num_kv_heads, "past_length", spec.head_dim)),
        rotaries=tuple(
            RotaryTable(inv_freq=list(r.inv_freq), axes=list(r.axes), scale=r.scale) for r in spec.rotaries
        ),
        scalars=scalars,
        graphs={role: _graph_file(directory / name) for role, name in graphs.items()},
        eos_token_ids=sorted(rules.end_tokens),
        generation={name: _plain(getattr(rules, name)) for name in rules.acting},
        image_token_id=base.image_token_id,
        prompt=prompt_text(base),
        image=image_facts(base),
    )


def _graph_file(path: Path) -> host.GraphFile:
    graph = onnx.load(path, load_external_data=False).graph
    entries = (entry for tensor in graph.initializer for entry in tensor.external_data)
    names = sorted({entry.value for entry in entries if entry.key == "location"})
    data = tuple(host.DataFile(file=name, size=(path.parent / name).stat().st_size) for name in names)
    return host.GraphFile(file=path.name, size=path.stat().st_size, data=data)


def prompt_text(base: BaseModel) -> host.Prompt:
    """Prompts of one turn as text, each checked against the processor's own ids."""
    without = _turn(base, None) if base.family.takes_text_alone else None
    pictured = _turn(base, SHAPES[0]) if tokens_per_picture(base) else None
    return host.Prompt(with_image=pictured, without_image=without)


def _turn(base: BaseModel, shape: tuple[int, int] | None) -> host.Turn | None:
    """Of a prompt with a picture of that shape or without; None where no text gives the processor's ids."""
    tokenizer, ids = base.processor.tokenizer, _ids(base, MARK, shape)
    image = tokenizer.decode([base.image_token_id], skip_special_tokens=False)
    said = base.processor.apply_chat_template([_asked(MARK, shape)], add_generation_prompt=True)
    texts = (
        said.replace(image, image * ids.count(base.image_token_id)),
        tokenizer.decode(ids, skip_special_tokens=False),
    )
    for prefix, mark, suffix in (text.partition(MARK) for text in texts):
        asked = [prefix + question + suffix for question in QUESTIONS]
        found = [list(tokenizer(text, add_special_tokens=False).input_ids) for text in asked]
        if mark and found == [_ids(base, question, shape) for question in QUESTIONS]:
            return host.Turn(prefix=prefix, suffix=suffix)
    return None


def _asked(question: str, shape: tuple[int, int] | None) -> Message:
    return user_message([] if shape is None else [Image.new("RGB", shape)], question)


def _ids(base: BaseModel, question: str, shape: tuple[int, int] | None) -> list[int]:
    ids: list[int] = encode_messages(base.processor, [_asked(question, shape)])["input_ids"][0].tolist()
    return ids


def tokens_per_picture(base: BaseModel) -> int | None:
    """Image tokens of every picture alike; None where their number depends on the picture."""
    if base.family.patched:
        return None
    counts = {_ids(base, MARK, shape).count(base.image_token_id) for shape in SHAPES}
    return counts.pop() if len(counts) == 1 else None


def image_facts(base: BaseModel) -> host.ImageFacts:
    """The image processor's settings, as it was loaded for the package."""
    processor: ImageProcessor = base.processor.image_processor
    settings = _settings(base.processor)
    name = type(processor).__name__.removesuffix("Pil").removesuffix("Fast")
    rule = RULES.get(name)
    if settings("do_pan_and_scan") or (rule == "fixed" and settings("do_pad")):
        rule = None
    return host.ImageFacts(
        processor=name,
        rule=rule,
        convert_rgb=bool(settings("do_convert_rgb")),
        resize=_resize(processor) if settings("do_resize") else None,
        crop=_edges(settings("crop_size")) if settings("do_center_crop") else None,
        rescale=float(processor.rescale_factor) if processor.do_rescale else None,
        normalize=_normalize(processor) if processor.do_normalize else None,
        pad=_named(settings, PAD) if settings("do_pad") else None,
        tiles=_named(settings, TILES) or None,
        patches=_named(settings, PATCHES) or None,
        tokens=tokens_per_picture(base),
    )


class _settings:
    """An image processor's settings by name, as JSON, as the processor around it calls it; None of a name it lacks.

    That one may have settings of its own, which it passes with every picture: InternVL's cuts tiles whatever the image
    processor's file says, and Pixtral's rounds to the square that becomes a token.
    """

    def __init__(self, processor: Processor) -> None:
        self._processor = processor.image_processor
        self._passed: dict[str, object] = dict(getattr(processor, "images_kwargs", None) or {})
        if hasattr(processor, "image_break_token"):
            side = processor.patch_size * processor.spatial_merge_size
            self._passed["patch_size"] = {"height": side, "width": side}

    def __call__(self, name: str) -> JsonValue:
        return _plain(self._passed.get(name, getattr(self._processor, name, None)))


def _named(settings: _settings, names: tuple[str, ...]) -> dict[str, JsonValue]:
    return {name: value for name in names if (value := settings(name)) is not None}


def _resize(processor: ImageProcessor) -> host.Resize:
    chosen = Image.Resampling(int(getattr(processor, "resample", Image.Resampling.BICUBIC)))
    filters: dict[Image.Resampling, host.Filter] = {
        Image.Resampling.NEAREST: "nearest",
        Image.Resampling.LANCZOS: "lanczos",
        Image.Resampling.BILINEAR: "bilinear",
        Image.Resampling.BICUBIC: "bicubic",
        Image.Resampling.BOX: "box",
        Image.Resampling.HAMMING: "hamming",
    }
    return host.Resize(size=_edges(_plain(processor.size)) or {}, filter=filters[chosen])


def _normalize(processor: ImageProcessor) -> host.Normalize:
    mean, std = processor.image_mean, processor.image_std
    means, stds = ([v] * 3 if isinstance(v, float | int) else list(v) for v in (mean, std))
    return host.Normalize(mean=tuple(map(float, means)), std=tuple(map(float, stds)))


def _edges(size: JsonValue) -> dict[str, int] | None:
    """A size's edges by name, without those that aren't set."""
    if not isinstance(size, dict):
        return None
    return {name: int(edge) for name, edge in size.items() if isinstance(edge, int | float)}


def _plain(value: object) -> JsonValue:
    """JSON of a setting: sizes are mappings of their own kind, and numbers may be NumPy's."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if hasattr(value, "keys") or hasattr(value, "longest_edge"):
        pairs = dict(value)  # type: ignore[call-overload]
        return {str(name): _plain(entry) for name, entry in pairs.items() if entry is not None}
    return str(value)
