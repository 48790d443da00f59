"""The command line: the commands in the order of ``--help``, and what a run ends with.

Heavy imports wait until a command runs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from scale_export.core.errors import EXIT_OK, EXIT_USER_ERROR, UserError
from scale_export.core.terminal import printable
from scale_export.core.version import __version__

from .bench import bench
from .doctor import doctor
from .fold import fold
from .inspection import inspect
from .lists import families, targets
from .run import run
from .sign import sign
from .train import train
from .verify import verify

EXIT_INTERRUPTED = 130
OPTIMUM = "optimum-cli export scale"
"""What ``fold`` is called inside Optimum."""

app = typer.Typer(
    name="scale-export",
    help="Export ScAle-adapted vision-language models to devices, and prove that the export answers as PyTorch did.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for one in (fold, verify, doctor, sign, run, inspect, train, bench, targets, families):
    app.command()(one)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"scale-export {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Export ScAle-adapted vision-language models to devices, and prove that the export answers as PyTorch did."""


def main(words: Sequence[str] | None = None) -> None:
    """``scale-export``: run the command line, on the process's own words by default, and exit."""
    sys.exit(run_words(app, sys.argv[1:] if words is None else words))


def fold_in_optimum(words: Sequence[str]) -> int:
    """``optimum-cli export scale``: the same command under Optimum's name; the exit code."""
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    alone.command(help=(fold.__doc__ or "").replace("scale-export fold", OPTIMUM))(fold)
    return run_words(alone, words, name=OPTIMUM)


def run_words(commands: typer.Typer, words: Sequence[str], name: str | None = None) -> int:
    """Run a command; the exit code. A user's mistake is one sentence on standard error, and no traceback.

    Args:
        words: as typed, without the program's name.
        name: what the help calls the program; the process's own name where None.
    """
    as_json = "--json" in words
    try:
        code = commands(list(words), standalone_mode=False, prog_name=name)
    except UserError as error:
        return _complain(str(error), EXIT_USER_ERROR, as_json)
    except KeyboardInterrupt:
        return _complain("interrupted; nothing was written", EXIT_INTERRUPTED, as_json)
    except typer.Exit as end:
        return end.exit_code
    except Exception as error:
        return _usage_error(error)
    return code if isinstance(code, int) else EXIT_OK


def _usage_error(error: Exception) -> int:
    """Show a mistake in the words of a command as Typer does; anything else is ours, and keeps its traceback."""
    show = getattr(error, "show", None)
    if show is None:
        raise error
    show()
    return EXIT_USER_ERROR


def _complain(sentence: str, code: int, as_json: bool) -> int:
    typer.echo(f"scale-export: {printable(sentence)}", err=True)
    if as_json:
        typer.echo(json.dumps({"error": sentence}))
    return code
