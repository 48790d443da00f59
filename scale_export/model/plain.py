"""What a base model must be to be read as it lies: plain floats, whole, with nothing that changes them on the way.

Whoever reads quantized codes as weights, or leaves out an adapter that transformers applies, proves another model: the
reference and the export would share the mistake.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from scale_export.core.errors import UserError
from scale_export.core.records import Json

from .checkpoint import Checkpoint

ADAPTER_CONFIG = "adapter_config.json"
"""What peft writes beside an adapter's weights; transformers applies such an adapter when it loads the base."""

FLOATS = ("F64", "F32", "F16", "BF16")
"""The dtypes that hold plain numbers, as safetensors spells them."""

INDICES = ("I64", "I32", "BOOL")
"""What buffers hold that are no weights, such as position ids and masks."""

DEQUANTIZING: Mapping[str, str] = {
    "fp8": "load it with quantization_config=FineGrainedFP8Config(dequantize=True)",
    "mxfp4": "load it with quantization_config=Mxfp4Config(dequantize=True)",
    "compressed-tensors": "load it with quantization_config=CompressedTensorsConfig(dequantize=True)",
    "bitsandbytes": "load it and call model.dequantize()",
}
"""Method of ``quantization_config`` → how transformers makes floats of it again; it can't of the others."""


def check_no_adapter(directory: Path) -> None:
    """Refuse a directory that holds an adapter, alone or beside a base model; raises UserError."""
    if (directory / ADAPTER_CONFIG).exists():
        raise UserError(
            f"{directory} holds a PEFT adapter ({ADAPTER_CONFIG}), which transformers may apply and an export would "
            f"leave out: load it, call merge_and_unload() and save_pretrained(), and give that directory as the base"
        )


def check_plain(checkpoint: Checkpoint) -> None:
    """Refuse a base model whose stored tensors are not its weights; reads the config and the files' headers.

    Raises:
        UserError: ``config.json``, or a part of it, has a ``quantization_config``, or a weight is stored in a dtype
            that holds no plain numbers (fp8, integers).
    """
    directory = checkpoint.directory
    for where, method in _quantizations(checkpoint.config):
        how = DEQUANTIZING.get(method)
        again = f", or {how}, dtype bfloat16, and save that with save_pretrained" if how else ""
        raise UserError(
            f"{directory} is quantized ({method}, says quantization_config in {where}), and its codes are not read as "
            f"weights: give the checkpoint that it was made from as the base model{again}"
        )
    for name in checkpoint.stored_names():
        dtype = checkpoint.stored_as(name).dtype
        is_weight = name.endswith((".weight", ".bias"))
        if dtype not in FLOATS and (is_weight or dtype not in INDICES):
            raise UserError(
                f"{name} is stored as {dtype} in {directory}, and weights are read from {', '.join(FLOATS)} only: "
                f"give the checkpoint before quantization as the base model, saved in bfloat16 by save_pretrained"
            )


def _quantizations(config: Mapping[str, Json]) -> Iterator[tuple[str, str]]:
    """Where a config says that weights are quantized, and by what method."""
    parts = [(f"{name} of config.json", part) for name, part in config.items() if isinstance(part, dict)]
    for where, part in (("config.json", config), *parts):
        for key in ("quantization_config", "compression_config"):
            if found := part.get(key):
                yield where, _method(found)


def _method(found: Json) -> str:
    fields = found if isinstance(found, dict) else {}
    by_bits = fields.get("load_in_8bit") or fields.get("load_in_4bit")
    return str(fields.get("quant_method") or ("bitsandbytes" if by_bits else "by a method without a name"))
