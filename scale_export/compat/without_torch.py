"""transformers 5.0 to 5.24: processors without torch, where torch is installed.

transformers imports torch wherever it finds it, which takes seconds; a processor prepares pictures and words in NumPy
all the same. So its modules are imported a second time, torch out of their sight, and kept here: to the rest of the
process neither they nor torch have been imported, and what the process has of transformers is as it was.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import Final

HIDDEN: Final = "torch"
LIBRARY: Final = "transformers"
ADVICE: Final = "TRANSFORMERS_NO_ADVISORY_WARNINGS"

_lock = threading.RLock()
_own: dict[str, ModuleType] = {}
"""Our modules of transformers, by their names; they live on in the processors that were made of them."""


@contextmanager
def without_torch() -> Iterator[None]:
    """Within: transformers is a copy of its own that finds no torch. What was made of it works on afterwards.

    Nothing is changed where torch has been imported already, which leaves nothing to save, or is not installed. Within,
    no thread can import torch; one that imports transformers gets the copy.
    """
    with _lock:
        if HIDDEN in sys.modules or find_spec(HIDDEN) is None:
            yield
            return
        theirs, advice = _taken(), os.environ.get(ADVICE)
        log = logging.getLogger(LIBRARY)
        state = log.level, log.propagate, list(log.handlers)
        sys.modules.update(_own)
        sys.modules[HIDDEN] = None  # type: ignore[assignment]  # Python's own way to say that there is none
        os.environ[ADVICE] = "1"  # it says that no model can be run, which none is
        try:
            yield
        finally:
            del sys.modules[HIDDEN]
            _own.update(_taken())
            sys.modules.update(theirs)
            log.setLevel(state[0])
            log.propagate, log.handlers[:] = state[1], state[2]
            if advice is None:
                del os.environ[ADVICE]
            else:
                os.environ[ADVICE] = advice


def _taken() -> dict[str, ModuleType]:
    """Transformers' modules, out of the process's table."""
    names = [name for name in sys.modules if name == LIBRARY or name.startswith(f"{LIBRARY}.")]
    return {name: sys.modules.pop(name) for name in names}
