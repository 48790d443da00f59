"""What takes more time or memory than its bound is interrupted, and refused in a sentence."""

from __future__ import annotations

import contextlib
import resource
import signal
import subprocess
import sys
import threading
import time
from typing import Any, NoReturn

import pytest

from scale_export.core import watch
from scale_export.core.errors import UserError
from scale_export.core.watch import Bound, bounded, graph_bound, may_end

SHORT = Bound(seconds=0.2, memory=1 << 30)


def turn(seconds: float) -> None:
    """Keep this thread at work."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_work_within_its_bound_is_left_alone() -> None:
    with bounded("this", SHORT):
        turn(0.05)
    turn(0.4)
    assert not watch.is_interrupting()


def test_what_takes_longer_is_interrupted() -> None:
    with (
        pytest.raises(UserError, match=r"^this is refused, since it takes more than 0 processor seconds"),
        bounded("this", SHORT),
    ):
        turn(60)


def test_what_grows_further_is_interrupted() -> None:
    held = []
    with (
        pytest.raises(UserError, match=r"takes more than 0\.1 GiB of memory"),
        bounded("this", Bound(seconds=60, memory=100 << 20)),
    ):
        while len(held) < 1000:
            held.append(bytearray(b"x") * (10 << 20))
            turn(0.01)
    assert len(held) < 500


def test_a_background_job_of_a_shell_is_bounded_too() -> None:
    """It ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for _ in range(3):
            with pytest.raises(UserError, match="processor seconds"), bounded("this", SHORT):
                turn(60)
            turn(0.1)
    finally:
        signal.signal(signal.SIGINT, before)


def test_waiting_costs_nothing() -> None:
    with bounded("this", SHORT):
        time.sleep(0.5)
    assert not watch.is_interrupting()


def test_the_outer_bound_holds_alone() -> None:
    with bounded("outer", Bound(seconds=30, memory=1 << 30)), bounded("inner", SHORT):
        turn(0.5)
    assert not watch.is_interrupting()


def test_work_that_ends_as_it_is_interrupted_leaves_no_interruption_behind() -> None:
    for _ in range(3):
        with pytest.raises(UserError), bounded("this", SHORT), contextlib.suppress(KeyboardInterrupt):
            turn(60)
        time.sleep(2 * watch.POLL)


def test_an_interruption_of_the_users_is_the_users() -> None:
    with pytest.raises(KeyboardInterrupt), bounded("this", SHORT):
        raise KeyboardInterrupt


def test_one_that_comes_as_the_watch_ends_is_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(list[object]):
        """The work under way; the interruption comes as it is first taken off."""

        taken = 0

        def __setitem__(self, *change: Any) -> None:
            self.taken += 1
            if self.taken == 1:
                raise KeyboardInterrupt
            super().__setitem__(*change)

    work = Interrupted()
    monkeypatch.setattr(watch, "_work", work)
    with pytest.raises(KeyboardInterrupt), bounded("this", SHORT):
        pass
    assert work.taken == 2 and work == []


def test_other_threads_and_lifted_bounds_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    done = []

    def work() -> None:
        with bounded("this", SHORT):
            turn(0.4)
        done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    monkeypatch.setenv(watch.LIFTED, "1")
    work()
    assert done == [True, True]


def test_one_allocation_of_all_memory_is_refused() -> None:
    def end(sentence: str) -> NoReturn:
        raise AssertionError(sentence)

    before = resource.getrlimit(resource.RLIMIT_AS)
    with (
        may_end(end),
        pytest.raises(UserError, match="more memory than it may have"),
        bounded("this", Bound(seconds=60, memory=1 << 28, asked=1 << 30)),
    ):
        bytearray(1 << 40)
    assert resource.getrlimit(resource.RLIMIT_AS) == before


STUCK = """
import os, sys, time
from scale_export.core import watch
watch.GRACE = 0.2
def end(sentence):
    print(sentence, flush=True)
    os._exit(2)
with watch.may_end(end), watch.bounded("this", watch.Bound(0.2, 1 << 30)):
    while True:
        try:
            while True:
                pass
        except KeyboardInterrupt:
            pass  # as a library that does not return
"""


def test_a_library_that_does_not_return_ends_the_program() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert done.stdout.startswith("this is refused, since it takes more than")
    assert not done.stderr


def test_graphs_may_take_what_their_size_lets_them() -> None:
    assert graph_bound(0) == watch.SPARE
    assert graph_bound(1 << 30).seconds == watch.SPARE.seconds + 600
    small, large = graph_bound(1 << 20, 100), graph_bound(4 << 30, 8192)
    assert small.seconds < watch.SPARE.seconds + 1 and small.memory < watch.SPARE.memory + (1 << 30)
    assert large.seconds > 100_000 and large.memory > 64 << 30
