"""What running a package here can't prove."""

from __future__ import annotations

from scale_export.backends.interface import load_backend
from scale_export.core.records import NotChecked
from scale_export.plan.record import Plan


def unproved(plan: Plan) -> list[NotChecked]:
    """What running the package here can't prove of the device, and of programs that aren't ours."""
    found = [*load_backend(plan.target.backend).not_checked(plan.target)]
    if rules := plan.base.rules.acting:
        reason = (
            f"{', '.join(rules)} of the model's generation config act on answers here; a program that is not "
            f"scale-export must follow them by itself, and none was seen to"
        )
        found.append(NotChecked("rules of generation elsewhere", reason))
    return found
