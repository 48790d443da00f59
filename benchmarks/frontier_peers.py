"""Other projects' quantizers, each run as a program of its own: ``python frontier_peers.py NAME MODEL STATISTICS OUT``.

Writes ``OUT.safetensors``, the weights as a runtime would compute with them, by the checkpoint's names, and
``OUT.json``: bytes of all matrices as stored, CPU-seconds, versions. ``frontier.py`` runs it with the interpreter of an
environment that has the peer; status 3 and a sentence on standard error say that it isn't there.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.metadata
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

NOT_INSTALLED = 3
GGUF_TYPES = {"q4_0": 2, "q8_0": 7, "q4_k_m": 15, "q5_k_m": 17, "q6_k": 18, "iq4_xs": 30}
"""The spelling of a row → llama.cpp's number of it (``llama_ftype`` in its llama.h)."""
GGUF_PARTS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
INPUT_OF = {"attn_q": "q_proj", "attn_k": "q_proj", "attn_v": "q_proj", "attn_output": "o_proj"}
INPUT_OF |= {"ffn_gate": "gate_proj", "ffn_up": "gate_proj", "ffn_down": "down_proj"}


@dataclass(frozen=True)
class Made:
    """What a peer made of the weights."""

    tensors: dict[str, Tensor]
    weight_bytes: int
    seconds: float
    version: str


def gguf_name(name: str) -> str:
    """What llama.cpp calls a tensor of a Llama checkpoint."""
    outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    module = name.removesuffix(".weight")
    if module in outer:
        return f"{outer[module]}.weight"
    _, _, layer, part = module.split(".", 3)
    return f"blk.{layer}.{GGUF_PARTS[part]}.weight"


def write_gguf(tensors: Mapping[str, Tensor], config: Mapping[str, Any], path: Path) -> None:
    """Float32 weights with what llama.cpp must know to quantize them.

    Rows of q and k stay in the checkpoint's order, which llama.cpp's own arithmetic would not take: each row is
    quantized by itself, and the file is never run.
    """
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    for name, value in tensors.items():
        writer.add_tensor(gguf_name(name), value.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_gguf(path: Path, names: Mapping[str, str]) -> tuple[dict[str, Tensor], int]:
    """The dequantized tensors by ``names`` (llama.cpp's → ours), and the bytes of those with two axes."""
    from gguf import GGUFReader, quants

    found, size = {}, 0
    for tensor in GGUFReader(path).tensors:
        value = quants.dequantize(tensor.data, tensor.tensor_type)
        size += tensor.n_bytes if value.ndim == 2 else 0
        found[names[tensor.name]] = torch.from_numpy(np.ascontiguousarray(value, np.float32))
    return found, size


def importance(statistics: Path, layers: int) -> dict[str, np.ndarray[Any, Any]]:
    """llama.cpp's importance matrix: the mean square of each input of each matrix but head and table."""
    with np.load(statistics) as arrays:
        return {
            f"blk.{i}.{part}.weight": np.ascontiguousarray(
                np.diagonal(arrays[f"m:layers.{i}.{source}"]), np.float32
            )
            for i in range(layers)
            for part, source in INPUT_OF.items()
        }


def llama_cpp(kind: str, model: Path, statistics: Path, out: Path) -> Made:
    """``q4_0``, ``q8_0``, or another of ``GGUF_TYPES``; ``+imatrix`` weighs errors by the calibration text."""
    import gguf  # noqa: F401
    import llama_cpp as llama

    tensors, config = load_file(model / "model.safetensors"), json.loads((model / "config.json").read_text())
    source, packed = out.with_suffix(".float.gguf"), out.with_suffix(".gguf")
    write_gguf(tensors, config, source)
    llama.llama_backend_init()
    options = llama.llama_model_quantize_default_params()
    name, _, weighted = kind.partition("+")
    options.ftype, options.nthread = GGUF_TYPES[name], 1
    entries = importance(statistics, config["num_hidden_layers"]) if weighted else {}
    rows = (llama.llama_model_imatrix_data * (len(entries) + 1))()
    for row, (tensor, values) in zip(rows, entries.items(), strict=False):
        row.name, row.size = tensor.encode(), len(values)
        row.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    if weighted:
        options.imatrix = rows
    started = time.process_time()
    status = llama.llama_model_quantize(str(source).encode(), str(packed).encode(), ctypes.byref(options))
    seconds = time.process_time() - started
    if status:
        raise RuntimeError(f"llama_model_quantize ended with status {status}")
    found, size = read_gguf(packed, {gguf_name(tensor): tensor for tensor in tensors})
    source.unlink()
    packed.unlink()
    return Made(found, size, seconds, f"llama-cpp-python {importlib.metadata.version('llama-cpp-python')}")


def hqq(kind: str, model: Path, statistics: Path, out: Path) -> Made:
    """``KIND``: the group size; four bits with zero points for the layers, table and head as they are."""
    del statistics, out
    from hqq.core.quantize import Quantizer

    tensors, found, size, started = load_file(model / "model.safetensors"), {}, 0, time.process_time()
    for name, value in tensors.items():
        if value.ndim == 2 and "layers" in name:
            codes, meta = Quantizer.quantize(
                value.float(),
                nbits=4,
                group_size=int(kind),
                axis=1,
                device="cpu",
                compute_dtype=torch.float32,
            )
            found[name] = Quantizer.dequantize(codes, meta).float().reshape(value.shape).contiguous()
            size += value.numel() // 2 + 2 * 2 * value.numel() // int(kind)
        else:
            found[name] = value.float()
            size += 2 * value.numel() if value.ndim == 2 else 0
    return Made(found, size, time.process_time() - started, f"hqq {importlib.metadata.version('hqq')}")


PEERS: dict[str, Callable[[str, Path, Path, Path], Made]] = {"llama.cpp": llama_cpp, "hqq": hqq}


def main() -> None:
    """Run one peer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", help="PEER:KIND, such as llama.cpp:q4_k_m+imatrix or hqq:64")
    for path in ("model", "statistics", "out"):
        parser.add_argument(path, type=Path)
    arguments = parser.parse_args()
    peer, _, kind = arguments.name.partition(":")
    torch.set_num_threads(1)
    try:
        made = PEERS[peer](kind, arguments.model, arguments.statistics, arguments.out)
    except ImportError as error:
        print(error, file=sys.stderr)
        raise SystemExit(NOT_INSTALLED) from error
    save_file(made.tensors, arguments.out.with_suffix(".safetensors"))
    facts = {"weight_bytes": made.weight_bytes, "seconds": made.seconds, "version": made.version}
    arguments.out.with_suffix(".json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
