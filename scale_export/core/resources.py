"""Where the project's own data lies: the target files and the question sets' descriptions."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def resource_dir(name: Literal["targets", "calib"]) -> Path:
    """The folder of the project's data of that name: inside the installed package, or in the source checkout.

    Raises:
        FileNotFoundError: neither exists, which is a broken installation and no mistake of the user.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_data" / name, package.parent / name):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"this installation lacks the project's data folder {name!r}")
