"""``scale-export sign``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .display import show
from .options import Json


def sign(
    package: Annotated[Path, typer.Argument(metavar="PKG", help="A package directory that fold wrote.")],
    key: Annotated[Path, typer.Option(help="An elliptic-curve private key, a PEM file.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Signature file; by default PKG.sig, beside the package."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing signature.")] = False,
    as_json: Json = False,
) -> int:
    """Sign a package in the format of OpenSSF Model Signing, with a key of your own, offline.

    Example: scale-export sign spatial-cpu --key signer.pem
    """
    from scale_export.package.signing import sign_package

    signature = sign_package(package, key, out, force=force)
    return show({"signature": str(signature)}, [f"Signature: {signature}"], as_json)
