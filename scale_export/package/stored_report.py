"""``parity.json`` of a package as it is read: what everyone looks at is there, whoever wrote the package.

What the file claims is its maker's word; ``verify`` measures it anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from scale_export.core.borders import first_problem
from scale_export.core.errors import UserError

from .manifest import PackageFiles

PARITY: Final = "parity.json"
_MAX_BYTES: Final = 16 << 20


class _Leg(BaseModel):
    """One leg; its own figures beside the verdict are kept."""

    model_config = ConfigDict(extra="allow", strict=True)

    passed: bool | None


class _Report(BaseModel):
    """What is read of every report; the other keys are kept."""

    model_config = ConfigDict(extra="allow", strict=True)

    passed: bool
    legs: dict[str, _Leg | None]
    executed_by: str
    not_checked: list[str]
    answer_agreement: dict[str, JsonValue] | None = None


def read_report(files: PackageFiles) -> dict[str, Any]:
    """The object in a package's ``parity.json``.

    Raises:
        UserError: the package has none, or it is not what an export writes.
    """
    path = files.path(PARITY)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES:,} bytes")
        report = _Report.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(f"{path} is refused {first_problem(error)}: export the package again") from None
    except ValueError as error:
        raise UserError(f"{path} is refused ({error}): export the package again") from None
    found: dict[str, Any] = report.model_dump(mode="json")
    return found


def failed_checks(report: Mapping[str, Any]) -> tuple[str, ...]:
    """The checks that failed by such a report."""
    checks = {**report["legs"], "answer agreement": report.get("answer_agreement")}
    return tuple(name for name, check in checks.items() if check and check.get("passed") is False)
