"""A family's facts come from a manifest: what isn't of its kind is refused, and nothing is converted."""

from __future__ import annotations

import re

import pytest

from scale_export.core.errors import UserError
from scale_export.core.records import Json
from scale_export.families._runtime import integer, table


def test_values_come_back_as_they_are() -> None:
    facts: dict[str, Json] = {"merge": 2, "frequencies": [[1.0, 0.5], [1, 0.25]]}
    assert integer(facts, "merge") == 2
    assert table(facts, "frequencies") == [[1.0, 0.5], [1, 0.25]]
    assert type(table(facts, "frequencies")[1][0]) is int


@pytest.mark.parametrize("value", [None, True, 2.0, "2", [2]])
def test_what_is_no_whole_number_is_refused(value: Json) -> None:
    with pytest.raises(UserError, match=re.escape("no whole number 'merge'")):
        integer({"merge": value}, "merge")


@pytest.mark.parametrize("value", [None, 1.0, "11", [1.0], ["11"], [["1"]], [[None]]])
def test_what_is_no_table_of_numbers_is_refused(value: Json) -> None:
    with pytest.raises(UserError, match="'frequencies' among its extras: export it again"):
        table({"frequencies": value}, "frequencies")


def test_a_fact_that_is_missing_is_refused() -> None:
    with pytest.raises(UserError, match="'merge'"):
        integer({}, "merge")
    with pytest.raises(UserError, match="'frequencies'"):
        table({}, "frequencies")
