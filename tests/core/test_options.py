"""Records of options: their fields, what they refuse, and functions that take them."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from scale_export.core.errors import UserError
from scale_export.core.options import Option, check, option_fields, takes


@dataclass(frozen=True, kw_only=True)
class Colours:
    paint: Annotated[Literal["red", "blue"] | Literal["auto"], Option(help="What colour.")] = "auto"
    coats: Annotated[int | None, Option(help="How many.", least=1)] = None
    drying_hours: Annotated[int, Option(help="How long.", least=0, on_command_line=False)] = 2

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True)
class Job(Colours):
    wall: Annotated[str, Option(help="Which wall.", flags=("--wall", "-w"))]


@takes(Job)
def painted(job: Job) -> str:
    """Paint a wall.

    Returns:
        what was done.
    """
    return f"{job.wall} {job.paint} {job.coats}"


def test_a_record_tells_its_fields_its_bases_among_them():
    fields = {field.name: field for field in option_fields(Job)}
    assert list(fields) == ["wall", "paint", "coats", "drying_hours"]
    assert fields["paint"].words == ("red", "blue", "auto") and fields["wall"].words == ()
    assert fields["wall"].flags == ("--wall", "-w") and fields["drying_hours"].flags == ("--drying-hours",)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"paint": "bleu"}, "--paint 'bleu' is unknown (did you mean 'blue'?): known are red, blue, auto"),
        ({"coats": 0}, "--coats 0 is refused: give 1 or more"),
        ({"drying_hours": -1}, "drying_hours -1 is refused: give 0 or more"),
    ],
)
def test_words_and_numbers_that_make_no_sense_are_refused(given: dict[str, object], sentence: str):
    with pytest.raises(UserError) as refusal:
        Job("north", **given)  # type: ignore[arg-type]
    assert str(refusal.value) == sentence


def test_a_function_takes_the_fields_and_shows_them():
    assert painted("north", paint="red") == painted(wall="north", paint="red") == "north red None"
    assert str(inspect.signature(painted)).startswith("(wall: str, *, paint: ")
    assert inspect.signature(painted).parameters["drying_hours"].default == 2
    text = inspect.getdoc(painted) or ""
    assert text.index("wall: Which wall.") < text.index("coats: How many.") < text.index("Returns:")
    with pytest.raises(TypeError, match="piant"):
        painted("north", piant="red")  # type: ignore[call-arg]


def test_a_field_without_a_meaning_is_a_fault():
    @dataclass(frozen=True)
    class Bare:
        size: int = 1

    with pytest.raises(ValueError, match="unpack"):
        option_fields(Bare)
