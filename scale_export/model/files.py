"""The files of a base model that a package takes over: its own, never what a link reaches elsewhere."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from scale_export.core.errors import UserError
from scale_export.core.inside import is_reachable


def copy_model_file(directory: Path, name: str, destination: Path) -> None:
    """Copy a file of a model directory into ``destination``, under its name.

    Raises:
        UserError: it is no regular file, or a link out of the directory and of the hub's cache.
    """
    path = directory / name
    real = Path(os.path.realpath(path))  # a loop of links leads to itself, and is no file
    if not is_reachable(real, directory) and not _is_cached(real):
        raise UserError(
            f"{path} is a link out of the model's directory and of the hub's cache, and no package takes over what it "
            "leads to: put the file itself in its place"
        )
    if not real.is_file():
        raise UserError(f"{path} is not a regular file, and a package takes over nothing else: remove it")
    target = destination / name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(real, target)


def copy_model_folder(directory: Path, name: str, destination: Path) -> None:
    """Copy every file below a folder of a model directory; raises as ``copy_model_file``."""
    for place, _, files in os.walk(directory / name):
        for file in sorted(files):
            copy_model_file(directory, (Path(place) / file).relative_to(directory).as_posix(), destination)


def _is_cached(real: Path) -> bool:
    """Whether a resolved path is among the blobs of the hub's cache, which model directories may link to."""
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE).resolve()
    return real.is_relative_to(cache) and "blobs" in real.relative_to(cache).parts[1:2]
