"""``scale-export verify``."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from scale_export.core.errors import EXIT_OK, EXIT_PARITY_FAILED
from scale_export.core.extras import need_export
from scale_export.core.progress import WorkLog
from scale_export.pipeline.request import VerifyRequest

from .display import figure, quiet_libraries, say, show_parity, show_requirements, verdict
from .options import Json, command

if TYPE_CHECKING:
    from scale_export.pipeline.verify import Verification


@command(VerifyRequest)
@quiet_libraries()
def verify(request: VerifyRequest, *, as_json: Json = False) -> int:
    """Check a package: hashes, golden cases, and every parity leg against the base model again.

    Example: scale-export verify spatial-cpu --model path/to/base
    """
    if not request.selftest_only:
        need_export()
    from scale_export.pipeline.verify import verify_package

    found = verify_package(request, WorkLog())
    if as_json:
        print(json.dumps(_record(found)))
    else:
        _show(found)
    return EXIT_OK if found.passed else EXIT_PARITY_FAILED


def _record(found: Verification) -> dict[str, object]:
    signed = found.signature
    return {
        "passed": found.passed,
        "selftest": found.selftest,
        "device": found.device and found.device.to_json(),
        "contents": found.contents and found.contents.to_json(),
        "parity": found.parity,
        "requirements": [asdict(checked) for checked in found.requirements],
        "signature": signed and {"path": str(signed.path), "public_key_sha256": signed.public_key_sha256},
    }


def _show(found: Verification) -> None:
    if found.signature:
        say("Signature: ", verdict(True), f", by the key with SHA-256 {found.signature.public_key_sha256}")
    if found.golden is None:
        say("Hashes: right. Self-test: not checked (a checkpoint holds no graphs that this tool runs)")
    else:
        error = found.golden.error
        said = f"error {figure(error.finite)} of {error.limit:g}"
        if not found.golden.cases:
            said = "since the package holds no golden case to compare with: export it again"
        say("Self-test: ", verdict(found.golden.passed), f", {said}")
    if found.device is not None:
        leg, host = found.device, found.device.host
        on = f"{host.device}, {host.system}: {host.runtime}, {host.provider}"
        say(
            "Device: ",
            verdict(leg.passed),
            f", error {figure(leg.error.finite)} of {leg.error.limit:g} ({on})",
        )
        say(f"Device: {leg.answers[0]} of {leg.answers[1]} answers as recorded")
        if leg.gate_acts is False:
            say("Device: the scalars do not act as at export: its runtime drops the gate or changes it")
    if found.contents is not None:
        count = len(found.contents.statements)
        say("Contents: ", verdict(found.contents.passed), f", {count} statements compared")
        for statement in found.contents.wrong:
            say(f"Contents: {statement}")
        for missing in found.contents.not_compared:
            say(f"Not compared: {missing}")
    if found.report is None:
        say("Parity legs: not checked (they need the base model; leave out --selftest)")
    else:
        show_parity(found.report)
    show_requirements(found.requirements)
