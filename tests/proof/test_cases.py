"""Which prompts the parity legs run on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from scale_export.coefficients.file import load_coefficients
from scale_export.proof.cases import few_prompts, parity_prompts, parity_questions

TRAINED = load_coefficients(Path(__file__).parents[2] / "examples/small_vlm/spatial.safetensors")


@pytest.mark.parametrize(
    ("trained_on", "questions"),
    [
        ("atlas", "atlas"),
        ("gridworld:seed=7", "gridworld:seed=7"),
        ("spatialeval:/data/SpatialEval", "gridworld"),
        ("somebody's own", "gridworld"),
        (None, "gridworld"),
    ],
)
def test_prompts_are_of_what_the_scalars_were_trained_on_where_anyone_can_make_it(
    trained_on: str | None, questions: str
) -> None:
    training = {} if trained_on is None else {"data": trained_on}
    assert parity_questions(replace(TRAINED, training=training)) == questions


def test_every_set_gives_a_wide_picture_and_none() -> None:
    for questions in ("gridworld", "atlas"):
        prompts = parity_prompts(questions=questions)
        assert len(prompts) == len({prompt.name for prompt in prompts}) == 14
        wide, none = prompts[-2:]
        assert wide.images[0].width > wide.images[0].height and not none.images
        assert few_prompts(questions=questions)[0] == prompts[0]
    assert parity_prompts(questions="atlas")[0].text != parity_prompts()[0].text
