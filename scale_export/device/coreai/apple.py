"""The Core AI backend, experimental: ``.aimodel`` assets in the bundle layout of Apple's coreai-models.

Apple's packages exist for Linux x86-64 and Apple silicon only and are an extra of their own, so every import
of them goes through ``load_apple``.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from scale_export.compat.process import quiet
from scale_export.core.errors import UserError

PARITY = "graph parity, not device parity"
"""What running the assets by Apple's runtime for Linux proves: the program, not a device's arithmetic."""


def load_apple(module: str) -> ModuleType:
    """The named module of Apple's ``coreai`` packages.

    Raises:
        UserError: the extra is not installed.
    """
    try:
        with quiet():  # coreai-torch 0.4.3 takes a build like 2.13.0+cpu for one newer than 2.13.0
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(
            f"Core AI's packages are not installed ({error.name} is missing): pip install 'scale-export[coreai]', "
            f"on Linux x86-64 or a Mac with Apple silicon"
        ) from error
