"""Our decoder graph against the one that onnxruntime-genai's builder makes, alternated in one run.

A random Qwen2-shaped decoder of 386 M parameters (896 hidden, 24 layers, 14 heads over 2 KV heads, 4864 MLP,
32k vocabulary), int4 block 32 at accuracy level 4. Both graphs run through the same loop: I/O binding, shared
KV buffers. Run it on a quiet machine: ``make bench``. On a busy one, ``--layers 6`` takes minutes, and ratios hold.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from transformers import Qwen2Config, Qwen2ForCausalLM

from scale_export.backends.onnxruntime.decoder import emit_decoder
from scale_export.backends.onnxruntime.kernels import GraphOptions
from scale_export.device.engine import Scalars, Step
from scale_export.device.onnxruntime.engine import DecoderSession, open_session
from scale_export.families._text import text_spec
from scale_export.model.checkpoint import Checkpoint
from scale_export.model.folding import Factor
from scale_export.model.weights import CheckpointWeights
from scale_export.quantize import QuantizedWeights, load_quantizer

CONTEXT = 1024
SHAPE = {
    "hidden_size": 896,
    "num_hidden_layers": 24,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "intermediate_size": 4864,
    "vocab_size": 32000,
    "max_position_embeddings": CONTEXT,
    "tie_word_embeddings": False,
}
VARIANTS = ("genai", "base", "gate", "folded")


def build_checkpoint(directory: Path) -> None:
    """A random model with the files that the genai builder asks for."""
    if (directory / "model.safetensors").exists():
        return
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(**SHAPE)).save_pretrained(directory, max_shard_size="8GB")
    vocabulary = {f"t{i}": i for i in range(SHAPE["vocab_size"])}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
    )
    tokenizer.save_pretrained(directory)


def build_genai(source: Path, directory: Path) -> Path:
    """The peer: int4 block 32 symmetric, accuracy level 4, embeddings as inputs as in a vision-language model."""
    if not (directory / "model.onnx").exists():
        options = ["block_size=32", "is_symmetric=true", "accuracy_level=4", "exclude_embeds=true"]
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", source, "-o", directory]
        command += ["-p", "int4", "-e", "cpu", "-c", directory / "cache", "--extra_options", *options]
        subprocess.run(command, check=True, capture_output=True)
    return directory / "model.onnx"


def scalars() -> Scalars:
    """The scalars that the gate is fed, and that are folded."""
    rng = np.random.default_rng(0)
    layers, heads = SHAPE["num_hidden_layers"], SHAPE["num_attention_heads"]
    attn = rng.uniform(0.5, 1.5, (layers, heads)).astype(np.float32)
    return Scalars(attn=attn, mlp=rng.uniform(0.5, 1.5, layers).astype(np.float32))


def build_ours(source: Path, directory: Path, variant: str) -> Path:
    """Our graph: without scalars, with the gate, or with folded block scales."""
    path = directory / variant / "decoder.onnx"
    if path.exists():
        return path
    path.parent.mkdir(parents=True)
    spec = text_spec(Qwen2Config(**SHAPE))
    weights = CheckpointWeights(checkpoint=Checkpoint(source), spec=spec, prefix="model")
    drawn = scalars()
    factors = {}
    if variant == "folded":
        for layer in range(spec.num_layers):
            heads = np.repeat(drawn.attn[layer], spec.head_dim)
            columns = np.full(spec.intermediate_size, drawn.mlp[layer], np.float32)
            factors[f"layers.{layer}.o_proj"] = Factor(columns=heads, bias=1.0)
            factors[f"layers.{layer}.down_proj"] = Factor(columns=columns, bias=float(drawn.mlp[layer]))
    emit_decoder(
        QuantizedWeights(
            base=weights, quantizer=load_quantizer("rtn"), bits=4, block_size=32, factors=factors
        ),
        path,
        options=GraphOptions(precision="int4", block_size=32, accuracy_level=4, activations="float32"),
        context_length=CONTEXT,
        gated=variant == "gate",
    )
    return path


class GenaiSession(DecoderSession):
    """The peer's graph in our loop: the same binding, without the inputs that it doesn't have."""

    def __init__(self, session: ort.InferenceSession, context_length: int) -> None:
        super().__init__(session, context_length)
        self.names = {i.name for i in session.get_inputs()}
        heads = SHAPE["num_key_value_heads"]
        head_dim = SHAPE["hidden_size"] // SHAPE["num_attention_heads"]
        self.cache_shapes = dict.fromkeys(self.cache_shapes, (1, heads, 0, head_dim))

    def forward(self, cache, step: Step, scalars: Scalars | None):
        after = cache.lengths + step.lengths
        feeds: dict[str, NDArray] = {
            "inputs_embeds": step.inputs_embeds.astype(self.dtype, copy=False),
            "attention_mask": np.ones((1, int(after.max())), np.int64),
            "position_ids": step.position_ids,
        }
        binding = self.session.io_binding()
        for name in self.names & feeds.keys():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(feeds[name]))
        for name, buffer in cache.values.items():
            binding.bind_ortvalue_input(name, buffer)
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), buffer)
        binding.bind_output("logits")
        self.session.run_with_iobinding(binding)
        cache.lengths[:] = after
        return binding.get_outputs()[-1].numpy()[:, -1]


def time_once(session: DecoderSession, past: int, steps: int) -> tuple[float, float, float]:
    """Seconds of a prefill of ``past`` tokens, and per decode step after it; of a step the processor's seconds too."""
    rng = np.random.default_rng(0)
    width = SHAPE["hidden_size"]
    prompt = rng.standard_normal((1, past, width)).astype(np.float32)
    tokens = rng.standard_normal((steps, 1, 1, width)).astype(np.float32)
    cache = session.new_cache(1)
    started = time.perf_counter()
    positions = np.arange(past, dtype=np.int64)[None]
    session.forward(cache, Step(inputs_embeds=prompt, lengths=np.array([past]), position_ids=positions), None)
    prefilled, used = time.perf_counter(), time.process_time()
    for index in range(steps):
        positions = np.array([[past + index]], np.int64)
        session.forward(
            cache, Step(inputs_embeds=tokens[index], lengths=np.array([1]), position_ids=positions), None
        )
    decoded = (time.perf_counter() - prefilled) / steps
    return prefilled - started, decoded, (time.process_time() - used) / steps


@dataclasses.dataclass
class Timing:
    """Medians over repetitions, seconds."""

    prefill: float
    decode: float
    cpu: float
    """Of a decode step, the processor's: other work on the machine adds little to it."""


def run(work: Path, repeats: int, past: int, steps: int, threads: int) -> dict[str, Timing]:
    """Build what is missing, then alternate the engines; the order turns around every repetition."""
    source = work / "model"
    build_checkpoint(source)
    paths = {"genai": build_genai(source, work / "genai")}
    paths |= {variant: build_ours(source, work / "ours", variant) for variant in VARIANTS[1:]}
    sessions: dict[str, DecoderSession] = {}
    for name, path in paths.items():
        session = open_session(path, providers=["CPUExecutionProvider"], threads=threads)
        sessions[name] = (
            GenaiSession(session, CONTEXT)
            if name == "genai"
            else DecoderSession(session, CONTEXT, defaults=scalars())
        )
    samples: dict[str, list[tuple[float, float, float]]] = {name: [] for name in VARIANTS}
    for repeat in range(repeats + 1):
        order = VARIANTS if repeat % 2 else VARIANTS[::-1]
        for name in order:
            sample = time_once(sessions[name], past, steps)
            if repeat:
                samples[name].append(sample)
    return {
        name: Timing(*(statistics.median(column) for column in zip(*rows, strict=True)))
        for name, rows in samples.items()
    }


def main() -> None:
    """Parse the command line, measure, print a table and one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=Path("out/bench"), help="where models are built and kept"
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--past", type=int, default=128, help="prompt tokens")
    parser.add_argument("--steps", type=int, default=32, help="decode steps a repetition")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=SHAPE["num_hidden_layers"], help="of the decoder")
    parser.add_argument("--clean", action="store_true", help="remove the built models afterwards")
    options = parser.parse_args()
    SHAPE["num_hidden_layers"] = options.layers
    timings = run(options.work, options.repeats, options.past, options.steps, options.threads)
    peer, base = timings["genai"], timings["base"]
    table = Table(title=f"{options.threads} thread(s), past {options.past}, median of {options.repeats}")
    for heading in (
        "graph",
        "decode ms/token",
        "to genai",
        "to base",
        "CPU ms/token",
        "to base",
        "prefill tokens/s",
        "time to genai",
    ):
        table.add_column(heading, justify="right")
    for name, timing in timings.items():
        table.add_row(
            name,
            f"{timing.decode * 1e3:.2f}",
            f"{timing.decode / peer.decode:.3f}",
            f"{timing.decode / base.decode:.3f}",
            f"{timing.cpu * 1e3:.2f}",
            f"{timing.cpu / base.cpu:.3f}",
            f"{options.past / timing.prefill:.0f}",
            f"{timing.prefill / peer.prefill:.3f}",
        )
    Console().print(table)
    if options.clean:
        shutil.rmtree(options.work)
    print(json.dumps({name: dataclasses.asdict(timing) for name, timing in timings.items()}))


if __name__ == "__main__":
    main()
