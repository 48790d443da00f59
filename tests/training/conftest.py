"""A random model, and questions that are ready to train on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoProcessor

from scale_export.questions import load_questions
from scale_export.questions.question import Question
from scale_export.training.examples import Example, encode_examples
from scale_export.training.options import silent
from tests.helpers.models import FAMILIES


@pytest.fixture(scope="session")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    directory: Path = tmp_path_factory.mktemp("model")
    return FAMILIES["llava"](directory=directory), AutoProcessor.from_pretrained(directory)


@pytest.fixture(scope="session")
def model(opened: tuple[Any, Any]) -> Any:
    return opened[0]


@pytest.fixture(scope="session")
def questions() -> list[Question]:
    return load_questions("gridworld", "calibration", limit=48)


@pytest.fixture(scope="session")
def examples(opened: tuple[Any, Any], questions: list[Question]) -> list[Example]:
    return encode_examples(*opened, questions, silent, "read")
