"""``scale-export doctor``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from scale_export.core.errors import EXIT_OK, EXIT_PARITY_FAILED, UserError
from scale_export.core.extras import need_export
from scale_export.core.progress import WorkLog
from scale_export.plan.options import Origins

from .display import console, figure, quiet_libraries, say, verdict
from .options import Json, command


@command(Origins)
@quiet_libraries()
def doctor(
    origins: Origins,
    *,
    package: Annotated[
        str, typer.Argument(metavar="PKG", help="A package, or the .failed directory of one; or a hub id.")
    ],
    placement: Annotated[
        bool,
        typer.Option(
            "--placement",
            help="Instead, run a prompt and list the nodes that ONNX Runtime left to the CPU; needs no base model.",
        ),
    ] = False,
    as_json: Json = False,
) -> int:
    """Find the first stage, layer and matrix at which an export departs from the PyTorch ScAle model.

    Example: scale-export doctor spatial-cpu.failed
    """
    if placement:
        return _placement(package, as_json=as_json)
    need_export()
    from scale_export.doctor.examine import examine
    from scale_export.package.hub import package_directory

    found = examine(package_directory(package), origins, WorkLog())
    if as_json:
        print(json.dumps({"fault": found.fault and asdict(found.fault), **asdict(found)}))
        return EXIT_PARITY_FAILED if found.fault else EXIT_OK
    table = Table("stage", "verdict", "error", "limit", "found", box=None)
    for stage in found.stages:
        limit = "" if stage.limit is None else f"{stage.limit:g}"
        table.add_row(stage.name, verdict(stage.passed), figure(stage.value), limit, stage.words)
    console.print(table)
    for stage in found.stages:
        for matrix, error in (stage.table or {}).items():
            say(f"  {stage.name}: {matrix} {error:.2g}")
    for words in found.known_faults:
        say(f"Known fault that fits: {words}")
    if found.fault is None:
        say("No fault was found on this machine.")
        return EXIT_OK
    say(f"First fault: {found.fault.name}, at {found.fault.place or 'no single place'}: {found.fault.words}.")
    return EXIT_PARITY_FAILED


def _placement(package: str, *, as_json: bool) -> int:
    """What ran where, of a package on this machine."""
    from scale_export.device.package import open_package

    try:
        from scale_export.device.onnxruntime.placement import placement
    except ModuleNotFoundError as error:
        raise UserError("ONNX Runtime is not installed: pip install 'scale-export[ort]'") from error
    found = placement(open_package(package))
    if as_json:
        table = {
            "passed": found.passed,
            "wanted": found.wanted,
            "counts": found.counts,
            "fallen": found.fallen,
        }
        print(json.dumps(table))
        return EXIT_OK if found.passed else EXIT_PARITY_FAILED
    for role, counts in found.counts.items():
        say(f"{role}: {', '.join(f'{count} nodes on {provider}' for provider, count in counts.items())}")
    for role, nodes in found.fallen.items():
        for node in nodes:
            say(f"  on the CPU: {role}, {node}")
    say(
        "Every node ran where the package wants it."
        if found.passed
        else f"{found.wanted[0]} left nodes to the CPU."
    )
    return EXIT_OK if found.passed else EXIT_PARITY_FAILED
