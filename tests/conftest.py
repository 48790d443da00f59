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

import numpy as np
import pytest
import torch
from PIL import Image

from scale_export.backends.onnxruntime import trace
from scale_export.coefficients.file import Coefficients
from scale_export.core.records import Scope
from scale_export.device.onnxruntime import engine
from scale_export.model.base import BaseModel, open_base
from scale_export.model.identity import make_coefficients
from scale_export.pipeline import fold as pipeline
from scale_export.pipeline.api import fold
from tests.models import FAMILIES

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "SCALE_EXPORT_CACHE" not in os.environ:
    os.environ["SCALE_EXPORT_CACHE"] = tempfile.mkdtemp(prefix="scale-export-tests-")
    atexit.register(shutil.rmtree, os.environ["SCALE_EXPORT_CACHE"], ignore_errors=True)
torch.set_num_threads(1)
engine.DEFAULT_THREADS = 1  # test processes run side by side; spinning threads would only be in their way

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "own": ("own", {}),
    "llama": ("llama", {}),
    "llama-biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama3-rope": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "mistral-window": ("mistral", {"sliding_window": 6}),
    "ministral-mixed": (
        "ministral",
        {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"attention_bias": True}),
}
"""Text model variants that families are tested on: name → (text model type, config overrides).

``own`` is for families that are tied to one text model.
"""


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


def random_coefficients(
    base: BaseModel, scope: Scope = "last", layers: tuple[int, ...] | None = None
) -> Coefficients:
    """Scalars over (0.1, 1.9), no two alike, on the given layers or on all."""
    spec = base.spec
    chosen = tuple(range(spec.num_layers)) if layers is None else layers
    rng = np.random.default_rng(7)
    return make_coefficients(
        base.model,
        base.directory,
        scope=scope,
        head_scale=rng.uniform(0.1, 1.9, (len(chosen), spec.num_heads)).astype(np.float32),
        mlp_scale=rng.uniform(0.1, 1.9, len(chosen)).astype(np.float32),
        layer_indices=chosen,
    )


def picture(seed: int = 0, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A noisy picture without any symmetry; ``size`` is (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def saved(coefficients: Coefficients, directory: Path) -> Path:
    """The coefficients as a file."""
    path = directory / "spatial.safetensors"
    coefficients.save(path)
    return path


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
