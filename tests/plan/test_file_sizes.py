"""Files that a target can't take are refused while planning, and large packages are warned of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from scale_export.core.errors import UserError
from scale_export.plan.estimate import check_package_size, estimates, matrix_bytes
from scale_export.plan.make import make_plan
from scale_export.plan.options import ExportOptions
from scale_export.plan.record import Plan
from scale_export.plan.targets import load_target
from tests.helpers.coefficients import random_coefficients


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
