"""A package measured anew: every leg, and what it states beside its graphs, against its base model."""

from __future__ import annotations

from scale_export.backends.interface import GraphBackend, load_backend
from scale_export.core.defaults import PARITY, SCORING
from scale_export.core.progress import WorkLog
from scale_export.core.words import ParityMode, Scoring
from scale_export.package.manifest import PackageFiles
from scale_export.plan.record import Plan
from scale_export.plan.weights import PlannedWeights

from .choose import measurement_of
from .contents import Contents, package_statements, side_statements
from .files import FileCheck, decided_statements
from .golden import golden_statements
from .report import ParityReport


def measure_again(
    files: PackageFiles,
    plan: Plan,
    weights: PlannedWeights,
    log: WorkLog,
    *,
    parity: ParityMode = PARITY,
    scoring: Scoring = SCORING,
    evaluation: str | None = None,
    limit: int | None = None,
) -> tuple[ParityReport, Contents]:
    """The report and the contents of a package whose ``plan`` and ``weights`` were made again.

    ``evaluation`` is the set of the task leg, of ``limit`` questions at most; None leaves the leg out.
    """
    statements = [*package_statements(files, plan), *decided_statements(files.manifest, plan)]
    backend = load_backend(plan.target.backend)
    side = backend.side_facts(files.directory) if isinstance(backend, GraphBackend) else None
    if side is not None:
        scalars = weights.folded.dense() if weights.folded.gate else None
        statements += side_statements(side, plan, scalars)
    with log.stage("files"):
        compared, unchecked = FileCheck(files=files, plan=plan, weights=weights, backend=backend).run()
    statements += compared
    calibration = files.manifest.calibration
    measurement = measurement_of(plan)(
        plan=plan,
        weights=weights,
        directory=files.directory,
        graphs={str(role): files.path(name) for role, name in files.manifest.graphs.items()},
        log=log,
        parity=parity,
        scoring=scoring,
        statistics_sha256=calibration.statistics_sha256 if calibration else None,
    )
    measured = measurement.run(evaluation, limit)
    if isinstance(backend, GraphBackend):
        statements += golden_statements(
            files.directory, measured.cases, measured.scale_answers, gated=plan.fold == "gate"
        )
    return measured.report, Contents(statements=tuple(statements), not_compared=tuple(unchecked))
