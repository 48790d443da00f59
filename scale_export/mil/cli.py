"""``python -m scale_export.mil``: run a Core ML package, or show what is in it."""

from __future__ import annotations

import json
import sys
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypedDict

import numpy as np
import typer

from scale_export.core.errors import EXIT_USER_ERROR, UserError
from scale_export.core.inside import check_regular
from scale_export.core.records import Array
from scale_export.core.terminal import printable

from .dtypes import Arithmetic
from .model import Model, load

app = typer.Typer(
    name="python -m scale_export.mil",
    help="A reference interpreter for Core ML packages, without a Mac.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Package = Annotated[Path, typer.Argument(metavar="PACKAGE", help="A .mlpackage folder.")]


@app.command()
def run(
    package: Package,
    inputs: Annotated[Path, typer.Option(help="An .npz file with an array for each input.")],
    function: Annotated[
        str | None, typer.Option(help="The function; the only or default one otherwise.")
    ] = None,
    arithmetic: Annotated[
        Arithmetic, typer.Option(help="float32, or float16 to round as declared.")
    ] = "float32",
    output: Annotated[
        Path | None, typer.Option(help="An .npz file to write; a summary is printed anyway.")
    ] = None,
) -> None:
    """Run a function once, on states of zeros, and print what comes out."""
    model = load(package, arithmetic)
    outputs = model.run(function, _read(inputs), model.new_state())
    if output is not None:
        _write(output, outputs)
    for name, array in outputs.items():
        _say(f"{name}  {array.dtype}{list(array.shape)}  {_summary(array)}")


@app.command()
def show(
    package: Package, as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False
) -> None:
    """Print functions with their inputs, outputs and states, operation counts, and constants by type."""
    described = describe(load(package))
    if as_json:
        typer.echo(json.dumps(described))
        return
    for name, function in described["functions"].items():
        _say(f"{name}{' (default)' if name == described['default_function'] else ''}")
        for role, values in function.items():
            for value, kind in values.items():
                _say(f"  {role.removesuffix('s')} {value}: {kind}")
    _say("operations: " + ", ".join(f"{name} {n}" for name, n in described["operations"].items()))
    _say("constants: " + ", ".join(f"{name} {n:,} bytes" for name, n in described["constant_bytes"].items()))


def _say(line: str) -> None:
    typer.echo(printable(line))


class Description(TypedDict):
    """What ``show`` prints of a model; ``functions`` are name → role → value → type."""

    default_function: str | None
    functions: dict[str, dict[str, dict[str, str]]]
    operations: dict[str, int]
    constant_bytes: dict[str, int]


def describe(model: Model) -> Description:
    """What ``show`` prints, as JSON types: constants that functions share are counted once."""
    return {
        "default_function": model.default_function,
        "functions": {
            name: {
                role: {value: str(kind) for value, kind in getattr(function, role).items()}
                for role in ("inputs", "outputs", "states")
            }
            for name, function in model.functions.items()
        },
        "operations": model.operations(),
        "constant_bytes": constant_bytes(model),
    }


def constant_bytes(model: Model) -> dict[str, int]:
    """Element type → bytes of the constants of that type in the package, each counted once."""
    literals = {
        literal.key: literal
        for function in model.functions.values()
        for operation in function.operations
        for operands in operation.inputs.values()
        for literal in operands
        if not isinstance(literal, str)
    }
    counts: Counter[str] = Counter()
    for literal in literals.values():
        counts[literal.type.dtype] += literal.size
    return {name: size for name, size in counts.most_common() if size}


def _read(path: Path) -> dict[str, Array]:
    check_regular(path)
    try:
        with np.load(path) as archive:
            return dict(archive)
    except (OSError, ValueError, zipfile.BadZipFile, TypeError) as error:
        raise UserError(f"{path} is not an .npz file of arrays: write it with numpy.savez") from error


def _write(path: Path, arrays: Mapping[str, Array]) -> None:
    try:
        np.savez(path, **arrays)  # type: ignore[arg-type]
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}): give a file in a folder that exists"
        ) from error


def _summary(array: Array) -> str:
    """The range of an array, and whether everything in it is finite."""
    if not array.size:
        return "empty"
    text = f"from {array.min():.6g} to {array.max():.6g}"
    return text if np.isfinite(array).all() else f"{text}, not all finite"


def main() -> None:
    """Run the command line; a ``UserError`` becomes one sentence and exit code 2."""
    try:
        app()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(EXIT_USER_ERROR)
