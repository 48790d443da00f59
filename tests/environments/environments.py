"""The environments of ``matrix.toml``, and what they ask pip for."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
MATRIX = Path(__file__).with_name("matrix.toml")
PYTHONS = ("3.11", "3.12", "3.13")


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """One table of ``matrix.toml``.

    Attributes:
        check: ``packages`` or ``proofs``.
        versions: ``lowest``, which pins each declared requirement to its lower bound, or ``newest``.
        pins: more that is asked for.
    """

    name: str
    check: str
    extras: tuple[str, ...]
    versions: str
    pins: tuple[str, ...] = ()


def environments() -> list[Environment]:
    """All of them, in the page's order."""
    tables = tomllib.loads(MATRIX.read_text(encoding="utf-8"))["environment"]
    return [Environment(**{k: tuple(v) if isinstance(v, list) else v for k, v in t.items()}) for t in tables]


def declared(extras: Sequence[str], python: str) -> Iterator[Requirement]:
    """What ``pyproject.toml`` asks for with these extras on a version of Python; extras of its own followed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    for line in [*project["dependencies"], *(line for extra in extras for line in optional[extra])]:
        requirement = Requirement(line)
        if requirement.name == project["name"]:
            yield from declared(sorted(requirement.extras), python)
        elif requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            yield requirement


def lowest(requirements: Sequence[Requirement]) -> list[str]:
    """Each at its lower bound, the highest of several for one name; exact pins as they are."""
    bounds: dict[str, Version] = {}
    for requirement in requirements:
        for bound in requirement.specifier:
            if bound.operator in (">=", "=="):
                bounds[requirement.name] = max(
                    Version(bound.version), bounds.get(requirement.name, Version("0"))
                )
    return [f"{name}=={version}" for name, version in sorted(bounds.items())]


def asked_for(environment: Environment, python: str) -> list[str]:
    """What pip is asked for beside the project's own files: each requirement, as a pin where the lowest are wanted."""
    requirements = list(declared(environment.extras, python))
    lines = (
        lowest(requirements) if environment.versions == "lowest" else sorted({str(r) for r in requirements})
    )
    return [*lines, *environment.pins]
