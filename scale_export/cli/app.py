"""The command line: the commands in the order of ``--help``, and what a run ends with.

Heavy imports wait until a command runs.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from scale_export.core.errors import EXIT_OK, EXIT_OWN_FAULT, EXIT_USER_ERROR, UserError
from scale_export.core.terminal import printable
from scale_export.core.version import __version__
from scale_export.core.watch import may_end

from .bench import bench
from .cache import cache
from .doctor import doctor
from .faults import drop_output, machine_fault, own_fault
from .fold import fold
from .importing import import_
from .inspection import inspect
from .interruption import leave_quietly, noted
from .lists import families, targets
from .push import push
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
for one in (fold, verify, doctor, sign, push, run, inspect, train, import_, bench, targets, families, cache):
    app.command(one.__name__.strip("_"))(one)


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
    code = run_words(app, sys.argv[1:] if words is None else words)
    if words is None:  # the process is the command's own
        leave_quietly()
    sys.exit(code)


def fold_in_optimum(words: Sequence[str]) -> int:
    """``optimum-cli export scale``: the same command under Optimum's name; the exit code."""
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
    alone.command(help=(fold.__doc__ or "").replace("scale-export fold", OPTIMUM))(fold)
    return run_words(alone, words, name=OPTIMUM)


def run_words(commands: typer.Typer, words: Sequence[str], name: str | None = None) -> int:
    """Run a command; the exit code. Whatever ends it is one sentence on standard error, and no traceback.

    Args:
        words: as typed, without the program's name.
        name: what the help calls the program; the process's own name where None.
    """
    with noted() as interruption:
        try:
            try:
                code = _called(commands, words, name)
            finally:
                interruption.over = True
        except BaseException as error:  # libraries in Rust raise what is no Exception
            return _ended_by(KeyboardInterrupt() if interruption.asked else error, words)
        if code == EXIT_INTERRUPTED:  # how Typer returns it
            return _ended_by(KeyboardInterrupt(), words)
        return code


def _called(commands: typer.Typer, words: Sequence[str], name: str | None) -> int:
    """The exit code of a command that ends by itself; raises what ended it otherwise."""
    try:
        with may_end(lambda sentence: _end_at_once(sentence, words)):
            code = commands(list(words), standalone_mode=False, prog_name=name)
        sys.stdout.flush()
    except typer.Exit as end:
        code = end.exit_code
    return code if isinstance(code, int) else EXIT_OK


def _ended_by(error: BaseException, words: Sequence[str]) -> int:
    """Say what ended a command, a mistake in its words as Typer does; the exit code."""
    show = getattr(error, "show", None)
    if show is not None:
        show()
        return EXIT_USER_ERROR
    code, sentence = _said_of(error, words)
    return _complain(sentence, code, as_json="--json" in words)


def _said_of(error: BaseException, words: Sequence[str]) -> tuple[int, str]:
    """The exit code and the sentence. What the system refused is nobody's fault; what is left is ours."""
    if isinstance(error, typer.Abort):  # Typer's, for an interruption or for input that ended
        error = error.__cause__ or KeyboardInterrupt()
    if isinstance(error, SystemExit):  # Typer's, where standard output was closed
        error = BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
    if isinstance(error, UserError):
        return EXIT_USER_ERROR, str(error)
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED, "interrupted; nothing is left half-written"
    refused = machine_fault(error) if isinstance(error, OSError) else None
    if refused is None:
        return EXIT_OWN_FAULT, own_fault(error, words)
    if isinstance(error, OSError) and error.filename is None:  # a stream's, not a file's
        drop_output()
    return EXIT_USER_ERROR, refused


def _end_at_once(sentence: str, words: Sequence[str]) -> NoReturn:
    """End the process from whichever thread sees that a library does not return."""
    code = _complain(sentence, EXIT_USER_ERROR, as_json="--json" in words)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _complain(sentence: str, code: int, as_json: bool) -> int:
    typer.echo(f"scale-export: {printable(sentence)}", err=True)
    if as_json:
        typer.echo(json.dumps({"error": sentence}))
    return code
