"""Libraries that come with an extra."""

from __future__ import annotations

from importlib.util import find_spec

from .errors import UserError

EXPORTING = ("torch", "onnx", "onnxruntime", "onnxscript")


def need_export() -> None:
    """Refuse, before anything is read, where a library of the extra ``export`` is missing.

    Raises:
        UserError: one of them is not installed.
    """
    for library in EXPORTING:
        if find_spec(library) is None:
            raise UserError(
                f"this needs {library}, which is not installed: pip install 'scale-export[export]'"
            )
