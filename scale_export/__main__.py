"""``scale-export`` and ``python -m scale_export``: the command line; what interrupts it is answered in a sentence."""

from __future__ import annotations

import os
import signal
import sys


def _end(_: int, __: object) -> None:
    """Nothing is under way yet while modules are imported."""
    os.write(sys.stderr.fileno(), b"scale-export: interrupted; nothing is left half-written\n")
    os._exit(130)


_end.until_a_command_runs = True  # type: ignore[attr-defined]


def main() -> None:
    """Run the command line on the process's own words."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    from scale_export.cli.app import main

    main()


if __name__ == "__main__":
    main()
