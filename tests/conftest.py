"""Random two-layer models of every family, built once per run."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from scale_export.device.onnxruntime import engine
from scale_export.model.base import BaseModel
from tests.helpers.coefficients import random_coefficients, saved
from tests.helpers.folds import fold_on, opened_once
from tests.helpers.models import FAMILIES
from tests.helpers.variants import VARIANTS

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "SCALE_EXPORT_CACHE" not in os.environ:
    os.environ["SCALE_EXPORT_CACHE"] = tempfile.mkdtemp(prefix="scale-export-tests-")
    atexit.register(shutil.rmtree, os.environ["SCALE_EXPORT_CACHE"], ignore_errors=True)
torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as of a shell's background jobs
    signal.signal(signal.SIGINT, signal.default_int_handler)
engine.DEFAULT_THREADS = 1  # test processes run side by side; spinning threads would only be in their way


@pytest.fixture(scope="session")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], BaseModel]:
    """``base_of(family, variant)``: an opened random model, the same one for the whole run."""

    @functools.cache
    def build(family: str, variant: str) -> BaseModel:
        directory = tmp_path_factory.mktemp(f"{family}-{variant}")
        text, overrides = VARIANTS[variant]
        FAMILIES[family](text, directory=directory, **overrides)
        return opened_once(directory)

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
    assert fold_on(base, coefficient_file, "cpu", out=out, precision="float32", evaluation="none").passed
    return out


@pytest.fixture(scope="session")
def phone_package(
    base_of: Callable[[str, str], BaseModel], coefficient_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An int8 package of the random LLaVA for an iPhone; read only."""
    out = tmp_path_factory.mktemp("packages") / "phone"
    base = base_of("llava", "llama")
    outcome = fold_on(base, coefficient_file, "iphone", out=out, evaluation="none")
    assert outcome.passed, outcome.parity
    return out
