"""``python -m tests.cli.interruptions``: Ctrl-C at moments that are drawn, and count what the commands made of it.

Each command runs as a process of its own on the shipped model, once undisturbed, then once for each interruption: at a
step that Python's audit events count, or at a moment that a clock draws. Steps and clock begin when the command has
installed its handler, its first act: what Python itself does before is not a command's.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from scale_export.package.manifest import open_package_files
from tests.helpers.packages import names
from tests.helpers.trees import tree

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples/tiny_vlm"
SAID = "scale-export: interrupted; nothing is left half-written"
WATCHED = ("import", "open", "os.", "shutil.", "ctypes.")
"""Audit events that are steps: modules, and whatever touches the file system."""
CODE = """
import atexit, os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background ignores
report, at = int(sys.argv.pop(1)), int(sys.argv.pop(1))
seen = 0
def count(event, _):
    global seen
    if event.startswith(WATCHED):
        seen += 1
        if seen == at:
            os.kill(os.getpid(), signal.SIGINT)
def begin(*asked):
    signal.signal = install
    before = install(*asked)
    os.write(report, b"BEGUN")
    sys.addaudithook(count)
    return before
install, signal.signal = signal.signal, begin
atexit.register(lambda: os.write(report, b"%d" % seen))
from scale_export.__main__ import main
main()
"""
LIBRARIES = ("torchinductor_", ".ses")
"""Folders that libraries keep among temporary files, whole commands too."""
BEGUN = "begun"
NEVER = -1
"""The step at which an undisturbed command is interrupted."""


@dataclass(frozen=True, kw_only=True)
class Done:
    """How a command ended, after so many seconds and steps from its beginning."""

    code: int
    out: str
    err: str
    seconds: float
    steps: int


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A folder with a package, and with places for what commands write.

    Attributes:
        package: what is run, verified and inspected.
        work: where an export goes.
        scratch: the place of temporary files.
    """

    package: Path
    work: Path
    scratch: Path

    @classmethod
    def beside(cls, package: Path) -> Stage:
        """Make the folders beside a package that is to come."""
        made = cls(package=package, work=package.parent / "work", scratch=package.parent / "scratch")
        made.work.mkdir()
        made.scratch.mkdir()
        return made

    def words(self, command: str) -> list[str]:
        """What is typed."""
        asked = [
            "--image",
            str(MODEL / "scene.png"),
            "--prompt",
            (MODEL / "question.txt").read_text().strip(),
        ]
        return {
            "run": ["run", str(self.package), *asked],
            "inspect": ["inspect", str(self.package)],
            "verify": ["verify", str(self.package), "--model", str(MODEL / "model")],
            "fold": fold_words(self.work / "package"),
        }[command]

    def call(self, words: Sequence[str], *, step: int = NEVER, after: float | None = None) -> Done:
        """Run a command, interrupted at a step or ``after`` seconds, if given."""
        told, report = os.pipe()
        code = CODE.replace("WATCHED", repr(WATCHED)).replace("BEGUN", BEGUN)
        places = {"TMPDIR": str(self.scratch), "XDG_CACHE_HOME": str(self.package.parent / "cache")}
        with subprocess.Popen(
            [sys.executable, "-c", code, str(report), str(step), *words],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, pass_fds=[report],
            env={**os.environ, **places},
        ) as child:  # fmt: skip
            os.close(report)
            begun = os.read(told, len(BEGUN))
            began = time.monotonic()
            try:
                out, err = child.communicate(timeout=after)
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGINT)
                out, err = child.communicate()
        with os.fdopen(told, "rb") as rest:
            steps = int(rest.read() or 0)
        assert begun == BEGUN.encode(), err
        return Done(code=child.returncode, out=out, err=err, seconds=time.monotonic() - began, steps=steps)

    def interrupted(self, command: str, *, step: int = NEVER, after: float | None = None) -> str:
        """One interruption, as ``call``: ``interrupted``, or ``late`` where the command had done its work.

        Raises:
            AssertionError: it ended otherwise, or left something half-written.
        """
        before = tree(self.package)
        done = self.call(self.words(command), step=step, after=after)
        assert tree(self.package) == before
        left = [name for name in names(self.scratch) if not name.startswith(LIBRARIES)]
        assert left == [], left
        if done.code == 0:
            self.clean(command)
            assert SAID not in done.err
            return "late"
        said = done.err.splitlines()
        assert done.code == 130 and said[-1:] == [SAID] and said.count(SAID) == 1, (done.code, done.err)
        assert "Traceback" not in done.err + done.out, done.err
        if names(self.work):  # it came after the package was in its place
            self.clean(command)
        return "interrupted"

    def empty(self) -> None:
        """Take away what an interruption left."""
        for place in (self.work, self.scratch):
            shutil.rmtree(place)
            place.mkdir()

    def clean(self, command: str) -> None:
        """Take away what a command wrote, which must be whole."""
        if command != "fold":
            assert names(self.work) == [], names(self.work)
        else:
            out = self.work / "package"
            open_package_files(out, exact=True)
            assert names(self.work) == [out.name], names(self.work)
            shutil.rmtree(out)


def moment(rng: Random, whole: Done) -> dict[str, Any]:
    """A step or a time of a command, drawn, as an argument of ``Stage.interrupted``."""
    if rng.random() < 0.5:
        return {"step": rng.randint(1, whole.steps)}
    return {"after": rng.uniform(0, whole.seconds)}


def fold_words(out: Path) -> list[str]:
    """An export of the shipped model."""
    asked = ["--target", "cpu", "--precision", "float32", "--eval", "none", "--out", str(out)]
    return ["fold", "--coeffs", str(MODEL / "spatial.pt"), *asked]


COMMANDS = ("inspect", "run", "verify", "fold")


def main() -> None:
    """Run the command line; exit code 1 where an interruption ended in anything else than its sentence."""
    parser = argparse.ArgumentParser(prog="python -m tests.cli.interruptions", description=__doc__)
    parser.add_argument("command", nargs="*", choices=[[], *COMMANDS], help="all by default")
    parser.add_argument("--runs", type=int, default=15, help="interrupted runs of each command")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    broken = 0
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage.beside(Path(folder) / "package")
        made = stage.call(fold_words(stage.package))
        assert made.code == 0, made.err
        for command in arguments.command or COMMANDS:
            rng, found = Random(f"{command}:{arguments.seed}"), Counter[str]()
            whole = stage.call(stage.words(command))
            assert whole.code == 0, whole.err
            stage.clean(command)
            while found["interrupted"] + found["broken"] < arguments.runs:
                try:
                    found[stage.interrupted(command, **moment(rng, whole))] += 1
                except AssertionError as error:
                    found["broken"] += 1
                    print(f"{command}: {error}", flush=True)
                    stage.empty()
            broken += found["broken"]
            print(
                f"{command}: {whole.seconds:.1f} s, {whole.steps:,} steps; interrupted {found['interrupted']}, "
                f"late {found['late']}, broken {found['broken']}",
                flush=True,
            )
    sys.exit(bool(broken))


if __name__ == "__main__":
    main()
