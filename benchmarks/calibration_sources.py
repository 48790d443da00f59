"""What int4 loses by what it is calibrated on: a table of ``docs/quantization.md``.

The shipped models with their scalars, rounded to int4 in blocks of 32 by ``gptq`` on each source, and by ``rtn`` on
none. Divergence from the unquantized ScAle model and right answers are measured as in ``quantization.py``, on the
validation split of the set that the model was trained on.

    python benchmarks/calibration_sources.py --write docs/quantization.md
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from quantization import QUESTIONS, Bench, Row

from scale_export.quantize import CalibrationOptions

MARKS = "<!-- sources -->\n", "<!-- end of sources -->"
BITS, BLOCK = 4, 32


def sources(model: str) -> list[tuple[str, str]]:
    """(what is calibrated on, how ``--calib`` spells it), ``none`` first."""
    own = QUESTIONS[model]
    other = next(name for name in QUESTIONS.values() if name != own)
    return [
        ("nothing (`rtn`)", "none"),
        ("32 chats of its own", "self"),
        ("32 chats, another seed", "self:32,seed=1"),
        ("128 chats of its own", "self:128"),
        ("128 questions of the other model's set", other),
        ("128 questions of its own set", own),
    ]


def measured(model: str, limit: int) -> list[tuple[str, Row]]:
    """A row for each source."""
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        bench = Bench(model, "validation", limit, Path(cache))
        for words, source in sources(model):
            if source == "none":
                row = bench.row("rtn", BITS, BLOCK, "none")
            else:
                bench.collect(source, CalibrationOptions(source=source))
                row = bench.row("gptq", BITS, BLOCK, source)
            rows.append((words, row))
            print(model, source, f"KL {row.kl:.5f} top-1 {row.top1:.4f} {row.seconds:.1f} CPU-s", flush=True)
    return rows


def table(found: dict[str, list[tuple[str, Row]]]) -> str:
    """KL and gain kept, models side by side."""
    heads = [f"`{model}`: KL | top-1 | gain kept | CPU-s" for model in found]
    lines = [f"| calibrated on | {' | '.join(heads)} |", "|---" * (1 + 4 * len(found)) + "|"]
    for rows in zip(*found.values(), strict=True):
        cells = [
            f"{row.kl:.1e} | {row.top1:.3f} | {row.retention[0]:.3f} | {row.seconds:.1f}" for _, row in rows
        ]
        lines.append(f"| {rows[0][0]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and put the table between its marks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=QUESTIONS, default=list(QUESTIONS))
    parser.add_argument("--limit", type=int, default=512)
    parser.add_argument("--write", type=Path, help="the page to put the table into")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = table({model: measured(model, arguments.limit) for model in arguments.models})
    print(lines)
    if arguments.write:
        before, _, rest = arguments.write.read_text(encoding="utf-8").partition(MARKS[0])
        arguments.write.write_text(
            before + MARKS[0] + lines + MARKS[1] + rest.partition(MARKS[1])[2], encoding="utf-8"
        )


if __name__ == "__main__":
    main()
