"""From another trainer's scalars to a coefficient file."""

from __future__ import annotations

from pathlib import Path

from scale_export.coefficients.file import Coefficients, check_suffix, save_coefficients
from scale_export.core.errors import UserError
from scale_export.core.progress import WorkLog
from scale_export.core.records import Json
from scale_export.model.base import open_base
from scale_export.model.importing import import_state_dict
from scale_export.questions import load_questions

from .request import ImportRequest


def import_scalars(request: ImportRequest, log: WorkLog) -> Coefficients:
    """Read a state dict, hold it to its base model and write the coefficient file; what was written.

    Raises:
        UserError: an output that exists or has another suffix, a question set or a base model that can't be opened,
            or as ``import_state_dict``.
    """
    state, out = Path(request.state), Path(request.out)
    check_suffix(out)
    if out.exists() and not request.force:
        raise UserError(f"{out} exists already: choose another --out, or give --force to replace it")
    training: dict[str, Json] = {"imported_from": state.name}
    if request.data is not None:
        load_questions(request.data, "calibration", limit=1)
        training["data"] = request.data
    base = open_base(request.model)
    with log.stage("hash the base model's weights"):
        made = import_state_dict(
            state,
            head_pattern=request.head_pattern,
            mlp_pattern=request.mlp_pattern,
            scope=request.scope,
            model=base.streamed_model,
            base_dir=base.directory,
            values=request.values,
            bound=request.bound,
            training=training,
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    save_coefficients(made, out)
    return made
