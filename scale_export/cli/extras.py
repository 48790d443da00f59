"""What commands need beside the core."""

from __future__ import annotations

from importlib.util import find_spec

from scale_export.core.errors import UserError

EXPORTING = ("torch", "onnx", "onnxruntime", "onnxscript")


def need_export() -> None:
    """Refuse, before anything is read, where the exporting libraries are missing.

    Raises:
        UserError: one of them is not installed.
    """
    for library in EXPORTING:
        if find_spec(library) is None:
            raise UserError(
                f"this command needs {library}, which is not installed: pip install 'scale-export[export]'"
            )
