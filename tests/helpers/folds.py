"""Folds in a test's own process, which share the base model that they are given."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

from scale_export.core.progress import WorkLog
from scale_export.model.base import BaseModel, open_base
from scale_export.pipeline.fold import Outcome, fold_package
from scale_export.pipeline.request import FoldRequest


def fold_on(base: BaseModel, coeffs: Path, target: str, **asked: Any) -> Outcome:
    """``scale_export.fold`` on an opened base: what it has loaded and what was traced of it is used again."""
    request = FoldRequest(coeffs, target, **{"model": str(base.directory)} | asked)
    return fold_package(request, WorkLog(quiet=True), base)


@functools.cache
def opened_once(directory: Path) -> BaseModel:
    """The base model in a directory that no test changes, opened once in this process, its weights held."""
    return replace(open_base(str(directory)), held=True)
