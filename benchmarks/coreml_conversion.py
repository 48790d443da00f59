"""Time and memory of making a Core ML decoder of Qwen2-0.5B's shape: ours, and coremltools' own call order.

A random decoder (896 hidden, 24 layers, 14 heads over 2 KV heads, 4864 MLP, 151,936 vocabulary), int4 in blocks of
32, with the functions prefill (T = 64) and decode over one KV cache. Ours quantizes matrix by matrix, converts
programs that hold codes only, and joins the functions in memory. The peer (--peer) does what coremltools' guides do:
trace the float model, convert each function to float16, quantize each package, merge the packages from disk.
Each runs in a process of its own, whose peak resident memory is reported.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from transformers import Qwen2Config, Qwen2ForCausalLM

from scale_export.backends.coreml import convert
from scale_export.backends.coreml.decoder import Function, Storage, TracedDecoder, emit_part, matrix_source
from scale_export.coefficients.file import Coefficients
from scale_export.coefficients.rules import BaseIdentity, Bound
from scale_export.compat.coremltools import unheard
from scale_export.core.progress import peak_memory
from scale_export.families._text import text_spec
from scale_export.model.checkpoint import Checkpoint
from scale_export.model.folding import FoldedDecoder
from scale_export.model.weights import CheckpointWeights
from scale_export.quantize import QuantizedWeights, load_quantizer

CONTEXT = 2048
SHAPE: dict[str, Any] = {
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "vocab_size": 151936,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": False,
}


def build_checkpoint(directory: Path) -> None:
    """A random model on disk, float16."""
    if not (directory / "model.safetensors").exists():
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(Qwen2Config(**SHAPE)).to(torch.float16)
        model.save_pretrained(directory, max_shard_size="8GB")


def open_weights(directory: Path) -> CheckpointWeights:
    """Its weights, read tensor by tensor."""
    spec = text_spec(Qwen2Config(**SHAPE))
    return CheckpointWeights(checkpoint=Checkpoint(directory), spec=spec, prefix="model")


def random_scalars(weights: CheckpointWeights) -> Coefficients:
    """Scalars for every head and MLP, of no base in particular."""
    spec, rng = weights.spec, np.random.default_rng(0)
    identity = BaseIdentity(
        base_model="random",
        base_revision=None,
        model_type="llava",
        config_sha256="",
        tensor_sha256={},
        prompt_template_sha256=None,
        transformers_version="",
    )
    return Coefficients(
        scope="last",
        layer_indices=tuple(range(spec.num_layers)),
        head_scale=tuple(rng.uniform(0.5, 1.5, (spec.num_layers, spec.num_heads)).astype(np.float32)),
        mlp_scale=rng.uniform(0.5, 1.5, spec.num_layers).astype(np.float32),
        mlp_site="output",
        bound=Bound(),
        num_heads=spec.num_heads,
        head_dim=spec.head_dim,
        base=identity,
    )


def ours(source: Path, out: Path) -> dict[str, float]:
    """Our call order; seconds by stage."""
    weights = open_weights(source)
    packed = QuantizedWeights(base=weights, quantizer=load_quantizer("rtn"), bits=4, block_size=32)
    folded = FoldedDecoder(
        weights=packed, scaled=None, coefficients=random_scalars(weights), gate=True, factors={}
    )
    layers = range(weights.spec.num_layers)
    storage = Storage(precision="int4", block_size=32)
    started = time.perf_counter()
    emit_part(folded, layers, out, storage=storage, capacity=CONTEXT, prefill_tokens=64)
    return {"all": time.perf_counter() - started}


def peer(source: Path, out: Path) -> dict[str, float]:
    """The guides' call order; seconds by stage."""
    import coremltools as ct
    import coremltools.optimize.coreml as cto

    weights = open_weights(source)
    floats = matrix_source(weights, Storage(precision="float16", block_size=32))
    norms = {name: weights.norm(name) for name in weights.spec.norms()}
    seconds: dict[str, float] = {}
    config = cto.OptimizationConfig(
        global_config=cto.OpLinearQuantizerConfig(
            mode="linear_symmetric", dtype="int4", granularity="per_block", block_size=32
        )
    )
    functions = {"prefill": Function(tokens=64, gate="last"), "decode": Function(tokens=1, gate="all")}
    descriptor = ct.utils.MultiFunctionDescriptor()
    for name, function in functions.items():
        module = TracedDecoder(
            weights.spec, range(weights.spec.num_layers), function, norms, capacity=CONTEXT
        )
        started = time.perf_counter()
        program = convert.convert_function(
            module.eval(),
            module.example(),
            outputs=["logits"],
            states=dict(module.named_buffers()),
            half=True,
            matrices=floats,
        )
        single = out.with_name(f"{name}.mlpackage")
        convert.save_functions({"main": program}, single)
        seconds[f"convert {name}"] = time.perf_counter() - started
        started = time.perf_counter()
        model = cto.linear_quantize_weights(ct.models.MLModel(str(single), skip_model_load=True), config)
        shutil.rmtree(single)
        model.save(str(single))
        seconds[f"quantize {name}"] = time.perf_counter() - started
        descriptor.add_function(str(single), "main", name)
    descriptor.default_function_name = "prefill"
    started = time.perf_counter()
    ct.utils.save_multifunction(descriptor, str(out))
    seconds["merge"] = time.perf_counter() - started
    return {**seconds, "all": sum(seconds.values())}


def measured(job: Any, source: Path, out: Path, results: Any) -> None:
    """Run ``job`` in this process and put what it took into ``results``."""
    with unheard():
        seconds = job(source, out)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    results.put({"seconds": seconds, "peak_bytes": peak_memory(), "package_bytes": size})


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path(".benchmarks/coreml"))
    parser.add_argument(
        "--peer", action="store_true", help="also run coremltools' own call order (slow, 10 GB)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    asked = parser.parse_args()
    source = asked.work / "checkpoint"
    build_checkpoint(source)
    context, found = multiprocessing.get_context("spawn"), {}
    for job in (ours, peer) if asked.peer else (ours,):
        out = asked.work / job.__name__ / "decoder.mlpackage"
        shutil.rmtree(out.parent, ignore_errors=True)
        out.parent.mkdir(parents=True)
        results = context.Queue()
        process = context.Process(target=measured, args=(job, source, out, results))
        process.start()
        found[job.__name__] = results.get()
        process.join()
    if asked.json:
        print(json.dumps(found))
        return
    table = Table("call order", "seconds", "peak memory, GB", "package, MB", "where the time goes")
    for name, result in found.items():
        parts = ", ".join(f"{k} {v:.0f}" for k, v in result["seconds"].items() if k != "all")
        table.add_row(
            name,
            f"{result['seconds']['all']:.0f}",
            f"{result['peak_bytes'] / 1e9:.2f}",
            f"{result['package_bytes'] / 1e6:.0f}",
            parts,
        )
    Console().print(table)


if __name__ == "__main__":
    main()
