"""A package's own plan: its limits come from installed targets or the user, never from the package."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from scale_export.coefficients.file import load_coefficients
from scale_export.core.errors import UserError
from scale_export.core.resources import resource_dir
from scale_export.package.manifest import open_package_files
from scale_export.plan.again import plan_again
from scale_export.plan.options import Origins
from scale_export.plan.targets import load_target
from tests.helpers.packages import plant, reseal


def test_a_package_that_brings_its_own_limits_is_refused(package: Path, base_of: Any, tmp_path: Path) -> None:
    forged = tmp_path / "package"
    shutil.copytree(package, forged)
    text = (resource_dir("targets") / "cpu.toml").read_text(encoding="utf-8")
    plant(forged, "cpu.toml", text.encode())
    reseal(forged, lambda table: table.update(target=str(forged / "cpu.toml")))
    files = open_package_files(forged)
    coefficients = load_coefficients(files.path(files.manifest.coefficients))
    model = str(base_of("llava", "llama").directory)
    with pytest.raises(UserError, match="--target"):
        plan_again(files, coefficients, Origins(model=model))
    plan = plan_again(files, coefficients, Origins(model=model, target="cpu"))
    assert plan.target == load_target("cpu")
