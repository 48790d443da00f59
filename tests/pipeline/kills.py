"""``python -m tests.pipeline.kills``: kill exports over an old package, on every backend, and count what is left.

A whole fold takes seconds, and what touches the old package is its end. So a fold is run once for each package, up to
the commit, and what it staged is kept; a child then stages those files again and commits them by the same code, and is
killed there: at a step that Python's audit events count, or at a moment that a clock draws. With ``--whole`` folds
themselves are killed, at the beginning and the end of each of their stages. In other children no file may grow beyond a
size that is drawn, as on a disk that is full.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import numpy as np

from scale_export.core.errors import UserError
from scale_export.core.progress import WorkLog
from scale_export.model.base import BaseModel
from scale_export.package.manifest import Manifest, open_package_files
from scale_export.package.staging import StagedPackage
from tests.helpers.coefficients import random_coefficients, saved
from tests.helpers.folds import fold_on, opened_once
from tests.helpers.models import FAMILIES
from tests.helpers.packages import names

BACKENDS = {"cpu": "float32", "iphone": "int8", "coreai": "float32", "checkpoint": "stored"}
"""A target of each backend, and the precision that it is exported in."""
WATCHED = ("open", "os.", "shutil.", "ctypes.")
"""Audit events that are steps: whatever touches the file system."""
FINISHED, REFUSED = 0, 7


@dataclass(frozen=True, kw_only=True)
class Made:
    """What an export was about to commit: the folder of its staged files, and its manifest."""

    tree: Path
    manifest: Manifest

    def publish(self, out: Path) -> None:
        """Stage the files again, over whatever package is there, and commit them."""
        with StagedPackage(out, force=True) as staged:
            shutil.copytree(self.tree, staged.directory, dirs_exist_ok=True)
            staged.commit(self.manifest)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two packages of one base on one target, and the fold that makes the second."""

    old: Made
    new: Made
    fold: Callable[[Path], object]


def pair(
    target: str, base: BaseModel, out: Path, during: Callable[[], AbstractContextManager[None]] = nullcontext
) -> Pair:
    """An old package and, exported over it ``during`` something, a new one of other scalars; it lies at ``out``."""
    drawn = random_coefficients(base, "all" if target == "checkpoint" else "last")
    beside = out.parent.parent

    def fold(number: int, out: Path) -> object:
        scalars = replace(drawn, mlp_scale=drawn.mlp_scale * np.float32(1 / number))
        (beside / f"scalars-{number}").mkdir(parents=True, exist_ok=True)
        asked = {"precision": BACKENDS[target], "evaluation": "none", "force": True}
        return fold_on(base, saved(scalars, beside / f"scalars-{number}"), target, out=out, **asked)

    old = staged(lambda: fold(1, out), beside / "old")
    with during():
        new = staged(lambda: fold(2, out), beside / "new")
    return Pair(old=old, new=new, fold=lambda place: fold(2, place))


def staged(fold: Callable[[], object], tree: Path) -> Made:
    """Run a fold, and keep what it hands to the commit."""
    handed: list[Manifest] = []
    commit = StagedPackage.commit

    def keep(package: StagedPackage, manifest: Manifest) -> Path:
        shutil.copytree(package.directory, tree)
        handed.append(manifest)
        return commit(package, manifest)

    with mock.patch.object(StagedPackage, "commit", keep):
        fold()
    return Made(tree=tree, manifest=handed[0])


def in_child(work: Callable[[], object], meddle: Callable[[], None], after: float | None = None) -> int:
    """Run work in a child, meddled with; killed ``after`` seconds, if given. Its exit code, below 0 for a signal."""
    child = os.fork()
    if child:
        if after is not None:
            time.sleep(after)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        os.fsync = lambda descriptor: None  # type: ignore[assignment]  # a kill is no power cut
        meddle()
        work()
        os._exit(FINISHED)
    except UserError as error:
        os._exit(REFUSED if "\n" not in str(error) else 9)
    finally:
        os._exit(8)


def killed_at_step(step: int) -> Callable[[], None]:
    """A child kills itself at its ``step``-th touch of the file system."""

    def meddle() -> None:
        left = step

        def count(event: str, _: object) -> None:
            nonlocal left
            if event.startswith(WATCHED):
                left -= 1
                if left == -1:  # and not again, since the kill is a step itself
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)

    return meddle


def steps_of(work: Callable[[], object]) -> int:
    """How many touches of the file system the work makes, found by halving: a child with more is not killed."""
    least, most = 0, 1
    while in_child(work, killed_at_step(most)) != FINISHED:
        least, most = most, 2 * most
    while most - least > 1:
        middle = (least + most) // 2
        if in_child(work, killed_at_step(middle)) == FINISHED:
            most = middle
        else:
            least = middle
    return most


def full_at(size: int) -> Callable[[], None]:
    """No file of a child grows beyond ``size`` bytes."""

    def meddle() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return meddle


def killed_at_boundary(number: int) -> Callable[[], None]:
    """A child kills itself at the ``number``-th beginning or end of a stage; see ``boundaries``."""

    def meddle() -> None:
        left = iter(range(number, -1, -1))

        def pass_by() -> None:
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        WorkLog.stage = noticed(pass_by)  # type: ignore[method-assign]

    return meddle


def noticed(pass_by: Callable[[], None]) -> Any:
    """``WorkLog.stage`` that says when each stage begins and ends."""
    stage = WorkLog.stage

    @contextmanager
    def told(log: WorkLog, name: str) -> Iterator[None]:
        pass_by()
        with stage(log, name):
            yield
        pass_by()

    return told


def boundaries(work: Callable[[], object]) -> int:
    """How many beginnings and ends of stages there are."""
    count: list[None] = []
    with mock.patch.object(WorkLog, "stage", noticed(lambda: count.append(None))):
        work()
    return len(count)


@dataclass(frozen=True, kw_only=True)
class Ordeal:
    """One pair at one place, and what became of each attempt."""

    pair: Pair
    out: Path

    def begin(self) -> None:
        """The old package lies in its place, and nothing beside it."""
        with mock.patch.object(os, "fsync", lambda descriptor: None):
            self.pair.old.publish(self.out)
        if names(self.out.parent) != [self.out.name] or self.found() != "old":
            raise AssertionError(
                f"{self.out.parent} holds {names(self.out.parent)} after an export over a killed one"
            )

    def found(self) -> str:
        """``old`` or ``new``: the package in its place, every hash verified.

        Raises:
            AssertionError: it is neither, or none.
        """
        files = open_package_files(self.out, exact=True).manifest.files
        for word in ("old", "new"):
            made: Made = getattr(self.pair, word)
            sizes = {
                p.relative_to(made.tree).as_posix(): p.stat().st_size
                for p in made.tree.rglob("*")
                if p.is_file()
            }
            if (
                sizes == {name: entry.size for name, entry in files.items()}
                and self._coefficients() == (made.tree / made.manifest.coefficients).read_bytes()
            ):
                return word
        raise AssertionError(f"{self.out} is neither the old package nor the new one")

    def _coefficients(self) -> bytes:
        return (self.out / self.pair.old.manifest.coefficients).read_bytes()

    def killed(self, rng: Random, steps: int, seconds: float) -> str:
        """One kill of a commit, at a step or at a moment; what is there afterwards, or ``late`` where none came."""
        self.begin()
        work = lambda: self.pair.new.publish(self.out)  # noqa: E731
        if rng.random() < 0.5:
            code = in_child(work, killed_at_step(rng.randrange(steps)))
        else:
            code = in_child(work, lambda: None, after=rng.uniform(0, 0.7 * seconds))
        if code == FINISHED:
            return "late" if self.found() == "new" else "lost"
        assert code == -signal.SIGKILL, code
        return self.found()

    def filled(self, size: int) -> str:
        """One commit in which no file may grow beyond a size; what is there afterwards."""
        self.begin()
        code = in_child(lambda: self.pair.new.publish(self.out), full_at(size))
        assert code == REFUSED, code
        assert names(self.out.parent) == [self.out.name]
        return self.found()

    def killed_whole(self, boundary: int) -> str:
        """One kill of a whole fold at a boundary of its stages; what is there afterwards."""
        self.begin()
        code = in_child(lambda: self.pair.fold(self.out), killed_at_boundary(boundary))
        assert code == -signal.SIGKILL, code
        return self.found()


def ordeal(
    target: str,
    folder: Path,
    base: BaseModel,
    during: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Ordeal:
    """The pair of a target, and its place."""
    out = folder / target / "place" / "package"
    return Ordeal(pair=pair(target, base, out, during), out=out)


def timed(one: Ordeal) -> tuple[int, float]:
    """Steps and seconds of an undisturbed commit."""
    one.begin()
    work = lambda: one.pair.new.publish(one.out)  # noqa: E731
    steps, began = steps_of(work), time.perf_counter()
    in_child(work, lambda: None)
    return steps, time.perf_counter() - began


def largest(made: Made) -> int:
    """Bytes of the largest staged file."""
    return max(path.stat().st_size for path in made.tree.rglob("*") if path.is_file())


def main() -> None:
    """Run the command line; an assertion ends it where a package was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.pipeline.kills", description=__doc__)
    parser.add_argument("target", nargs="*", choices=[[], *BACKENDS], help="one of each backend by default")
    parser.add_argument("--kills", type=int, default=250, help="of commits of each backend")
    parser.add_argument("--full", type=int, default=25, help="commits of each backend on a full disk")
    parser.add_argument(
        "--whole", action="store_true", help="whole folds at each boundary of their stages, too"
    )
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = Random(arguments.seed)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        FAMILIES["llava"]("llama", directory=folder / "base")
        base = opened_once(folder / "base")
        for target in arguments.target or BACKENDS:
            one = ordeal(target, folder, base)
            steps, seconds = timed(one)
            kills = Counter[str]()
            while kills.total() - kills["late"] < arguments.kills:
                kills[one.killed(rng, steps, seconds)] += 1
            size = largest(one.pair.new)
            full = Counter(one.filled(rng.randrange(size)) for _ in range(arguments.full))
            whole = Counter[str]()
            if arguments.whole:
                count = boundaries(lambda one=one: one.pair.fold(one.out))
                whole.update(one.killed_whole(number) for number in range(count))
            print(
                f"{target}: {steps} steps, kills {dict(kills)}, full {dict(full)}, whole {dict(whole)}",
                flush=True,
            )


if __name__ == "__main__":
    main()
