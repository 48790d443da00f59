"""Whether an answer is right: by the rule of the set's authors (``official``), or by ours (``strict``).

Official rules make figures comparable with published ones, faults included. Where the authors give no rule for
generated answers, or one that can't be applied to an answer alone, there is no official verdict (None).

A set of one's own (``jsonl``) names a rule for each question, and both scorings follow it: see ``OWN``.

Strict: an answer to an open question must be the true one, word for word. An answer to a question with options must
choose the right option and no other, by its letter ("B", "(b)", "B. left") or by naming it in whole words. Case,
punctuation and spacing don't matter, and number words are numbers.

Sources:
    1. SpatialEval, github.com/jiayuww/SpatialEval, evals/evaluation.py: an extraction per task and question, then
       containment of the reference. Its branches for three named models are left out.
    2. AdaptVis, github.com/shiqichen17/AdaptVis: containment of the reference, case-insensitive.
    3. COCO-QA, Ren, Kiros and Zemel, NeurIPS 2015: equality of one-word answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Decimal

from scale_export.core.defaults import SCORING
from scale_export.core.words import Scoring

from .question import Question

Judge = Callable[[str, str], bool]
"""(what was answered, the true answer) → whether it is right."""
Extract = Callable[[str], object]
"""What SpatialEval takes to be the answer in a text; None where it finds none."""

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_NUMBERS = {word: str(number) for number, word in enumerate(_WORDS)}
_OFFICIAL_NUMBERS = {"zero": 0, "no": 0, **{word: i for i, word in enumerate(_WORDS) if i}}
_DIRECTION = r"(?:southeast|northeast|northwest|southwest)"
_ANIMAL = r"\b(giraffe|cat|dog|elephant|rabbit)\b"
_NAME = r"([\w\s'’]+"
_RIGHT_TURNS = (
    r"\bthere are\s*(\d+)\s*right turns\b",
    r"\bthere is\s*(\d+)\s*right turn\b",
    r"\b(\d+)\s+right turn",
    r"answer is\s+(\d+)",
    r"answer is:\s*(\d+)",
    r"from S to E is\s+(\d+)",
    r"answer:\*\*\s*(\d+)\b",
)
_TURNS = (
    r"\bthere are\s*(\d+)\s*total turns\b",
    r"\bthere are\s*(\d+)\s*turns\b",
    r"there is\s*(\d+)\s*turn\b",
    r"there is\s*(\d+)\s*total turn\b",
    r"answer is\s+(\d+)",
    r"answer is:\s*(\d+)",
    r"from S to E is\s+(\d+)",
    r"\btotal of\s+(\d+)\s+turn",
    r"answer:\*\*\s*(\d+)\b",
    r"(\d+)\s+total turn",
    r"\b(\d+)\s+turn",
)


def is_right(given: str, question: Question, scoring: Scoring = SCORING) -> bool | None:
    """The verdict on an answer; None where official scoring has no rule for the question.

    What is right by one of the accepted answers is right.
    """
    true = (question.answer, *question.accepted)
    if scoring == "official" and question.rule not in OWN:
        judge = OFFICIAL[question.rule]
        return None if judge is None else any(judge(given, answer) for answer in true)
    return any(_strict(given, answer, question) for answer in true)


def normalise(text: str) -> str:
    """Stripped, lower case, single spaces."""
    return " ".join(text.lower().split())


def exact(given: str, answer: str) -> bool:
    """The same words (source 3, and the grid world's rule)."""
    return normalise(given) == normalise(answer)


def contains(given: str, answer: str) -> bool:
    """The answer stands somewhere in the text, inside another word too (source 2): "right" is in "bright"."""
    return answer.lower() in given.lower()


def _strict(given: str, answer: str, question: Question) -> bool:
    if judge := OWN.get(question.rule):
        return judge(given, answer)
    if not question.options:
        same = exact if question.rule == "exact" else same_words
        return same(given, answer)
    chosen = _chosen(given, question.options)
    return chosen is not None and same_words(chosen, answer)


def _chosen(given: str, options: tuple[str, ...]) -> str | None:
    """The one option that a text chooses; None where it chooses none, or more than one."""
    letter = re.match(r"\W*([A-Za-z])\s*(?:[.):]|$)", given)
    if letter is None:
        named = _named(given, options)
        return named.pop() if len(named) == 1 else None
    index = ord(letter[1].upper()) - ord("A")
    if index >= len(options):
        return None
    also = _named(given[letter.end() :], options)
    return options[index] if also <= {options[index]} else None


def _named(text: str, options: tuple[str, ...]) -> set[str]:
    """The options that stand in a text as whole words; one inside a longer one ("cat" in "cat café") doesn't."""
    found = set()
    rest = f" {_words(text)} "
    for option in sorted(options, key=len, reverse=True):
        words = f" {_words(option)} "
        if words.strip() and words in rest:
            found.add(option)
            rest = rest.replace(words, " | ")
    return found


def _words(text: str) -> str:
    """Lower-case words with number words as digits, punctuation dropped."""
    return " ".join(
        _NUMBERS.get(word, word) for word in re.findall(r"[\w']+", text.lower().replace("’", "'"))
    )


def same_words(given: str, answer: str) -> bool:
    """The same words; case, punctuation and spacing don't matter, and number words are numbers."""
    return _words(given) == _words(answer)


def holds_words(given: str, answer: str) -> bool:
    """The answer stands in the text as whole words: "left" in "on the left", not in "cleft"."""
    return f" {_words(answer)} " in f" {_words(given)} "


def numbers(text: str) -> set[Decimal]:
    """The numbers in a text, in digits (``-3``, ``2.5``, ``1,200``) or as words up to nine."""
    found = re.findall(r"(?<![\w.,])-?\d+(?:,\d{3})*(?:\.\d+)?(?!\w)", text)
    words = [_NUMBERS[word] for word in re.findall(r"[a-z]+", text.lower()) if word in _NUMBERS]
    return {Decimal(number.replace(",", "")) for number in (*found, *words)}


def same_number(given: str, answer: str) -> bool:
    """The text names one number, once or again, and it is the true one."""
    return len(named := numbers(given)) == 1 and named == numbers(answer)


def _containing(extract: Extract) -> Judge:
    """SpatialEval's verdict: the reference is contained in what was extracted, written as a text.

    So "none", where nothing was found, contains "no", and the number 11 contains "1".
    """
    return lambda given, answer: answer.lower() in str(extract(given)).lower()


def _found(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text, re.IGNORECASE)
    return match[1] if match else None


def direction(text: str) -> str | None:
    """Spatial map, question 0: the direction after an option's letter, else the first one named."""
    return _found(rf"\b[A-D]\.\s*({_DIRECTION})\b", text) or _found(rf"\b({_DIRECTION})\b", text)


def map_object(text: str) -> str | None:
    """Spatial map, question 1: the first of five readings that finds something.

    The third returns an option's letter instead of its text, which no reference is contained in.
    """
    place = rf"is\s+(?:located\s+|in\s+the\s+|located\s+to\s+the\s+){_DIRECTION}"
    if leading := _found(rf"^{_NAME}?)\s+{place}", text):
        return leading
    if option := re.search(r"\b[A-D]\.\s*(.*)", text):
        return re.sub(r"\*\*|\.", "", option[1]).split(" is", 1)[0].strip()
    if letter := re.search(r"\b([ABCD][.,]|[(][a-dA-D][)])\s*(?:.*?)(?=\sis\b|\.|,|<|$)", text):
        return letter[1].rstrip(".,?!<")
    if concluded := _found(rf"therefore, the object in the {_DIRECTION} of [\w\s'’]+ is {_NAME})", text):
        return concluded
    after_is = re.search(r"\bis\b\s+(.*?)(?=\.|,|<|$)", text)
    return after_is[1].strip().rstrip(".,?!<") if after_is else None


def map_count(text: str) -> int | None:
    """Spatial map, question 2: the number after an option's letter, else the first number."""
    option = re.search(r"\b[A-D]\.\s*(\d+)", text)
    return int(option[1]) if option else first_number(text)


def first_number(text: str) -> int | None:
    """Spatial grid, question 0: the first number, in digits or as a word up to nine; "no" is 0."""
    found = [
        (match.start(), number)
        for word, number in _OFFICIAL_NUMBERS.items()
        for match in re.finditer(rf"\b{word}\b", text, re.IGNORECASE)
    ]
    unlisted = re.sub(r"^\n\n\d+\.\s", "", text)
    found += [(match.start(), int(match[0])) for match in re.finditer(r"\d+", unlisted)]
    return min(found, key=lambda place: place[0])[1] if found else None


def animal(text: str) -> str | None:
    """Spatial grid, questions 1 and 2: the first of the five animals."""
    return _found(_ANIMAL, text)


def _turns(patterns: tuple[str, ...]) -> Extract:
    """Mazes, questions 0 and 1: number words from zero on wherever they stand, then phrases, then any digits."""

    def extract(text: str) -> int | None:
        for word, number in _OFFICIAL_NUMBERS.items():
            if re.search(rf"\b{word}\b", text, re.IGNORECASE):
                return number
        for pattern in (*patterns, r"(\d+)"):
            if found := _found(pattern, text):
                return int(found)
        return None

    return extract


def shortest_path(text: str) -> str | None:
    """Mazes, question 2: yes before no, wherever they stand."""
    if re.search(r"\byes\b|is the shortest path", text, re.IGNORECASE):
        return "Yes"
    return "No" if re.search(r"\b(?:no|not)\b", text, re.IGNORECASE) else None


OFFICIAL: Mapping[str, Judge | None] = {
    "exact": exact,
    "contains": contains,
    "spatialmap.0": _containing(direction),
    "spatialmap.1": _containing(map_object),
    "spatialmap.2": _containing(map_count),
    "mazenav.0": _containing(_turns(_RIGHT_TURNS)),
    "mazenav.1": _containing(_turns(_TURNS)),
    "mazenav.2": _containing(shortest_path),
    "spatialgrid.0": _containing(first_number),
    "spatialgrid.1": _containing(animal),
    "spatialgrid.2": _containing(animal),
    "spatialreal": None,
    "captions": None,
}
"""The rule of each name that a question may carry; None where there is none.

``spatialreal``: source 1 has no branch for it and judges whatever the question before it left behind.
``captions``: What'sUp compares how well captions match a picture, not what a model answers.
"""

OWN: Mapping[str, Judge | None] = {
    "words": same_words,
    "holds": holds_words,
    "number": same_number,
    "option": None,
}
"""The rules that a question set of one's own may name, which hold whatever the scoring.

``words``: the same words. ``holds``: the answer stands there in whole words. ``number``: the one number that is named
is the true one. ``option``: the right option is chosen and no other, as strict scoring asks of every question with
options.
"""
