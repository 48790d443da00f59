"""Random two-layer models of every family, built once per run."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from scale_export.backends.onnxruntime import trace
from scale_export.device.onnxruntime import engine
from scale_export.model.base import BaseModel, open_base
from scale_export.pipeline import fold as pipeline
from scale_export.pipeline.api import fold
from tests.helpers.coefficients import random_coefficients, saved
from tests.helpers.models import FAMILIES
from tests.helpers.variants import VARIANTS

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "SCALE_EXPORT_CACHE" not in os.environ:
    os.environ["SCALE_EXPORT_CACHE"] = tempfile.mkdtemp(prefix="scale-export-tests-")
    atexit.register(shutil.rmtree, os.environ["SCALE_EXPORT_CACHE"], ignore_errors=True)
torch.set_num_threads(1)
engine.DEFAULT_THREADS = 1  # test processes run side by side; spinning threads would only be in their way


@pytest.fixture(autouse=True)
def shared(request: pytest.FixtureRequest) -> Iterator[None]:
    """Folds of one base model share what they open and trace, read only, but for a test that patches anything."""
    if "monkeypatch" not in request.fixturenames or request.node.get_closest_marker("patches_no_trace"):
        with pytest.MonkeyPatch.context() as opened_once:
            opened_once.setattr(pipeline, "open_base", _open_once)
            yield
        return
    kept = dict(trace._TRACES)
    trace.forget_traces()
    yield
    trace.forget_traces()
    trace._TRACES.update(kept)


def _open_once(name: str, *, relative_to: Path | None = None) -> BaseModel:
    """``open_base``, which gives the same value for a directory whose files are as they were."""
    found = next((d for d in ((relative_to or Path()) / name, Path(name)) if d.is_dir()), None)
    if found is None:
        return open_base(name, relative_to=relative_to)
    files = tuple((f.name, (s := f.stat()).st_mtime_ns, s.st_size) for f in sorted(found.iterdir()))
    return _opened(found.resolve(), files)


@functools.lru_cache(maxsize=8)
def _opened(directory: Path, files: tuple[Any, ...]) -> BaseModel:
    return open_base(str(directory))


@pytest.fixture(scope="session")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], BaseModel]:
    """``base_of(family, variant)``: an opened random model, the same one for the whole run."""

    @functools.cache
    def build(family: str, variant: str) -> BaseModel:
        directory = tmp_path_factory.mktemp(f"{family}-{variant}")
        text, overrides = VARIANTS[variant]
        FAMILIES[family](text, directory=directory, **overrides)
        return open_base(str(directory))

    return build


@pytest.fixture(scope="session")
def coefficient_file(
    base_of: Callable[[str, str], BaseModel], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A last-token file for the random LLaVA, beside nothing of its base."""
    return saved(random_coefficients(base_of("llava", "llama")), tmp_path_factory.mktemp("coefficients"))


@pytest.fixture(scope="session")
def package(
    base_of: Callable[[str, str], BaseModel], coefficient_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A float32 package of the random LLaVA, gated; read only."""
    out = tmp_path_factory.mktemp("packages") / "gated"
    base = base_of("llava", "llama")
    outcome = fold(
        coefficient_file, "cpu", out=out, model=str(base.directory), precision="float32", evaluation="none"
    )
    assert outcome.passed
    return out


@pytest.fixture(scope="session")
def phone_package(
    base_of: Callable[[str, str], BaseModel], coefficient_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An int8 package of the random LLaVA for an iPhone; read only."""
    out = tmp_path_factory.mktemp("packages") / "phone"
    base = base_of("llava", "llama")
    outcome = fold(coefficient_file, "iphone", out=out, model=str(base.directory), evaluation="none")
    assert outcome.passed, outcome.parity
    return out
