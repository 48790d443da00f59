"""``python -m tests.fuzz``: damage files for some minutes, and print what each reader made of them."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from scale_export.core.errors import UserError

from .targets import TARGETS, names

MAX_SECONDS = 10.0
"""Of one reading."""
MAX_MEMORY = 8 << 30
"""Bytes of address space of a process that reads damaged files."""


FOUND = Path(__file__).parent / "found"


@dataclass(kw_only=True)
class Tally:
    """What one reader made of its inputs."""

    inputs: int = 0
    refused: int = 0
    slowest: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    examples: dict[str, tuple[str, bytes, str]] = field(default_factory=dict)


def damaged_inputs(target: str, seeds: dict[str, bytes], seed: int) -> Iterator[tuple[str, bytes]]:
    """Endless damaged copies of the seeds, the same for the same number."""
    rng = Random(f"{target}:{seed}")
    files = sorted(seeds)
    while True:
        name = rng.choice(files)
        yield name, TARGETS[target].damage(rng, name, seeds[name])


def read_one(target: str, folder: Path, name: str, data: bytes, tally: Tally) -> None:
    """Read one input, and count it."""
    began = time.process_time()
    try:
        TARGETS[target].read(folder, name, data)
    except UserError as error:
        tally.refused += 1
        if "\n" in str(error):
            _fault(tally, "a refusal of several lines", name, data, str(error))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # of libraries in Rust, too
        last = traceback.extract_tb(error.__traceback__)[-1]
        kind = f"{type(error).__name__} in {Path(last.filename).name}:{last.lineno}"
        _fault(tally, kind, name, data, traceback.format_exc())
    took = time.process_time() - began
    tally.inputs += 1
    tally.slowest = max(tally.slowest, took)
    if took > MAX_SECONDS:
        _fault(tally, "slow", name, data, f"{took:.1f} s")


def _fault(tally: Tally, kind: str, name: str, data: bytes, text: str) -> None:
    tally.faults[kind] += 1
    tally.examples.setdefault(kind, (name, data, text))


def found_before(target: str) -> list[tuple[str, bytes]]:
    """Inputs that once broke this reader: files of ``found/TARGET/``, named ``NUMBER-NAME`` with ``%`` for ``/``."""
    files = sorted((FOUND / target).glob("*"))
    return [(file.name.split("-", 1)[1].replace("%", "/"), file.read_bytes()) for file in files]


def fuzz(
    target: str,
    folder: Path,
    *,
    seed: int,
    inputs: int | None,
    seconds: float | None,
    last: Path | None = None,
) -> Tally:
    """Read what broke it once, then damaged inputs until their number or the time is reached.

    ``last`` is a file that holds the input that is being read, for one that ends the process.
    """
    seeds, tally = TARGETS[target].seeds(folder), Tally()
    for name, data in found_before(target):
        read_one(target, folder, name, data, tally)
    end = None if seconds is None else time.monotonic() + seconds
    for name, data in damaged_inputs(target, seeds, seed):
        if tally.inputs == inputs or (end is not None and time.monotonic() > end):
            break
        if last is not None:
            last.write_bytes(name.encode() + b"\0" + data)
        read_one(target, folder, name, data, tally)
    return tally


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", nargs="*", choices=[[], *TARGETS], help="readers, by default all")
    parser.add_argument("--minutes", type=float, help="of each reader")
    parser.add_argument(
        "--inputs", type=int, help="of the quickest readers, in place of minutes; slower ones take a share"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for inputs that broke something")
    parser.add_argument(
        "--figures", type=Path, help="a file to which each reader's figures are added, a line each"
    )
    parser.add_argument("--sum", type=Path, help="print the table of such a file, and read nothing")
    return parser.parse_args()


def _report(target: str, tally: Tally, keep: Path | None) -> None:
    """Print what one reader made of its inputs, and keep one input of each kind of fault."""
    print(
        f"{target:14} {tally.inputs:9,} inputs {tally.refused:9,} refused {sum(tally.faults.values()):6,} faults"
        f"  slowest {tally.slowest:.2f} s",
        flush=True,
    )
    for kind, count in tally.faults.most_common():
        name, data, text = tally.examples[kind]
        print(f"  {count:6,} × {kind} ({name})\n    {text.strip().splitlines()[-1][:200]}", flush=True)
        if keep:
            place = keep / f"{target}-{kind.replace(' ', '_').replace('/', '_')}"
            place.write_bytes(data)
            place.with_suffix(".txt").write_text(f"{name}\n{text}")


def table_of(figures: Path) -> str:
    """The sums of a file of figures, as a Markdown table."""
    rows: dict[str, list[float]] = {}
    for line in figures.read_text(encoding="utf-8").splitlines():
        found = json.loads(line)
        row = rows.setdefault(found["reader"], [0, 0, 0, 0, 0])
        for at, key in enumerate(("inputs", "refused", "faults")):
            row[at] += found[key]
        for at, key in ((3, "slowest"), (4, "peak")):
            row[at] = max(row[at], found[key])
    lines = [
        "| reader | inputs | refused | faults | slowest, s | peak, GiB |",
        "| --- | --: | --: | --: | --: | --: |",
    ]
    total = [sum(row[at] for row in rows.values()) for at in range(3)]
    worst = [max(row[at] for row in rows.values()) for at in (3, 4)]
    for name, row in [*sorted(rows.items()), ("all", [*total, *worst])]:
        counts = " | ".join(f"{int(value):,}" for value in row[:3])
        lines.append(f"| {name} | {counts} | {row[3]:.1f} | {row[4] / (1 << 30):.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Run the command line; exit code 1 where something but a ``UserError`` came out of a reader."""
    arguments = _arguments()
    if arguments.sum:
        print(table_of(arguments.sum))
        return
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    seconds = None if arguments.minutes is None else 60 * arguments.minutes
    inputs = arguments.inputs or (None if seconds else 78_000)
    if arguments.keep:
        arguments.keep.mkdir(parents=True, exist_ok=True)
    broken = 0
    for target in names(arguments.target):
        last = arguments.keep / f"last-{target}" if arguments.keep else None
        share = None if inputs is None else -(-inputs // TARGETS[target].cost)
        with tempfile.TemporaryDirectory() as folder:
            tally = fuzz(target, Path(folder), seed=arguments.seed, inputs=share, seconds=seconds, last=last)
        if last is not None:
            last.unlink(missing_ok=True)
        _report(target, tally, arguments.keep)
        broken += sum(tally.faults.values())
        if arguments.figures:
            with arguments.figures.open("a", encoding="utf-8") as file:
                file.write(json.dumps(_figures(target, tally)) + "\n")
    sys.exit(bool(broken))


def _figures(target: str, tally: Tally) -> dict[str, str | float]:
    return {
        "reader": target,
        "inputs": tally.inputs,
        "refused": tally.refused,
        "faults": sum(tally.faults.values()),
        "slowest": tally.slowest,
        "peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


if __name__ == "__main__":
    main()
