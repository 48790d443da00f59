"""``scale-export inspect``: a package or a coefficient file, its scalars as a table and a heat map."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from scale_export.core.errors import EXIT_OK, UserError
from scale_export.core.extras import missing

from .display import console, say
from .options import Json

if TYPE_CHECKING:
    from scale_export.coefficients.file import Coefficients
    from scale_export.package.manifest import Manifest, PackageFiles

COEFFICIENT_SUFFIXES = (".pt", ".safetensors")
DRAWINGS = (".png", ".svg")


def inspect(
    place: Annotated[
        str,
        typer.Argument(
            metavar="FILE_OR_PKG", help="A coefficient file, a package directory, or a package's hub id."
        ),
    ],
    png: Annotated[
        Path | None, typer.Option("--png", help="Draw the scalars' heat map into this .png or .svg file.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Say what a coefficient file or a package is, and draw its scalars.

    Example: scale-export inspect spatial.pt --png spatial.png
    """
    from scale_export.coefficients.file import load_coefficients
    from scale_export.package.hub import package_directory
    from scale_export.package.manifest import open_package_files

    if png is not None and png.suffix.lower() not in DRAWINGS:
        raise UserError(f"--png {png} is refused: heat maps are drawn into {' or '.join(DRAWINGS)} files")
    path = Path(place) if place.endswith(COEFFICIENT_SUFFIXES) else package_directory(place)
    if path.is_dir():
        files = open_package_files(path, failed=True)
        facts = _package_facts(files.manifest) | _verdict(files)
        coefficients = load_coefficients(files.path(files.manifest.coefficients))
    elif path.suffix in COEFFICIENT_SUFFIXES or path.exists():
        coefficients = load_coefficients(path)
        facts = {}
    else:
        raise UserError(f"there is no file or package {path}: name a coefficient file or a package directory")
    facts |= _coefficient_facts(coefficients)
    if png is not None:
        _draw(coefficients, png, Path(place).name)
    if as_json:
        print(json.dumps(facts | {"png": None if png is None else str(png)}))
        return EXIT_OK
    table = Table(show_header=False, box=None)
    for key, value in facts.items():
        table.add_row(Text(key.replace("_", " "), "bold"), str(value))
    console.print(table)
    _print_scalars(coefficients)
    if png is not None:
        say(f"Heat map: {png}")
    return EXIT_OK


def _package_facts(manifest: Manifest) -> dict[str, object]:
    return {
        "package": manifest.name,
        "target": manifest.target,
        "backend": manifest.backend,
        "precision": manifest.precision,
        "fold": manifest.fold,
        "context_length": manifest.context_length,
        "bytes": sum(entry.size for entry in manifest.files.values()),
        "graphs": dict(manifest.graphs),
    }


def _verdict(files: PackageFiles) -> dict[str, object]:
    """What the package's own report says: passed or not, the legs, and what was not looked at."""
    from scale_export.package.stored_report import PARITY, read_report

    if not files.manifest.holds(PARITY):
        return {"parity": "not measured"}
    parity = read_report(files)
    words = {True: "passed", False: "FAILED", None: "no limit"}
    legs = {name: words[leg["passed"]] if leg else "not checked" for name, leg in parity["legs"].items()}
    return {
        "parity": words[parity["passed"]],
        "legs": legs,
        "measured_on": parity["executed_by"],
        "not_checked": parity["not_checked"],
    }


def _coefficient_facts(coefficients: Coefficients) -> dict[str, object]:
    heads = [float(s) for row in coefficients.head_scale for s in row]
    return {
        "scope": coefficients.scope,
        "model_type": coefficients.base.model_type,
        "base_model": coefficients.base.base_model,
        "layers": list(coefficients.layer_indices),
        "heads_per_layer": coefficients.num_heads,
        "scalars": coefficients.count,
        "head_scale_range": [min(heads), max(heads)],
        "mlp_scale_range": [float(coefficients.mlp_scale.min()), float(coefficients.mlp_scale.max())],
        "mlp_site": coefficients.mlp_site,
        "training": dict(coefficients.training),
    }


def _print_scalars(coefficients: Coefficients) -> None:
    """The scalars as a small table: one row a layer, deeper blue below 1, deeper red above."""
    table = Table(title="scalars, layer by head", box=None)
    for heading in ("layer", *map(str, range(coefficients.num_heads)), "mlp"):
        table.add_column(heading, justify="right")
    for row, layer in enumerate(coefficients.layer_indices):
        values = [*coefficients.head_scale[row], coefficients.mlp_scale[row]]
        table.add_row(str(layer), *(_coloured(float(v)) for v in values))
    console.print(table)


def _coloured(value: float) -> Text:
    strength = int(min(abs(value - 1), 1) * 155) + 100
    colour = f"rgb({strength},90,90)" if value > 1 else f"rgb(90,110,{strength})"
    return Text(f"{value:.2f}", colour)


def _draw(coefficients: Coefficients, png: Path, title: str) -> None:
    try:
        from scale_export.charts.maps import heat_map
        from scale_export.charts.style import save_png, to_svg

        layers = max(coefficients.layer_indices) + 1
        attn, mlp = coefficients.dense(layers, coefficients.num_heads)
        figure = heat_map(attn, mlp, title=title, scope=coefficients.scope)
        png.parent.mkdir(parents=True, exist_ok=True)
        if png.suffix.lower() == ".svg":
            png.write_text(to_svg(figure) + "\n", encoding="utf-8")
        else:
            save_png(figure, png)
    except ModuleNotFoundError as error:
        raise missing(error.name or "matplotlib", "drawing") from error
    except OSError as error:
        raise UserError(
            f"the heat map cannot be written to {png} ({error.strerror}): choose another path"
        ) from error
