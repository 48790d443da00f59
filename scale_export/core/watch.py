"""What reading and running a file from elsewhere may take of time and memory, held while it runs.

Whether a chat template, a tokenizer or a graph ever ends cannot be told before it ran. So it is watched: what takes
more than its bound is interrupted, and the interruption becomes a refusal. Python is interrupted wherever it is, on the
main thread; a library that does not return within ``GRACE`` seconds is not, and there a program that said so by
``may_end`` (the command line) ends in the same words. Elsewhere the bound is only what the library keeps to.

Processor seconds count, of all threads: a machine that is busy with other things takes nothing away.
"""

from __future__ import annotations

import _thread
import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

from .errors import UserError

try:
    import resource
except ImportError:  # Windows: time is bounded, memory is not
    resource = None  # type: ignore[assignment]

POLL: Final = 0.05
"""Seconds between two looks."""
IDLE: Final = 2.0
"""Seconds without work after which the watch sleeps until there is some."""
GRACE: Final = 5.0
"""Processor seconds that a library has to return in after the interruption."""
LIFTED: Final = "SCALE_EXPORT_UNBOUNDED"
"""The environment variable that lifts every bound of this module, where it is 1."""


@dataclass(frozen=True, slots=True)
class Bound:
    """Processor seconds, bytes by which the process may grow, and by which what it asked for may; None: by any."""

    seconds: float
    memory: int
    asked: int | None = None


PROCESSOR: Final = Bound(seconds=120, memory=4 << 30, asked=16 << 30)
"""Of loading a processor, and of preparing one conversation with it."""
SPARE: Final = Bound(seconds=120, memory=4 << 30)
"""Of graphs, beside what their size lets them take."""


def graph_bound(size: int, tokens: int = 0) -> Bound:
    """What graphs of ``size`` bytes may take: to be opened where ``tokens`` is 0, else to run over so many.

    Each byte holds two weights at most, and each is multiplied once for each token; a processor of 10⁹ operations a
    second is slower than any that is meant. Opening takes 600 seconds for each GiB. Runtimes keep some copies of
    weights; attention may hold a float32 for each pair of tokens and each of 256 heads.
    """
    seconds = size * 4 * tokens / 1e9 if tokens else 600 * size / (1 << 30)
    return Bound(SPARE.seconds + seconds, SPARE.memory + 8 * size + 1024 * tokens * tokens)


def _memory() -> int:
    """Bytes of the process that are in memory: now on Linux, at most so far on other systems, 0 on Windows."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    except (OSError, AttributeError):
        return 0 if resource is None else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@dataclass(kw_only=True, eq=False)
class _Watched:
    """Work that is under way on the main thread."""

    what: str
    bound: Bound
    began: float = field(default_factory=time.process_time)
    size: int = field(default_factory=_memory)
    sentence: str | None = None
    """Why it was interrupted; None where it wasn't."""
    told: float = 0.0

    def excess(self) -> str | None:
        """What it took more of than its bound; None where nothing."""
        if time.process_time() - self.began > self.bound.seconds:
            return f"it takes more than {self.bound.seconds:,.0f} processor seconds"
        if _memory() - self.size > self.bound.memory:
            return f"it takes more than {self.bound.memory / (1 << 30):,.1f} GiB of memory"
        return None


_changed = threading.Condition()
_work: list[_Watched] = []
_thread_of: list[threading.Thread] = []
_end: list[Callable[[str], NoReturn]] = []


@contextmanager
def may_end(end: Callable[[str], NoReturn]) -> Iterator[None]:
    """Within, work that no interruption reaches ends the process: by ``end``, which is told the sentence.

    The address space is bounded too there, so that one allocation of all memory is refused by the system.
    """
    _end.append(end)
    try:
        yield
    finally:
        _end.pop()


def interrupt_main_thread() -> None:
    """Raise ``KeyboardInterrupt`` there, out of sleep and waiting too, where Python handles the signal.

    Where the process ignores it, as a shell's background job does, it is raised between two steps of Python.
    """
    main = threading.main_thread().ident
    assert main is not None, "it has begun"
    if not callable(signal.getsignal(signal.SIGINT)):
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(main), ctypes.py_object(KeyboardInterrupt))
    elif hasattr(signal, "pthread_kill"):
        signal.pthread_kill(main, signal.SIGINT)
    else:
        _thread.interrupt_main()


def is_interrupting() -> bool:
    """Whether an interruption of the main thread may be this module's own, and not the user's."""
    return any(watched.sentence is not None for watched in _work)


@contextmanager
def bounded(what: str, bound: Bound) -> Iterator[None]:
    """Hold what runs within to a bound; ``what`` begins the refusal. Inside another one, the outer one holds alone.

    Raises:
        UserError: it took more, and was interrupted.
    """
    if _work or os.environ.get(LIFTED) == "1" or threading.current_thread() is not threading.main_thread():
        yield
        return
    watched = _Watched(what=what, bound=bound)
    _watch(watched)
    with _address_space(bound.asked):
        try:
            yield
        except KeyboardInterrupt:
            if watched.sentence is None:
                raise
        except MemoryError:
            watched.sentence = watched.sentence or _sentence(
                watched, "it asks for more memory than it may have"
            )
        finally:
            _unwatch(watched)
    if watched.sentence is not None:
        raise UserError(watched.sentence) from None


def _sentence(watched: _Watched, why: str) -> str:
    return (
        f"{watched.what} is refused, since {why}: it is damaged or hostile; where it is yours and needs as much, set "
        f"{LIFTED}=1"
    )


def _watch(watched: _Watched) -> None:
    with _changed:
        if not (_thread_of and _thread_of[0].is_alive()):  # a forked process has none
            _thread_of[:] = [threading.Thread(target=_look, name="scale-export-watch", daemon=True)]
            _thread_of[0].start()
        _work.append(watched)
        _changed.notify()


def _unwatch(watched: _Watched) -> None:
    """No more interruption comes after this; one that is under way is taken here, but a user's is handed on."""
    taken = False
    for _ in range(2):  # the interruption may come right here
        try:
            with _changed:
                _work[:] = [other for other in _work if other is not watched]
            if watched.sentence is not None:
                time.sleep(POLL)
        except KeyboardInterrupt:
            taken = True
    if taken and watched.sentence is None:
        raise KeyboardInterrupt


def _look() -> None:
    """The watch: a look every ``POLL`` seconds while there is work, and for ``IDLE`` seconds after it."""
    quiet = 0.0
    while True:
        time.sleep(POLL)
        with _changed:
            if not _work:
                quiet += POLL
                if quiet > IDLE:
                    _changed.wait_for(lambda: bool(_work))
                continue
            quiet = 0.0
            _judge(_work[0])


def _judge(watched: _Watched) -> None:
    """Interrupt work in excess once, and end the process where that does not reach it."""
    if watched.sentence is None:
        why = watched.excess()
        if why is not None:
            watched.sentence, watched.told = _sentence(watched, why), time.process_time()
            interrupt_main_thread()
    elif _end and (
        time.process_time() - watched.told > GRACE or _memory() - watched.size > 2 * watched.bound.memory
    ):
        _end[-1](watched.sentence)


@contextmanager
def _address_space(asked: int | None) -> Iterator[None]:
    """Refuse allocations that are far beyond what the process may grow by, in programs that may end."""
    statm = Path("/proc/self/statm")
    if not _end or asked is None or resource is None or not statm.exists():
        yield
        return
    held = int(statm.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = held + asked
    allowed = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([most, *allowed]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
