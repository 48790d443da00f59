"""What each kind of matrix loses at accuracy level 4, and what time level 0 costs: a table of ``docs/quantization.md``.

Level 4 of ONNX Runtime's block-wise products rounds their inputs to int8, level 0 computes in float. The decoder of an
int8 or int4 package answers questions with every matrix at level 0, and is then fed those answers with the levels of a
row. KL and best tokens are against level 0, at every position of the answers; seconds are of the process.

    python benchmarks/accuracy_levels.py out/real-int8 --questions 24
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from scale_export import open_package
from scale_export.core.intervals import kl_rows, same_best
from scale_export.core.records import Float32
from scale_export.device.generation import Generator, Inputs
from scale_export.device.onnxruntime.engine import OnnxEngine
from scale_export.device.package import Package
from scale_export.questions import load_questions

ANSWER_TOKENS = 6
Level = Callable[[str], int]
"""A matrix's accuracy level, by its name."""


def alone(kind: str) -> Level:
    """Level 4 for matrices whose name has it, 0 for the others."""
    return lambda name: 4 if re.search(kind, name) else 0


def spared(kind: str) -> Level:
    """Level 0 for matrices whose name has it, 4 for the others."""
    return lambda name: 0 if re.search(kind, name) else 4


ROWS: Mapping[str, Level] = {
    "level 4 everywhere": alone(""),
    "level 4 in `q_proj`, `k_proj`, `v_proj` alone": alone("[qkv]_proj"),
    "level 4 in `o_proj` alone": alone("o_proj"),
    "level 4 in `gate_proj`, `up_proj` alone": alone("gate_proj|up_proj"),
    "level 4 in `down_proj` alone": alone("down_proj"),
    "level 4 in the head alone": alone("lm_head"),
    "level 0 in `q_proj`, `k_proj`, `v_proj` alone": spared("[qkv]_proj"),
    "level 0 in `v_proj` alone": spared("v_proj"),
    "level 0 in `down_proj` alone": spared("down_proj"),
    "level 0 in the first layer alone": spared(r"layers\.0\."),
}


def generator(package: Package, level: Level, scratch: Path) -> Generator:
    """The package's own generator over a decoder with those levels."""
    manifest, files = package.files.manifest, package.files
    graphs = {str(role): files.path(name) for role, name in manifest.graphs.items()}
    model = onnx.load(graphs["decoder"])
    for node in model.graph.node:
        for attribute in (a for a in node.attribute if a.name == "accuracy_level"):
            attribute.i = level(node.input[1])
    graphs["decoder"] = scratch / "decoder.onnx"
    onnx.save(model, graphs["decoder"], save_as_external_data=True, location="decoder.onnx.data")
    providers = manifest.execution_providers
    engine = OnnxEngine(graphs, context_length=manifest.context_length, providers=providers)
    return replace(package.generator, engine=engine)


def logits(
    package: Package, level: Level, asked: Sequence[tuple[Inputs, Sequence[int]]]
) -> tuple[Float32, float]:
    """Logits of all answers' positions ``[N, V]``, and the process's seconds."""
    with tempfile.TemporaryDirectory() as scratch:
        own = generator(package, level, Path(scratch))
        start = time.process_time()
        found = [own.forced_logits(inputs, tokens) for inputs, tokens in asked]
        return np.concatenate(found), time.process_time() - start


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("package", type=Path, help="an int8 or int4 package for ONNX Runtime")
    parser.add_argument("--data", default="gridworld", help="the question set (default: gridworld)")
    parser.add_argument("--questions", type=int, default=24, help="how many (default: 24)")
    options = parser.parse_args()
    package = open_package(options.package)
    questions = load_questions(options.data, "calibration", limit=options.questions)
    prepared = [package.prepare([q.image] if q.image else [], q.prompt) for q in questions]
    with tempfile.TemporaryDirectory() as scratch:
        strict = generator(package, alone("nothing"), Path(scratch))
        rules = package.responder.rules
        asked = [
            (inputs, list(strict.stream(inputs, max_new_tokens=ANSWER_TOKENS, rules=rules)))
            for inputs in prepared
        ]
    reference, seconds = logits(package, alone("nothing"), asked)
    print(f"| levels, {len(reference)} positions | KL, nats | top-1 | CPU-s |\n|---|---|---|---|")
    print(f"| level 0 everywhere | 0 | 100 % | {seconds:.1f} |", flush=True)
    for words, level in ROWS.items():
        found, seconds = logits(package, level, asked)
        kl, same = kl_rows(reference, found).mean(), same_best(reference, found).mean()
        print(f"| {words} | {kl:.5f} | {100 * same:.1f} % | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
