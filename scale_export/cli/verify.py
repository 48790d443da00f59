"""``scale-export verify`` and ``scale-export sign``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scale_export.core.errors import EXIT_OK, EXIT_PARITY_FAILED
from scale_export.core.progress import WorkLog

from .display import figure, quiet_libraries, say, show, show_parity, verdict

if TYPE_CHECKING:
    from scale_export.core.words import Scoring


@quiet_libraries()
def run_verify(
    *,
    package: Path,
    model: str | None,
    target: str | None,
    evaluation: str,
    eval_limit: int | None,
    scoring: Scoring,
    require: Sequence[str],
    signature: Path | None,
    public_key: Path | None,
    parity: str,
    calib: str | None,
    cache: Path | None,
    selftest_only: bool,
    as_json: bool,
) -> int:
    """``scale-export verify``."""
    from scale_export.pipeline.verify import verify_package

    found = verify_package(
        package,
        model=model,
        target=target,
        evaluation=evaluation,
        eval_limit=eval_limit,
        scoring=scoring,
        require=require,
        signature=signature,
        public_key=public_key,
        selftest_only=selftest_only,
        parity=parity,
        calib=calib,
        cache=cache,
        log=WorkLog(),
    )
    selftest, passed, signed = found.selftest, found.passed, found.signature
    if as_json:
        record: dict[str, Any] = {"passed": passed, "selftest": selftest, "parity": found.parity}
        record["requirements"] = [asdict(checked) for checked in found.requirements]
        record["signature"] = signed and {
            "path": str(signed.path),
            "public_key_sha256": signed.public_key_sha256,
        }
        print(json.dumps(record))
        return EXIT_OK if passed else EXIT_PARITY_FAILED
    if signed:
        say(f"Signature: {verdict(True)}, by the key with SHA-256 {signed.public_key_sha256}")
    if selftest is None:
        say("Hashes: right. Self-test: not checked (a checkpoint holds no graphs that this tool runs)")
    else:
        say(
            f"Self-test: {verdict(selftest['passed'])}, error {figure(selftest['value'])} of {selftest['limit']:g}"
        )
    if found.parity is None:
        say("Parity legs: not checked (they need the base model; leave out --selftest)")
    else:
        show_parity(found.parity)
    for checked in found.requirements:
        say(f"Required {checked.requirement}: {verdict(checked.passed)}, measured {figure(checked.value)}")
    return EXIT_OK if passed else EXIT_PARITY_FAILED


def run_sign(*, package: Path, key: Path, out: Path | None, force: bool, as_json: bool) -> int:
    """``scale-export sign``."""
    from scale_export.package.signing import sign_package

    signature = sign_package(package, key, out, force=force)
    return show({"signature": str(signature)}, [f"Signature: {signature}"], as_json)
