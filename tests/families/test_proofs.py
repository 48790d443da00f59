"""Every family does what ``docs/families.md`` and ``scale-export families`` say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scale_export.families import family_names
from tests.conftest import FAMILIES
from tests.families.proof import COLUMNS, PAGE, TABLE, missed, page, proof

RECORDED = json.loads(TABLE.read_text(encoding="utf-8"))


def test_every_family_is_proved_and_the_page_is_the_table():
    assert sorted(RECORDED["worst"]) == sorted(FAMILIES) == family_names()
    assert PAGE.read_text(encoding="utf-8") == page(RECORDED)
    for family, errors in RECORDED["worst"].items():
        assert set(errors) == set(COLUMNS), family
        assert not missed(errors), family


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_column_is_within_its_limit(family: str, tmp_path: Path):
    errors = proof(family, tmp_path)
    assert not missed(errors), errors
