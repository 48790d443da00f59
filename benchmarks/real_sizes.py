"""Published sizes through the whole export: random checkpoints of their configs, folded for two targets.

    python benchmarks/real_sizes.py smolvlm-256m --directory /scratch
    python benchmarks/real_sizes.py llava-1.5-7b --directory /scratch --targets checkpoint cpu

Weights are random and written shard by shard, never whole in memory; tokenizers are small, vocabularies padded to
the published size. Each fold is a process of its own, and its log gives every stage's time and the peak of resident
memory up to its end (file pages that are mapped count). The yardstick is the largest tensor as stored.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForImageTextToText

from scale_export.model.base import open_base
from scale_export.model.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint
from scale_export.model.identity import make_coefficients
from tests.helpers.models import FAMILIES, Recipe, special_ids

SHARD_BYTES = 5_000_000_000
CHUNK = 1 << 22
TARGETS: Mapping[str, tuple[str, list[str]]] = {
    "checkpoint": ("all", []),
    "cpu": ("last", ["--precision", "int4"]),
}
"""Target → scope of the scalars, and options of ``fold``."""


class Shape(NamedTuple):
    """A published model, and the dtype that it is stored in."""

    dtype: torch.dtype
    recipe: Recipe


SMOLVLM_WORDS = (
    "<fake_token_around_image>", "<global-img>", "<end_of_utterance>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)  # fmt: skip
"""What SmolVLM's processor puts around tiles."""

SHAPES: Mapping[str, Shape] = {
    "smolvlm-256m": Shape(
        torch.bfloat16,
        replace(FAMILIES["idefics3"], words=SMOLVLM_WORDS).but(
            language={
                "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
                "num_key_value_heads": 3, "head_dim": 64, "vocab_size": 49280, "max_position_embeddings": 8192,
                "rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0},
            },
            vision={
                "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
                "image_size": 512, "patch_size": 16,
            },
            config={"scale_factor": 4},
            pictures={"size": {"longest_edge": 512}, "max_image_size": {"longest_edge": 512}},
            processor={"image_seq_len": 64},
        ),
    ),
    "qwen2.5-vl-3b": Shape(
        torch.bfloat16,
        FAMILIES["qwen2_5_vl"].but(
            language={
                "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
                "num_key_value_heads": 2, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 128000,
                "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
            },
            vision={
                "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "patch_size": 14,
                "out_hidden_size": 2048, "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31],
            },
            pictures={"patch_size": 14, "size": {"shortest_edge": 3136, "longest_edge": 12_845_056}},
        ),
    ),
    "llava-1.5-7b": Shape(
        torch.float16,
        FAMILIES["llava"].but(
            language={
                "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
                "num_key_value_heads": 32, "head_dim": 128, "vocab_size": 32064, "max_position_embeddings": 4096,
                "rms_norm_eps": 1e-5,
            },
            vision={
                "hidden_size": 1024, "intermediate_size": 4096, "projection_dim": 768, "num_hidden_layers": 24,
                "num_attention_heads": 16, "image_size": 336, "patch_size": 14,
            },
            config={"image_seq_length": 576},
            pictures={"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}},
            processor={"patch_size": 14},
        ),
    ),
}  # fmt: skip
"""SmolVLM-256M-Instruct (one tile a picture; published are up to 16 and an overview, which takes 17 times as long),
Qwen2.5-VL-3B-Instruct (pictures of up to 16,384 tokens as published; ``fold`` keeps them to what the target holds)
and llava-1.5-7b-hf."""

SAFETENSORS = {torch.float16: "F16", torch.bfloat16: "BF16"}


def build(shape: Shape, directory: Path) -> None:
    """Write the model directory."""
    directory.mkdir(parents=True)
    config, processor = shape.recipe.prepared()
    config.dtype = shape.dtype
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    for name, value in special_ids(processor.tokenizer).items():
        setattr(model.generation_config, name, value)
    model.generation_config.save_pretrained(directory)
    model.config.save_pretrained(directory)
    processor.save_pretrained(directory)
    write_weights({name: tuple(w.shape) for name, w in model.named_parameters()}, shape.dtype, directory)


def write_weights(shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, directory: Path) -> None:
    """Random tensors, shard by shard."""
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in shapes.items():
        if size and size + 2 * math.prod(shape) > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += 2 * math.prod(shape)
    generator = torch.Generator().manual_seed(0)
    weight_map = {}
    for index, shard in enumerate(shards):
        name = f"model-{index + 1:05d}-of-{len(shards):05d}.safetensors" if shards[1:] else SINGLE_FILE
        weight_map |= dict.fromkeys(shard, name)
        write_shard(directory / name, shard, dtype, generator)
    if shards[1:]:
        total = sum(2 * math.prod(shape) for shape in shapes.values())
        index_text = json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2)
        (directory / INDEX_FILE).write_text(index_text)


def write_shard(
    path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, generator: torch.Generator
) -> None:
    """One safetensors file, chunk by chunk."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {
            "dtype": SAFETENSORS[dtype],
            "shape": shape,
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            for values in random_values(name, shape, generator):
                file.write(values.to(dtype).view(torch.uint8).numpy().tobytes())


def random_values(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Matrices of standard deviation 1 / √fan_in, embeddings of 1/4, norms around 1, biases around 0."""
    mean = 1.0 if len(shape) == 1 and name.endswith("weight") else 0.0
    deviation = 0.2 if mean else 0.1
    if len(shape) > 1:
        deviation = 0.25 if "embed" in name and len(shape) == 2 else math.prod(shape[1:]) ** -0.5
    left = math.prod(shape)
    while left:
        yield mean + deviation * torch.randn(min(left, CHUNK), generator=generator)
        left -= min(left, CHUNK)


def write_coefficients(directory: Path, scope: Any, path: Path) -> None:
    """Random scalars for every layer."""
    base = open_base(str(directory))
    rng = np.random.default_rng(0)
    heads, layers = base.spec.num_heads, base.spec.num_layers
    make_coefficients(
        base.streamed_model,
        directory,
        scope=scope,
        head_scale=rng.uniform(0.5, 1.5, (layers, heads)).astype(np.float32),
        mlp_scale=rng.uniform(0.5, 1.5, layers).astype(np.float32),
    ).save(path)


def copy_seconds(source: Path, out: Path) -> float:
    """How long copying the model's files takes, from a disk that has nothing left to write, as ``fold`` begins."""
    os.sync()
    started = time.perf_counter()
    shutil.copytree(source, out)
    seconds = time.perf_counter() - started
    shutil.rmtree(out)
    os.sync()
    return seconds


def fold(model: Path, target: str, folder: Path, parity: str) -> dict[str, Any]:
    """Fold in a process of its own; the log, the legs and the package's size."""
    scope, options = TARGETS[target]
    coeffs, out = folder / f"{target}.safetensors", folder / f"folded-{target}"
    write_coefficients(model, scope, coeffs)
    command = [
        sys.executable, "-m", "scale_export", "fold", "--coeffs", coeffs, "--target", target, "--model", model,
        "--out", out, "--eval", "none", "--parity", parity, "--json", "--force", *options,
    ]  # fmt: skip
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode > 1:
        raise SystemExit(done.returncode)
    lines = done.stdout.strip().splitlines()
    result: dict[str, Any] = json.loads(lines[-1]) if lines else {"passed": False}
    result["log"] = json.loads((folder / f"folded-{target}.log").read_text())
    path = Path(result["path"])
    result["bytes"] = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    shutil.rmtree(path)
    return result


def show(name: str, target: str, result: Mapping[str, Any], largest: int) -> None:
    """Print the stages, the legs and what was not checked."""
    console = Console(width=150)
    table = Table(title=f"{name}, target {target}: {result['bytes'] / 1e9:.2f} GB, passed {result['passed']}")
    for heading in ("stage", "seconds", "peak resident so far", "in largest tensors"):
        table.add_column(heading)
    for stage, seconds in result["log"]["seconds"].items():
        peak = result["log"]["peak_bytes"][stage]
        table.add_row(stage, f"{seconds:.1f}", f"{peak / 1e9:.2f} GB", f"{peak / largest:.1f}")
    console.print(table)
    for leg, found in result["parity"]["legs"].items():
        console.print(leg, json.dumps(found))
    for line in result["parity"]["not_checked"]:
        console.print("not checked:", line)


def main() -> None:
    """Build, copy for comparison, fold for each target, print, and clean up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--directory", type=Path, required=True, help="where there is room for two models")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--parity", default="auto", help="as in fold")
    parser.add_argument("--keep", action="store_true", help="leave the random model for another run")
    asked = parser.parse_args()
    folder = asked.directory / asked.shape
    model = folder / "model"
    if not model.exists():
        started = time.perf_counter()
        build(SHAPES[asked.shape], model)
        print(f"wrote the random checkpoint in {time.perf_counter() - started:.0f} s")
    checkpoint = Checkpoint(model)
    largest = max(checkpoint.stored(name).size for name in checkpoint.stored_names())
    size = sum(file.stat().st_size for file in checkpoint.weight_files())
    print(f"weights {size / 1e9:.2f} GB, largest tensor {largest / 1e6:.0f} MB", flush=True)
    for target in asked.targets:
        if target == "checkpoint":
            print(f"copying the files takes {copy_seconds(model, folder / 'copy'):.1f} s", flush=True)
        show(asked.shape, target, fold(model, target, folder, asked.parity), largest)
    if not asked.keep:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
