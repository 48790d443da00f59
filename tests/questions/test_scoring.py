"""Both scorings on the answers that they are known to differ on."""

from __future__ import annotations

from typing import Any

import pytest

from scale_export.questions.question import Question
from scale_export.questions.scoring import OFFICIAL, is_right
from tests.helpers.questions import COUNT, MAP, OBJECT, PATH, PHOTO


def question(answer: str, rule: str, options: tuple[str, ...] = (), prompt: str = "?") -> Question:
    return Question(
        id="q", instance="i", prompt=prompt, answer=answer, kind="spatial", topic="t",
        rule=rule, options=options,
    )  # fmt: skip


def asked(text: str, answer: str, rule: str) -> Question:
    from scale_export.questions.sets.spatialeval import options_in

    return question(answer, rule, options_in(text), text)


FAULTS = [
    # given, question, official, strict
    (
        "I can't tell.",
        asked(PATH, "No", "mazenav.2"),
        True,
        False,
    ),  # nothing found is "none", which contains "no"
    ("Yes. No, it isn't.", asked(PATH, "No", "mazenav.2"), False, False),  # yes before no, wherever
    ("11", asked(COUNT, "1", "spatialmap.2"), True, False),  # 1 is in 11
    ("There are no doubt 4 of them", asked(COUNT, "4", "mazenav.1"), False, True),  # "no" is zero, and first
    ("none of them", asked(COUNT, "4", "spatialgrid.0"), False, False),
    ("two", asked(PHOTO, "two", "spatialreal"), None, True),  # the official code has no branch
    ("(A) Cat", asked(OBJECT, "Cat", "spatialmap.1"), False, True),  # found nothing: its reading is "None"
    ("A, Cat", asked(OBJECT, "Cat", "spatialmap.1"), False, True),  # its reading is the letter
    ("Cat Café", asked(OBJECT, "Cat", "spatialmap.1"), False, False),
    ("B. Cat Café", asked(OBJECT, "Cat", "spatialmap.1"), True, False),  # Cat is in Cat Café
    ("the bright side", question("Right", "contains", ("left", "right")), True, False),
    ("left or right", question("Right", "contains", ("left", "right")), True, False),
    ("B", question("Right", "contains", ("left", "right")), False, True),
    ("A", question("a dog", "captions", ("a dog", "a cat")), None, True),
]


@pytest.mark.parametrize(("given", "about", "official", "strict"), FAULTS, ids=[case[0] for case in FAULTS])
def test_where_the_official_rules_err_strict_does_not(
    given: str, about: Question, official: bool | None, strict: bool
):
    assert is_right(given, about, "official") is official
    assert is_right(given, about, "strict") is strict


AGREED = [
    ("Northeast", asked(MAP, "Northeast", "spatialmap.0")),
    ("A. Northeast.", asked(MAP, "Northeast", "spatialmap.0")),
    ("It is northeast of the other", asked(MAP, "Northeast", "spatialmap.0")),
    ("A. Cat is in the Northeast", asked(OBJECT, "Cat", "spatialmap.1")),
    ("Cat is located Northwest", asked(OBJECT, "Cat", "spatialmap.1")),
    ("The answer is Cat.", asked(OBJECT, "Cat", "spatialmap.1")),
    ("D. 4", asked(COUNT, "4", "spatialmap.2")),
    ("four shops", asked(COUNT, "4", "spatialmap.2")),
    ("There are 2 right turns", asked(COUNT, "2", "mazenav.0")),
    ("two", asked(COUNT, "2", "mazenav.0")),
    ("a total of 4 turns", asked(COUNT, "4", "mazenav.1")),
    ("B. No", asked(PATH, "No", "mazenav.2")),
    ("yes, it is", asked(PATH, "Yes", "mazenav.2")),
    ("It contains 11 blocks", asked(COUNT, "11", "spatialgrid.0")),
    ("a giraffe", question("giraffe", "spatialgrid.1", ("giraffe", "cat", "dog"))),
    ("To the LEFT.", question("Left", "contains", ("left", "right"))),
    (" top  left ", question("top left", "exact")),
]


@pytest.mark.parametrize(("given", "about"), AGREED, ids=[given for given, _ in AGREED])
def test_plain_right_answers_are_right_by_both(given: str, about: Question):
    assert is_right(given, about, "official") is True
    assert is_right(given, about, "strict") is True


@pytest.mark.parametrize(
    ("given", "about"),
    [
        ("Southwest", asked(MAP, "Northeast", "spatialmap.0")),
        ("", asked(MAP, "Northeast", "spatialmap.0")),
        ("B. 11", asked(COUNT, "4", "spatialmap.2")),
        ("7 turns", asked(COUNT, "4", "mazenav.1")),
        ("E. 7", asked(COUNT, "4", "mazenav.1")),
        ("dog", question("giraffe", "spatialgrid.2", ("giraffe", "dog"))),
        ("left", question("Right", "contains", ("left", "right"))),
        ("top left corner", question("top left", "exact")),
        ("", question("forest", "exact")),
    ],
)
def test_plain_wrong_answers_are_wrong_by_both(given: str, about: Question):
    assert is_right(given, about, "official") is False
    assert is_right(given, about, "strict") is False


def test_a_letter_with_another_options_words_chooses_nothing():
    options = ("left", "right")
    assert is_right("B. right", question("right", "contains", options))
    assert not is_right("B. left", question("right", "contains", options))
    assert not is_right("E. right", question("right", "contains", options))


def test_every_rule_takes_any_text():
    for rule, judge in OFFICIAL.items():
        for text in ("", "no", "A.", "\n\n1. two", "is", "(a)"):
            verdict: Any = is_right(text, question("x", rule), "official")
            assert verdict is (None if judge is None else verdict)
            assert is_right(text, question("x", rule), "strict") is False
