"""Use a package with ``scale_export.device`` alone: nothing of torch, no exporting library, no room above it.

``python alone.py PACKAGE PICTURE QUESTION LOGITS ROOM…`` imports every module of ``scale_export.device``, asks the
package a question, runs its self-test, saves the prompt's logits and prints the rest as JSON. ROOMs are blocked first.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

BLOCKED = ("torch", "onnx", "onnx_ir", "onnxscript", "scipy", "matplotlib", "optimum")
FOUND_BUT_NOT_IMPORTED = "coremltools"
"""The interpreter looks for its folder and reads message definitions there."""


class Refuse(MetaPathFinder, Loader):
    """Finds one library, and raises where it is imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == FOUND_BUT_NOT_IMPORTED else None
        if spec is not None:
            spec.loader = self
        return spec

    def exec_module(self, module: ModuleType) -> None:
        raise ModuleNotFoundError(f"import of {module.__name__} halted", name=module.__name__)


def block(rooms: Sequence[str]) -> None:
    """Importing any of this raises from here on."""
    for name in (*BLOCKED, *(f"scale_export.{room}" for room in rooms)):
        sys.modules[name] = None  # type: ignore[assignment]
    sys.meta_path.insert(0, Refuse())


def import_all(package: str) -> list[str]:
    """Import every module of a package; their names."""
    path = importlib.import_module(package).__path__
    names = [module.name for module in pkgutil.walk_packages(path, f"{package}.")]
    for name in names:
        importlib.import_module(name)
    return names


def main(package: str, picture: str, question: str, logits: str, *rooms: str) -> None:
    block(rooms)
    imported = import_all("scale_export.device")
    import numpy as np
    from PIL import Image

    from scale_export.device.package import open_package
    from scale_export.device.selftest import run_selftest

    opened = open_package(Path(package), threads=1)
    with Image.open(picture) as image:
        np.save(logits, opened.logits([image], question))
        answer = opened.answer([image], question, max_new_tokens=4)
    print(json.dumps({"imported": imported, "answer": answer, "selftest": run_selftest(opened).to_json()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
