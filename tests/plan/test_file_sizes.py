"""Files that a target can't take are refused while planning, and large packages are warned of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scale_export.core.errors import UserError
from scale_export.core.resources import resource_dir
from scale_export.pipeline import fold as FOLD
from scale_export.pipeline.contents import check_budget
from scale_export.plan import estimate as ESTIMATE
from scale_export.plan.estimate import check_package_size, estimates, matrix_bytes
from scale_export.plan.make import make_plan
from scale_export.plan.options import ExportOptions
from scale_export.plan.record import Plan
from scale_export.plan.targets import load_target
from tests.helpers.coefficients import random_coefficients, saved
from tests.helpers.folds import fold_on


def planned(base_of: Any, name: str) -> Plan:
    base = base_of("llava", "llama")
    return make_plan(random_coefficients(base), base, load_target(name), ExportOptions(calib="none"))


def limited(plan: Plan, **changes: int) -> Plan:
    return replace(plan, target=plan.target.model_copy(update=changes))


def test_a_file_larger_than_a_page_takes_is_refused_while_planning(base_of: Any) -> None:
    plan = planned(base_of, "web")
    check_package_size(plan, under_budget=False)
    decoder = matrix_bytes(plan) - matrix_bytes(plan, ("embedding",))
    check_package_size(limited(plan, max_file_bytes=10 * decoder), under_budget=False)
    with pytest.raises(UserError, match=r"the decoder's matrices would take .* smaller --precision"):
        check_package_size(limited(plan, max_file_bytes=decoder - 1), under_budget=False)


@pytest.fixture
def no_tower(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model's takes more than its decoder."""
    monkeypatch.setattr(ESTIMATE, "_tower_bytes", lambda plan: 0)


@pytest.mark.usefixtures("no_tower")
def test_under_a_budget_a_file_must_fit_at_4_bits(base_of: Any) -> None:
    """More than that would be found out only after a search."""
    plan = planned(base_of, "cpu")
    wide = limited(plan, max_file_bytes=matrix_bytes(plan) * 3 // 4)
    with pytest.raises(UserError, match="in one file"):
        check_package_size(wide, under_budget=False)
    check_package_size(wide, under_budget=True)
    with pytest.raises(UserError, match=r"the decoder's matrices would take .* in one file"):
        check_package_size(limited(plan, max_file_bytes=10_000), under_budget=True)


@pytest.mark.usefixtures("no_tower")
def test_what_a_search_chose_is_held_to_the_limit_before_anything_is_written(
    base_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_of("llava", "llama")
    plan = planned(base_of, "cpu")
    text = (
        (resource_dir("targets") / "cpu.toml")
        .read_text(encoding="utf-8")
        .replace('name = "cpu"', 'name = "page"')
    )
    (tmp_path / "page.toml").write_text(
        f"max_file_bytes = {matrix_bytes(plan) * 3 // 4}\n{text}", encoding="utf-8"
    )
    searched = []
    monkeypatch.setattr(FOLD, "within_budget", lambda plan, *rest: (searched.append(plan) or plan, None))
    asked = {
        "precision": "int8",
        "quantizer": "rtn",
        "calib": "gridworld",
        "calib_limit": 4,
        "evaluation": "none",
    }
    coefficients = saved(random_coefficients(base), tmp_path)
    with pytest.raises(UserError, match=r"the decoder's matrices would take .* target page takes files of"):
        fold_on(
            base, coefficients, str(tmp_path / "page.toml"), out=tmp_path / "out", budget="kl<=0.01", **asked
        )
    assert searched, "8 bits everywhere were its choice"
    assert {path.name for path in tmp_path.iterdir()} == {"page.toml", coefficients.name}


def test_every_file_that_was_written_is_held_to_the_limit(base_of: Any, tmp_path: Path) -> None:
    plan = planned(base_of, "web")
    (tmp_path / "selftest").mkdir()
    (tmp_path / "selftest/expected.safetensors").write_bytes(bytes(101))
    check_budget(limited(plan, max_file_bytes=101), tmp_path)
    with pytest.raises(
        UserError, match=r"selftest/expected.safetensors takes 101 bytes, and target web takes .* 100"
    ):
        check_budget(limited(plan, max_file_bytes=100), tmp_path)


def test_a_large_package_is_warned_of_and_a_small_one_is_not(base_of: Any) -> None:
    plan = planned(base_of, "web")
    assert not any("may not open" in sentence for sentence in estimates(plan))
    large = limited(plan, max_unwarned_bytes=1000)
    assert any("target web may not open it" in sentence for sentence in estimates(large))


def test_phones_and_pages_get_int4_with_a_gate(base_of: Any) -> None:
    for name, level in (("web", 0), ("android", 4)):
        plan = planned(base_of, name)
        assert (plan.precision, plan.fold, plan.block_size) == ("int4", "gate", 32)
        assert plan.target.accuracy_level == level
    assert load_target("web").max_file_bytes == load_target("web").max_unwarned_bytes == 10**9
