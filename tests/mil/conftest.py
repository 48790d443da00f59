"""Packages that tests of the interpreter share, converted once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers import mil_packages as packages
from tests.helpers.mil_packages import PREFILL


@pytest.fixture(scope="session")
def converted() -> dict[str, Any]:
    """Function → the decoder, converted for its number of tokens."""
    return {"prefill": packages.convert_decoder(PREFILL), "decode": packages.convert_decoder(1)}


@pytest.fixture(scope="session")
def decoder_package(converted: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The decoder with functions ``prefill`` and ``decode``, in float16."""
    return packages.save_functions(tmp_path_factory.mktemp("decoder"), converted, "prefill")


@pytest.fixture(scope="session")
def tokens() -> np.ndarray:
    """A sequence of embeddings: float32 ``[1, tokens, hidden]``, exact in float16."""
    values = np.random.default_rng(1).standard_normal((1, PREFILL + 4, packages.HIDDEN))
    return values.astype(np.float16).astype(np.float32)
