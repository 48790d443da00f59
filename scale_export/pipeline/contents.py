"""What lies in a package beside its graphs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from scale_export.backends.checkpoint import backend as checkpoint
from scale_export.coefficients.file import Coefficients
from scale_export.core.errors import UserError
from scale_export.core.version import __version__
from scale_export.device.package import PROCESSOR_FILES
from scale_export.model.base import BaseModel
from scale_export.package.manifest import CalibrationFacts, DecoderFacts, Manifest, Tool
from scale_export.plan.record import Plan
from scale_export.plan.weights import plan_statistics
from scale_export.proof.golden import write_selftest
from scale_export.proof.measure import Measured
from scale_export.questions import public_name
from scale_export.report.data import library_versions, report_data
from scale_export.report.page import render_report
from scale_export.search.budget import BitsChoice

COEFFICIENTS: Final = "scale.safetensors"
CHECKPOINT_COEFFICIENTS: Final = "scale/scale.safetensors"
"""In a folder, since loaders of checkpoints take every safetensors file beside the weights for weights."""


def coefficients_name(plan: Plan) -> str:
    """Where the package keeps its coefficients."""
    return CHECKPOINT_COEFFICIENTS if plan.precision == "stored" else COEFFICIENTS


def least_bytes(plan: Plan) -> int | None:
    """What the package will take at least, where that is known before it is written."""
    return checkpoint.weight_bytes(plan.base.checkpoint) if plan.precision == "stored" else None


def check_budget(plan: Plan, directory: Path) -> None:
    """Refuse a package larger than its target allows.

    Raises:
        UserError: the files together pass ``max_package_bytes``.
    """
    limit = plan.target.max_package_bytes
    size = sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
    if limit is not None and size > limit:
        raise UserError(
            f"the package takes {size:,} bytes, and target {plan.target.name} allows {limit:,}: "
            f"choose a smaller --precision or another target"
        )


def portable_coefficients(plan: Plan) -> Coefficients:
    """The coefficients with the base model under the name that makes sense inside a package."""
    identity = replace(plan.coefficients.base, base_model=plan.base.name)
    return replace(plan.coefficients, base=identity)


def copy_processor(base: BaseModel, directory: Path) -> None:
    """Copy the processor's files, pictures' size aside, so that the device prepares inputs as PyTorch's side does."""
    for name in PROCESSOR_FILES:
        if (base.directory / name).exists():
            shutil.copyfile(base.directory / name, directory / name)
    if base.picture_size is not None:
        _set_picture_size(directory, base.picture_size)


def _set_picture_size(directory: Path, size: Mapping[str, int]) -> None:
    """Write another ``size`` into an image processor's files, old ones and new."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = directory / name
        settings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        images = settings.get("image_processor") if name == "processor_config.json" else settings
        if images:
            for older in ("min_pixels", "max_pixels"):  # which would be read in its place
                images.pop(older, None)
            images["size"] = dict(size)
            path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_proof(
    plan: Plan, measured: Measured, directory: Path, name: str, choice: BitsChoice | None
) -> None:
    """Write the self-test (a checkpoint has none, since nothing here runs it), ``parity.json``, ``report.html``."""
    if plan.precision != "stored":
        answers = measured.scale_answers
        write_selftest(directory, measured.cases, measured.shipped_logits, answers, plan.precision)
    text = json.dumps(
        measured.report.to_json(), indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False
    )
    (directory / "parity.json").write_text(text + "\n", encoding="utf-8")
    page = render_report(report_data(plan, measured, directory, name, choice))
    (directory / "report.html").write_text(page, encoding="utf-8")


def _calibration_facts(plan: Plan) -> CalibrationFacts | None:
    statistics, chosen = plan_statistics(plan), plan.calibration
    if statistics is None or chosen is None:
        return None
    return CalibrationFacts(
        questions=public_name(chosen.questions),
        limit=chosen.limit,
        weighting=chosen.weighting,
        pictures=chosen.pictures,
        statistics_sha256=statistics.sha256,
    )


def manifest(plan: Plan, graphs: Mapping[str, str], name: str) -> Manifest:
    """The manifest but for its file table, which the package writer fills in."""
    base, spec = plan.base, plan.base.spec
    computes, keeps = (None, None) if plan.precision == "stored" else plan.float_types
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
        calibration=_calibration_facts(plan),
        bits=dict(plan.other_bits),
        context_length=plan.context_length,
        graphs=dict(graphs),
        decoder=DecoderFacts(
            num_layers=spec.num_layers,
            num_heads=spec.num_heads,
            num_kv_heads=spec.num_kv_heads,
            head_dim=spec.head_dim,
            hidden_size=spec.hidden_size,
            vocab_size=spec.vocab_size,
            activation_dtype=computes,
            kv_dtype=keeps,
        ),
        coefficients=coefficients_name(plan),
        image_token_id=base.family.image_token_id(base.config),
        extras=base.family.runtime_config(base.config),
    )
