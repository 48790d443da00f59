"""What a device's self-test saved, and what it proves of a package (``docs/runtime.md``).

Any host may write such a result: the JavaScript core on a phone, or this package's own self-test. It says what its
maker says; a package's expected logits, tolerance and answers are the package's own, never the result's.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError

from scale_export.core import limits
from scale_export.core.borders import first_problem
from scale_export.core.compare import LargestError, worst_of
from scale_export.core.errors import UserError
from scale_export.core.inside import check_regular
from scale_export.core.version import __version__
from scale_export.package.manifest import PackageFiles, package_seal

from .bench import time_decoder
from .package import Package
from .selftest import Golden, SelftestResult

KIND: Final = "scale-export-device-result"
SCHEMA: Final = 1
PROMPT_TOKENS, NEW_TOKENS = 32, 16
"""Of the round whose speed this package's own self-test saves."""
_MAX_BYTES: Final = 16 << 20

Word = Annotated[str, Field(min_length=1, max_length=500)]
Number = Annotated[float, Field(ge=0)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Subject(_Record):
    """The package that was tested: its name, and the hash that its manifest carries."""

    name: Word
    manifest_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Host(_Record):
    """What tested it: program, runtime, what the runtime computed on, and the device."""

    app: Word
    runtime: Word
    provider: Word
    threads: Annotated[int, Field(ge=1)] | None
    device: Word
    system: Word


class TestedCase(_Record):
    """One case; ``error`` and ``pixel_levels`` are None where they are no finite number or there is no picture."""

    index: Annotated[int, Field(ge=0)]
    name: str
    strength: float
    ids_identical: bool
    error: Number | None
    pixel_levels: Number | None
    gate_response: float | None
    answer: str | None
    answer_expected: str | None


class Speed(_Record):
    """Tokens per second; None where not measured."""

    prefill_tokens_per_second: Number | None
    decode_tokens_per_second: Number | None


class DeviceResult(_Record):
    """All that a device's self-test saves."""

    schema_: Literal[1] = Field(default=SCHEMA, alias="schema")
    kind: Literal["scale-export-device-result"] = KIND
    package: Subject
    host: Host
    hashes_checked: bool
    cases: Annotated[tuple[TestedCase, ...], Strict(False)]
    speed: Speed | None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLeg:
    """A device's self-test against the package's own golden cases.

    Attributes:
        error: infinite where a case has none.
        pixels: the same in 8-bit levels; None where no case has a picture, or the host compared none.
        gate: every response that was due; None stands for one that the result lacks.
        answers: how many are the recorded ones, of how many.
    """

    name: ClassVar = "device"

    host: Host
    error: LargestError
    pixels: LargestError | None
    ids_identical: bool
    gate: tuple[float | None, ...]
    answers: tuple[int, int]
    cases: int
    speed: Speed | None

    @property
    def gate_acts(self) -> bool | None:
        """Whether every response that was due is there and within its bounds; None where none was."""
        least, most = limits.GATE_RESPONSE
        return all(g is not None and least <= g <= most for g in self.gate) if self.gate else None

    @property
    def passed(self) -> bool:
        """Whether ids, logits, pixels and gate are as they must be; answers and speed are reported."""
        right = self.ids_identical and self.error.passed and self.gate_acts is not False
        return right and (self.pixels is None or self.pixels.passed)

    def figures(self) -> Mapping[str, float | None]:
        """What a requirement may name."""
        right, asked = self.answers
        return {
            "device.error": self.error.finite,
            "device.agreement": right / asked if asked else None,
            "device.decode": None if self.speed is None else self.speed.decode_tokens_per_second,
        }

    def to_json(self) -> dict[str, object]:
        """As a copy of ``parity.json`` has it."""
        return {
            **self.error.to_json(),
            "host": self.host.model_dump(),
            "cases": self.cases,
            "ids_identical": self.ids_identical,
            "pixel_levels": self.pixels and self.pixels.finite,
            "gate_responses": list(self.gate),
            "answers": {"as_recorded": self.answers[0], "of": self.answers[1]},
            "speed": self.speed and self.speed.model_dump(),
            "passed": self.passed,
        }


def read_result(path: Path) -> DeviceResult:
    """A result that a device saved.

    Raises:
        UserError: it can't be read, or is none.
    """
    check_regular(path)
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UserError(f"{path} is larger than {_MAX_BYTES:,} bytes, so it is no device's result")
        return DeviceResult.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"device result {path} cannot be read ({error.strerror}): check the path") from None
    except ValidationError as error:
        raise UserError(
            f"device result {path} is refused {first_problem(error)}: save it with the self-test again"
        ) from None


def device_leg(files: PackageFiles, package: Package, result: DeviceResult) -> DeviceLeg:
    """What a result proves of a package.

    Raises:
        UserError: it is another package's, its device checked no hashes, or it lacks cases.
    """
    if result.package.manifest_sha256 != package_seal(files):
        raise UserError(
            f"the device result is of another package ({result.package.name!r}, manifest "
            f"{result.package.manifest_sha256[:12]}…): run the self-test of this one on the device"
        )
    if not result.hashes_checked:
        raise UserError(
            "the device did not check the package's hashes, so its result may be of other files: let it check them"
        )
    golden = Golden.read(package)
    told = [(case.index, case.strength) for case in result.cases]
    due = [(index, float(case.strength)) for index, case in enumerate(golden.cases)]
    if sorted(told) != due or not due:
        raise UserError(
            f"the device result has {len(told)} cases, and the package's self-test {len(due)}, each once, by index "
            f"and strength: run the whole self-test on the device"
        )
    cases = sorted(result.cases, key=lambda case: case.index)
    recorded = [case.answer for case in golden.cases]
    asked = [
        (case.answer, answer) for case, answer in zip(cases, recorded, strict=True) if answer is not None
    ]
    levels = [case.pixel_levels for case in cases if case.pixel_levels is not None]
    return DeviceLeg(
        host=result.host,
        error=LargestError(
            metric="max |Δlogit| / max |logit| on the device against the logits recorded at export",
            value=worst_of([np.inf if case.error is None else case.error for case in cases]),
            limit=golden.tolerance,
        ),
        pixels=LargestError(
            metric="8-bit levels of a pixel", value=worst_of(levels), limit=limits.PIXEL_LEVELS
        )
        if levels
        else None,
        ids_identical=all(case.ids_identical for case in cases),
        gate=tuple(case.gate_response for case in cases if golden.tells_the_gate(case.index)),
        answers=(sum(found == answer for found, answer in asked), len(asked)),
        cases=len(cases),
        speed=result.speed,
    )


def own_result(package: Package, found: SelftestResult) -> DeviceResult:
    """This machine's self-test as a result, with its speed."""
    manifest = package.files.manifest
    ran = [name for name in manifest.execution_providers if name in package.engine.executed_by]
    return DeviceResult(
        package=Subject(name=manifest.name, manifest_sha256=package_seal(package.files)),
        host=Host(
            app=f"scale-export {__version__}",
            runtime=package.engine.executed_by,
            provider=(ran or [manifest.backend])[0].removesuffix("ExecutionProvider").lower(),
            threads=package.threads,
            device=platform.machine() or "unknown",
            system=platform.platform(),
        ),
        hashes_checked=True,
        cases=tuple(
            TestedCase(
                index=case.index,
                name=case.name,
                strength=case.strength,
                ids_identical=case.ids_identical,
                error=case.error,
                pixel_levels=case.pixel_levels,
                gate_response=case.gate_response,
                answer=case.answer,
                answer_expected=case.answer_expected,
            )
            for case in found.results
        ),
        speed=_speed(package),
    )


def _speed(package: Package) -> Speed | None:
    """Of one round after one that warms up; None where the context is too short for it."""
    if package.files.manifest.context_length < PROMPT_TOKENS + NEW_TOKENS:
        return None
    rounds = [time_decoder(package.generator, PROMPT_TOKENS, NEW_TOKENS) for _ in range(2)]
    prefill, decode = rounds[-1]
    return Speed(
        prefill_tokens_per_second=PROMPT_TOKENS / prefill, decode_tokens_per_second=NEW_TOKENS / decode
    )


def save_json(table: object, path: Path, package: Path) -> None:
    """Write a table beside a package, whole or not at all.

    Raises:
        UserError: the place is inside the package, which holds its own files only, or can't be written.
    """
    if path.resolve().is_relative_to(package.resolve()):
        raise UserError(
            f"{path} lies inside the package, which its hashes forbid: name a place outside of it"
        )
    text = json.dumps(table, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text + "\n", encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise UserError(f"{path} cannot be written ({error.strerror}): name another place") from None
