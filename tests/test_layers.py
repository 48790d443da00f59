"""Imports point down the layers only, and what a device needs never reaches for torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "scale_export"

LAYERS: list[set[str]] = [
    {"errors", "records", "resources", "tolerances", "blocks", "statistics", "metrics", "collector"},
    {
        "checkpoint",
        "coefficient_rules",
        "targets",
        "datasets",
        "scoring",
        "draw",
        "report_numbers",
        "progress",
        "mil",
        "options",
    },
    {"sites", "coefficient_file", "coefficients", "weights", "package", "prompts"},
    {"adapter", "answers", "families", "folding", "decoder", "vision", "staging", "signing"},
    {"streaming", "quantize", "training"},
    {"base", "bits_plan"},
    {"plan", "fold_choice", "picture_choice", "quantizer_choice", "train"},
    {"backends"},
    {"generation"},
    {"speed", "runtime", "reference", "calibration", "budget"},
    {
        "departure",
        "lockstep",
        "plan_weights",
        "code_evidence",
        "parity",
        "report",
        "report_legs",
        "requirements",
    },
    {"task", "selftest", "bench"},
    {"measure", "measure_checkpoint", "measure_static"},
    {"report_data", "timing"},
    {"pipeline", "verification"},
    {"doctor"},
    {"api"},
    {"display"},
    {"commands"},
    {"cli"},
    {"__main__", "_optimum", "__init__"},
]
"""From the bottom up. A module imports from lower layers, from its own package, or from its own layer."""


def units() -> dict[str, list[Path]]:
    """Module or subpackage → its files."""
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        found.setdefault(path.relative_to(PACKAGE).parts[0].removesuffix(".py"), []).append(path)
    return found


def imported(path: Path) -> set[str]:
    """The units of the package that a file imports at module level, type checking aside."""
    depth = len(path.relative_to(PACKAGE).parts)
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            if node.level < depth and depth > 1:
                continue
            names |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return names


def test_every_module_has_a_layer():
    assert set().union(*LAYERS) == set(units())


@pytest.mark.parametrize("unit", sorted(units()))
def test_imports_point_down(unit: str):
    rank = {name: level for level, names in enumerate(LAYERS) for name in names}
    for path in units()[unit]:
        for other in imported(path) - {unit, "__version__"}:
            assert rank[other] <= rank[unit], f"{path.name} imports {other} from above"


def test_a_device_needs_no_torch_and_no_exporting_library():
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnx_ir', 'onnxscript', 'scipy', 'matplotlib', 'optimum'):\n"
        "    sys.modules[name] = None\n"
        "import scale_export.device.package, scale_export.device.selftest, scale_export.device.bench\n"
        "import scale_export.pipeline.verify\n"
        "import scale_export.cli.app, scale_export.plan.targets, scale_export.device.onnxruntime.engine\n"
        "import scale_export.device.coreml.engine\n"
        "import importlib, pkgutil, scale_export.cli\n"
        "for module in pkgutil.iter_modules(scale_export.cli.__path__, 'scale_export.cli.'):\n"
        "    importlib.import_module(module.name)\n"
        "from scale_export.families import family_names, load_family\n"
        "[load_family(name) for name in family_names()]\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
