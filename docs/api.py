"""``make docs``: pages of the public modules, built from their docstrings by pdoc; needs no network."""

from __future__ import annotations

import argparse
import importlib
import warnings
from pathlib import Path

import pdoc
import pdoc.render

import scale_export

PUBLIC_MODULES = (
    "scale_export",
    "scale_export.coefficients.file",
    "scale_export.core.errors",
    "scale_export.device.package",
    "scale_export.mil",
    "scale_export.model.hooks",
    "scale_export.model.identity",
    "scale_export.model.importing",
    "scale_export.pipeline.api",
    "scale_export.pipeline.fold",
    "scale_export.pipeline.request",
    "scale_export.pipeline.verify",
    "scale_export.training.run",
)
"""The modules whose ``__all__`` is the public API. ``docs/python.md`` names each; the rest may change."""


def build(out: Path) -> None:
    """Write one HTML page a module, an index and a search index to ``out``.

    Raises:
        UserWarning: pdoc found a name, a type or a docstring that it can't show.
    """
    for name in PUBLIC_MODULES:
        importlib.import_module(name)
    for name in scale_export.__all__:  # they load on first use, and pdoc looks at what is there
        vars(scale_export).setdefault(name, getattr(scale_export, name))
    pdoc.render.configure(docformat="google", footer_text=f"scale-export {scale_export.__version__}")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module=r"pdoc\.")
        # A type that names itself can only be read where it is defined; elsewhere its name is shown.
        warnings.filterwarnings("ignore", r"Error parsing type annotation .*\bJson\b", module=r"pdoc\.")
        pdoc.pdoc(*PUBLIC_MODULES, output_directory=out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/docs"), help="folder for the pages")
    build(parser.parse_args().out)
