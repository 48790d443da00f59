"""Libraries that come with an extra, and how one says that it is missing."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

from .errors import UserError

EXTRA_OF: Mapping[str, str] = {
    "torch": "onnx",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "scipy": "onnx",
    "matplotlib": "onnx",
    "coremltools": "coreml",
    "optimum": "export",
    "coreai": "coreai",
    "coreai_torch": "coreai",
    "peft": "train",
    "pyarrow": "data",
    "model_signing": "sign",
    "onnxruntime_genai": "bench",
}
"""Library → the smallest extra that brings it for an export; a device runs ONNX Runtime with ``ort`` alone."""

EXPORTING = ("torch", "onnx", "onnxruntime", "onnxscript")


def missing(library: str, what: str = "this") -> UserError:
    """The sentence on a library that is not installed; one that no extra brings comes with all of them."""
    extra = EXTRA_OF.get(library.partition(".")[0], "export")
    return UserError(f"{what} needs {library}, which is not installed: pip install 'scale-export[{extra}]'")


def need(*libraries: str) -> None:
    """Refuse where a library is missing.

    Raises:
        UserError: the first that is not installed.
    """
    for library in libraries:
        if find_spec(library) is None:
            raise missing(library)


def need_export() -> None:
    """Refuse, before anything is read, where a library that every export needs is missing.

    Raises:
        UserError: one of them is not installed.
    """
    need(*EXPORTING)
