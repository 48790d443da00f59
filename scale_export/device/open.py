"""The engine of a package's backend."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from scale_export.core.errors import UserError

from .engine import Engine

NOT_RUN = (
    "this package is a folded Hugging Face checkpoint, which this tool does not run: give its directory to llama.cpp's "
    "converter, MLX, vLLM or transformers"
)


def check_threads(threads: int | None) -> None:
    """Refuse a number of threads that no machine of this size can use; ten thousand keep one busy for ever.

    Raises:
        UserError: none, or more than four for each core, and more than 16.
    """
    cores = os.cpu_count() or 1
    most = max(16, 4 * cores)
    if threads is not None and not 1 <= threads <= most:
        raise UserError(f"--threads {threads} is refused on this machine of {cores} cores: give 1 to {most}")


def open_engine(
    backend: str,
    graphs: Mapping[str, Path],
    *,
    context_length: int,
    providers: Sequence[str],
    threads: int | None,
) -> Engine:
    """The engine of that backend over a package's graphs (role → file).

    Raises:
        UserError: the backend's runtime is not installed, or refuses a graph.
    """
    if backend == "onnxruntime":
        try:
            from scale_export.device.onnxruntime.engine import OnnxEngine
        except ModuleNotFoundError as error:
            raise UserError("ONNX Runtime is not installed: pip install 'scale-export[ort]'") from error
        return OnnxEngine(graphs, context_length=context_length, providers=providers, threads=threads)
    if backend == "coreml":
        from scale_export.device.coreml.engine import CoreMLEngine

        return CoreMLEngine(graphs)
    if backend == "coreai":
        from scale_export.device.coreai.engine import CoreAIEngine

        return CoreAIEngine(graphs, context_length=context_length)
    if backend == "checkpoint":
        raise UserError(NOT_RUN)
    raise UserError(f"this version of the tool has no runtime for {backend!r} packages: update it")
