"""Export ScAle-adapted vision-language models to devices, and prove that the export answers as PyTorch did.

The names below load on first use, so that a device without torch opens packages and ``--help`` is instant. A name whose
library is missing can still be imported, and says what to install when it is called.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn

from scale_export.core.version import __version__

_HOMES = {
    "UserError": "core.errors",
    "Coefficients": "coefficients.file",
    "load_coefficients": "coefficients.file",
    "make_coefficients": "model.identity",
    "import_state_dict": "model.importing",
    "attach": "model.hooks",
    "FoldRequest": "pipeline.request",
    "fold": "pipeline.api",
    "verify": "pipeline.api",
    "open_package": "device.package",
}

__all__ = [  # noqa: RUF022
    "__version__",
    "UserError",
    "Coefficients",
    "load_coefficients",
    "make_coefficients",
    "import_state_dict",
    "attach",
    "fold",
    "verify",
    "open_package",
]

if TYPE_CHECKING:
    from scale_export.coefficients.file import Coefficients, load_coefficients
    from scale_export.core.errors import UserError
    from scale_export.device.package import open_package
    from scale_export.model.hooks import attach
    from scale_export.model.identity import make_coefficients
    from scale_export.model.importing import import_state_dict
    from scale_export.pipeline.api import fold, verify


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing.partition(".")[0] == __name__:
            raise
        return _without(missing, name)


def _without(library: str, name: str) -> Callable[..., NoReturn]:
    """What stands for a function whose library is missing, so that ``import *`` works on a device without torch."""

    def refuse(*args: object, **kwargs: object) -> NoReturn:
        from scale_export.core.extras import missing

        raise missing(library, name)

    return refuse
