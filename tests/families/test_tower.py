"""Vision towers apart from any runtime: the names of their outputs cost no arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensor

from scale_export.families._towers.tower import example_inputs
from scale_export.model.base import BaseModel
from scale_export.plan.make import make_plan
from scale_export.plan.options import ExportOptions
from scale_export.plan.targets import load_target
from tests.helpers.coefficients import random_coefficients


@pytest.mark.parametrize("family", ["llava_next", "qwen2_5_vl", "qwen3_vl", "mistral3", "llava_pixtral"])
def test_outputs_are_named_on_shapes_alone(
    family: str, base_of: Callable[[str, str], BaseModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_of(family, "llama")
    options = ExportOptions(precision="float32")
    plan = make_plan(random_coefficients(base), base, load_target("cpu"), options)
    tower, example = base.vision, example_inputs(plan.tower_inputs, 2)
    with torch.no_grad():
        expected = list(tower.encode(**example))
    encode = type(tower).encode

    def watched(self: Any, **inputs: Any) -> Any:
        outputs = encode(self, **inputs)
        assert all(isinstance(value, FakeTensor) for value in (*inputs.values(), *outputs.values()))
        return outputs

    monkeypatch.setattr(type(tower), "encode", watched)
    assert tower.computed(example) == expected
