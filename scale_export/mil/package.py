"""A saved ``.mlpackage``: its manifest, and the model's protobuf message."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import ModuleType

from scale_export.compat.coremltools import message_definitions
from scale_export.core.errors import UserError
from scale_export.core.inside import file_inside

from .messages import ModelMessage

MANIFEST, DATA = "Manifest.json", "Data"
"""Of a package: the list of its items, and the folder that their paths are relative to."""
MAX_MANIFEST_BYTES, MAX_PROGRAM_BYTES = 1 << 20, 1 << 28
"""Of files that are read whole; weights lie in files of their own, which are mapped."""


def _model_pb2() -> ModuleType:
    """Core ML's messages.

    Raises:
        UserError: coremltools is not installed.
    """
    messages = message_definitions()
    if messages is None:
        raise UserError(
            "reading Core ML packages needs coremltools' message definitions: pip install 'scale-export[coreml]'"
        )
    return messages


def read_model(path: Path) -> tuple[ModelMessage, Path]:
    """The ``Model`` message of a package, and the folder that its weight files are relative to.

    Raises:
        UserError: ``path`` is no ``.mlpackage``, names a file outside itself, or is no ML program.
    """
    manifest = path / MANIFEST
    if not os.path.lexists(manifest):
        raise UserError(f"{path} is not an .mlpackage: it has no Manifest.json; give the package's folder")
    listed = file_inside(path, MANIFEST, str(path))
    _check_size(listed, MAX_MANIFEST_BYTES)
    try:
        listing = json.loads(listed.read_text(encoding="utf-8"))
        name = str(listing["itemInfoEntries"][listing["rootModelIdentifier"]]["path"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{manifest} names no model, so the package is damaged: export it again") from error
    file = file_inside(path / DATA, name, str(manifest))
    _check_size(file, MAX_PROGRAM_BYTES)
    messages = _model_pb2()
    model: ModelMessage = messages.Model()
    try:
        model.ParseFromString(file.read_bytes())
    except Exception as error:  # protobuf's DecodeError, without importing protobuf for its name
        raise UserError(
            f"{file} is not a Core ML model, so the package is damaged: export it again"
        ) from error
    kind = model.WhichOneof("Type")
    if kind != "mlProgram":
        raise UserError(
            f"{path} holds a {kind or 'model without a program'}, and only ML programs can be run:"
            " convert it with coremltools' convert_to='mlprogram'"
        )
    return model, file.parent


def _check_size(file: Path, limit: int) -> None:
    size = file.stat().st_size
    if size > limit:
        raise UserError(
            f"{file} has {size:,} bytes, and at most {limit:,} are read: keep weights in the weight file"
        )
