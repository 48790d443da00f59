"""Every file of a package, one by one: made anew and compared, measured by a leg, or named as not compared.

Rules:
1. What is neither graph nor weights is written once more from the base model and the coefficients, beside links to the
   package's own graphs, and must be the same: JSON as JSON, without what changes when a model is saved again, all else
   byte by byte.
2. The words' embeddings, of which prompts reach a few, are compared whole.
3. A file that no export of this package writes is wrong.
4. Another version of the tool or of a library may write a file otherwise: where one differs then, it is not compared.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

from scale_export.backends.interface import Backend, Emission, GraphBackend, load_backend, open_planned
from scale_export.core.limits import LOWERING_RELATIVE
from scale_export.core.records import Array, Float32, Json, NotChecked
from scale_export.core.version import __version__
from scale_export.device.engine import Engine
from scale_export.device.package import PROCESSOR_FILES
from scale_export.model.checkpoint import without_volatile
from scale_export.package.manifest import DecoderFacts, Manifest, PackageFiles
from scale_export.plan.bits import bits_plan, other_bits
from scale_export.plan.record import Plan
from scale_export.plan.weights import PlannedWeights

from .contents import CONFIGS, Statement
from .shipped_values import as_stored

RECORDS = ("parity.json", "report.html")
"""What was measured at export; it is measured anew."""
SELFTEST = "selftest/"
LIBRARIES = ("numpy", "safetensors", "torch", "transformers")
"""What shapes the files of every package; a backend adds its own."""
BITS_PLAN = "bits.toml"
ROWS = 1024
"""Words that are embedded at a time."""


@dataclass(frozen=True, kw_only=True)
class FileCheck:
    """A package's files against what they must be."""

    files: PackageFiles
    plan: Plan
    weights: PlannedWeights
    backend: Backend

    def run(self) -> tuple[list[Statement], list[NotChecked]]:
        """What was compared, and what was not."""
        unchecked = [
            NotChecked(name, "it records what was measured at export, and that was measured anew")
            for name in RECORDS
        ]
        statements = [*self._tables()]
        for statement in self._files():
            if statement.right or self._same_tools or statement.name in self._copied:
                statements.append(statement)
            else:
                reason = "it differs, and another version of scale-export or of a library wrote it"
                unchecked.append(NotChecked(statement.name, reason))
        return statements, unchecked

    @property
    def _same_tools(self) -> bool:
        recorded = self.files.manifest
        return recorded.tool.version == __version__ and dict(recorded.libraries) == library_versions(
            self.plan
        )

    @property
    def _copied(self) -> set[str]:
        """Files that are the base model's own, whoever copied them."""
        return {*PROCESSOR_FILES} if isinstance(self.backend, GraphBackend) else {*self.files.manifest.files}

    def _measured(self, name: str) -> bool:
        """Whether a leg, the self-test or the reader of coefficients looks into the file."""
        recorded = self.files.manifest
        if name == recorded.coefficients or name.startswith(SELFTEST):
            return True
        if not isinstance(self.backend, GraphBackend):
            return name in {file.name for file in self.plan.base.checkpoint.weight_files()}
        return any(
            name in (graph, f"{graph}.data") or name.startswith(f"{graph}/")
            for graph in recorded.graphs.values()
        )

    def _files(self) -> Iterator[Statement]:
        package = self.files.directory
        with tempfile.TemporaryDirectory(prefix="scale-export-files-") as scratch:
            fresh = Path(scratch)
            self._link_graphs(fresh)
            self.backend.remake(Emission.of(self.plan, self.weights.stored), fresh)
            made = {
                p.relative_to(fresh).as_posix()
                for p in fresh.rglob("*")
                if p.is_file() and not p.is_symlink()
            }
            for name in sorted(made - {*CONFIGS}):
                yield Statement(name=name, found=_digest(package / name), expected=_digest(fresh / name))
        for name in sorted(self.files.manifest.files.keys() - made - {*CONFIGS, *RECORDS}):
            if name == BITS_PLAN:
                yield self._bits(package / name)
            elif not self._measured(name):
                yield Statement(name=name, found=_digest(package / name), expected=None)

    def _link_graphs(self, fresh: Path) -> None:
        """What side files are made from; what is made anew itself is not linked, since it would be written through."""
        for graph in self.files.manifest.graphs.values():
            for name in (graph, f"{graph}.data"):
                if name.endswith((".onnx", ".onnx.data")) and self.files.manifest.holds(name):
                    (fresh / name).symlink_to(self.files.path(name).resolve())

    def _bits(self, path: Path) -> Statement:
        plan = self.plan
        found = other_bits(
            bits_plan(path), plan.base.spec, plan.target, plan.precision, tied=plan.base.stored_weights.tied
        )
        return Statement(name=BITS_PLAN, found=dict(found), expected=dict(plan.other_bits))

    def _tables(self) -> Iterator[Statement]:
        if not isinstance(self.backend, GraphBackend):
            return
        graphs = self.files.manifest.graphs
        if "tables" not in graphs:  # which are made anew
            beyond = self._words_beyond({role: self.files.path(name) for role, name in graphs.items()})
            yield Statement(name="wrong rows of the embedding of all words", found=beyond[:8], expected=[])

    def _words_beyond(self, graphs: Mapping[str, Path]) -> list[int]:
        """The tokens whose embedding in the package is not the one that it must hold."""
        plan, keeps = self.plan, self.plan.float_types[0]
        table = as_stored(self.weights.stored, keeps).weights.embedding().numpy()
        engine = open_planned(plan, graphs, strict=True)
        ids = np.delete(np.arange(len(table)), plan.base.image_token_id)
        beyond: list[int] = []
        for start in range(0, len(ids), ROWS):
            some = ids[start : start + ROWS]
            rows = _rows_beyond(_embedded(engine, some), table[some], LOWERING_RELATIVE[keeps])
            beyond += some[rows].tolist()
        return beyond


def decided_statements(recorded: Manifest, plan: Plan) -> Iterator[Statement]:
    """What else a manifest says that follows from base, coefficients and target."""
    backend, target = load_backend(plan.target.backend), plan.target
    decided: dict[str, Json] = {
        "generic": plan.base.family.generic,
        "backend": target.backend,
        "execution_providers": [*(target.execution_providers or ())],
        "fold": plan.fold,
        "precision": plan.precision,
        "block_size": (plan.quantized and plan.block_size) or None,
        "bits": dict(plan.other_bits),
        "decoder": decoder_facts(plan).model_dump(mode="json"),
        "coefficients": backend.coefficients,
    }
    found = recorded.model_dump(mode="json")
    for name, expected in decided.items():
        yield Statement(name=f"{name} of manifest.json", found=found[name], expected=expected)


def decoder_facts(plan: Plan) -> DecoderFacts:
    """What a manifest says of the decoder."""
    spec = plan.base.spec
    graphs = isinstance(load_backend(plan.target.backend), GraphBackend)
    computes, keeps = plan.float_types if graphs else (None, None)
    return DecoderFacts(
        num_layers=spec.num_layers,
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        hidden_size=spec.hidden_size,
        vocab_size=spec.vocab_size,
        activation_dtype=computes,
        kv_dtype=keeps,
    )


def library_versions(plan: Plan) -> dict[str, str]:
    """The version of every library that shaped the package, by distribution name."""
    names = {*LIBRARIES, *load_backend(plan.target.backend).libraries}
    return {name: version(name) for name in sorted(names)}


def _embedded(engine: Engine, ids: Array) -> Float32:
    """``[n, D]`` of ``ids [n]``, without pictures."""
    none = np.zeros((0, engine.hidden_size), np.float32)
    return np.asarray(engine.embed(ids[None].astype(np.int64), none)[0], np.float32)


def _rows_beyond(found: Float32, due: Float32, limit: float) -> list[int]:
    """The rows that are further off than ``limit`` of their own largest value; all of them where shapes differ."""
    if found.shape != due.shape:
        return [*range(len(due))]
    error = np.abs(found - due).max(axis=1)
    with np.errstate(invalid="ignore"):
        inside = error <= limit * np.abs(due).max(axis=1)
    rows: list[int] = np.flatnonzero(~inside).tolist()
    return rows


def _digest(path: Path) -> str | None:
    """SHA-256 of a file's bytes, or of its JSON without what changes when a model is saved again; None without file."""
    if not path.is_file():
        return None
    raw = path.read_bytes()
    if path.suffix == ".json":
        with suppress(ValueError, RecursionError):  # no JSON: its bytes count
            table = without_volatile(json.loads(raw))
            raw = json.dumps(table, sort_keys=True, ensure_ascii=False).encode()
    return hashlib.sha256(raw).hexdigest()
