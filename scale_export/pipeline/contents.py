"""What lies in a package beside its graphs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from scale_export.backends.interface import GraphBackend, load_backend
from scale_export.coefficients.file import Coefficients
from scale_export.core.errors import UserError
from scale_export.core.version import __version__
from scale_export.model.base import BaseModel
from scale_export.package.manifest import CalibrationFacts, Manifest, PictureFacts, Tool
from scale_export.plan.record import Plan
from scale_export.proof.files import decoder_facts, library_versions
from scale_export.proof.golden import write_selftest
from scale_export.proof.measure import Measured
from scale_export.quantize.calibration import StoredStatistics
from scale_export.quantize.sources import parse_source
from scale_export.report.data import report_data
from scale_export.report.page import render_report
from scale_export.search.budget import BitsChoice


def check_budget(plan: Plan, directory: Path) -> None:
    """Refuse a package larger than its target allows, or one of its files.

    Raises:
        UserError: the files together pass ``max_package_bytes``, or one of them ``max_file_bytes``.
    """
    sizes = {file: file.stat().st_size for file in sorted(directory.rglob("*")) if file.is_file()}
    most = plan.target.max_file_bytes
    for file, taken in sizes.items():
        if most is not None and taken > most:
            raise UserError(
                f"{file.relative_to(directory).as_posix()} takes {taken:,} bytes, and target {plan.target.name} takes "
                f"files of {most:,} at most: choose a smaller --precision, a smaller model or another target"
            )
    limit, size = plan.target.max_package_bytes, sum(sizes.values())
    if limit is not None and size > limit:
        raise UserError(
            f"the package takes {size:,} bytes, and target {plan.target.name} allows {limit:,}: "
            f"choose a smaller --precision or another target"
        )


def portable_coefficients(plan: Plan) -> Coefficients:
    """The coefficients with the base model under the name that makes sense inside a package."""
    identity = replace(plan.coefficients.base, base_model=plan.base.name)
    return replace(plan.coefficients, base=identity)


def write_proof(
    plan: Plan, measured: Measured, directory: Path, name: str, choice: BitsChoice | None
) -> None:
    """Write the self-test (a checkpoint has none, since nothing here runs it), ``parity.json``, ``report.html``."""
    if isinstance(load_backend(plan.target.backend), GraphBackend):
        answers = measured.scale_answers
        write_selftest(
            directory,
            measured.cases,
            measured.shipped_logits,
            measured.weaker_logits,
            answers,
            plan.precision,
        )
    text = json.dumps(
        measured.report.to_json(), indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False
    )
    (directory / "parity.json").write_text(text + "\n", encoding="utf-8")
    page = render_report(report_data(plan, measured, directory, name, choice))
    (directory / "report.html").write_text(page, encoding="utf-8")


def _calibration_facts(plan: Plan, statistics: StoredStatistics | None) -> CalibrationFacts | None:
    chosen = plan.calibration
    if statistics is None or chosen is None:
        return None
    return CalibrationFacts(
        questions=parse_source(chosen.source).public,
        limit=chosen.limit,
        weighting=chosen.weighting,
        pictures=chosen.pictures,
        statistics_sha256=statistics.sha256,
    )


def _picture_facts(base: BaseModel) -> PictureFacts | None:
    if base.picture_size is None:
        return None
    own = dict(base.own_processor.image_processor.size)
    return PictureFacts(base_size=own, size=dict(base.picture_size))


def manifest(
    plan: Plan, statistics: StoredStatistics | None, graphs: Mapping[str, str], name: str
) -> Manifest:
    """The manifest but for its file table, which the package writer fills in."""
    base, backend = plan.base, load_backend(plan.target.backend)
    return Manifest(
        tool=Tool(name="scale-export", version=__version__),
        libraries=library_versions(plan),
        name=name,
        base_model=base.name,
        model_type=base.family.model_type,
        generic=base.family.generic,
        target=plan.target.name,
        backend=plan.target.backend,
        execution_providers=plan.target.execution_providers or (),
        scope=plan.coefficients.scope,
        fold=plan.fold,
        precision=plan.precision,
        block_size=(plan.quantized and plan.block_size) or None,
        quantizer=plan.quantizer,
        calibration=_calibration_facts(plan, statistics),
        bits=dict(plan.other_bits),
        context_length=plan.context_length,
        graphs=dict(graphs),
        decoder=decoder_facts(plan),
        coefficients=backend.coefficients,
        image_token_id=base.image_token_id,
        pictures=_picture_facts(base),
        extras=base.family.runtime_config(base.config),
    )
