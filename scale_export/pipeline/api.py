"""The commands as Python functions (``docs/python.md``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from scale_export.core.progress import WorkLog
from scale_export.core.words import Scoring
from scale_export.plan.options import ExportOptions

from .fold import FoldRequest, Outcome, fold_package
from .verify import Verification, verify_package

__all__ = ["fold", "verify"]


def default_out(coeffs: Path, target: str) -> Path:
    """Where a package goes that was given no place: ``<coefficients>-<target>`` in the current directory."""
    return Path(f"{coeffs.stem}-{Path(target).stem}")


def fold(
    coeffs: str | Path,
    target: str,
    *,
    out: str | Path | None = None,
    model: str | None = None,
    precision: str | None = None,
    fold: str = "auto",
    block_size: int | None = None,
    quantizer: str = "auto",
    calib: str = "auto",
    calib_limit: int = 128,
    calib_weighting: str = "uniform",
    calib_pictures: bool = True,
    bits: Mapping[str, int] | str | None = None,
    budget: str | None = None,
    cache: str | Path | None = None,
    evaluation: str = "auto",
    eval_limit: int | None = None,
    scoring: Scoring = "strict",
    parity: str = "auto",
    force: bool = False,
    quiet: bool = True,
) -> Outcome:
    """``scale-export fold``: fold scalars, quantize, export, verify, write the package.

    Returns:
        where the package lies, whether its parity legs passed (else it lies in ``<out>.failed``), and the
        parity object.

    Raises:
        UserError: whatever the command line would refuse with exit code 2.
    """
    coeffs = Path(coeffs)
    request = FoldRequest(
        coeffs=coeffs,
        target=target,
        out=default_out(coeffs, target) if out is None else Path(out),
        model=model,
        options=ExportOptions(
            precision=precision,
            fold=fold,
            block_size=block_size,
            quantizer=quantizer,
            calib=calib,
            calib_limit=calib_limit,
            calib_weighting=calib_weighting,
            calib_pictures=calib_pictures,
            bits=bits or {},
            cache=None if cache is None else Path(cache),
        ),
        evaluation=evaluation,
        eval_limit=eval_limit,
        scoring=scoring,
        parity=parity,
        budget=budget,
        force=force,
    )
    return fold_package(request, WorkLog(quiet=quiet))


def verify(
    package: str | Path,
    *,
    model: str | None = None,
    target: str | None = None,
    evaluation: str = "auto",
    eval_limit: int | None = None,
    scoring: Scoring = "strict",
    require: Sequence[str] = (),
    signature: str | Path | None = None,
    public_key: str | Path | None = None,
    parity: str = "auto",
    selftest_only: bool = False,
    calib: str | None = None,
    cache: str | Path | None = None,
    quiet: bool = True,
) -> Verification:
    """``scale-export verify``: check a package's hashes, its self-test and, with the base model, every parity leg.

    ``require`` holds requirements such as ``"int4.retention>=0.9"`` (``requirements``). With a ``public_key`` the
    package's signature is checked first (``signing``).
    """
    return verify_package(
        Path(package),
        model=model,
        target=target,
        evaluation=evaluation,
        eval_limit=eval_limit,
        scoring=scoring,
        require=require,
        signature=None if signature is None else Path(signature),
        public_key=None if public_key is None else Path(public_key),
        selftest_only=selftest_only,
        parity=parity,
        calib=calib,
        cache=None if cache is None else Path(cache),
        log=WorkLog(quiet=quiet),
    )
