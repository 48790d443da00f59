"""Where ONNX Runtime ran each node of a package, by its own record of a real run.

A provider that lacks a kernel leaves the node to the CPU without a word: results are right, and a device is slow.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import onnxruntime as ort

from scale_export.core.errors import UserError
from scale_export.device.generation import Generator
from scale_export.device.package import Package
from scale_export.device.selftest import FOLDER, Golden
from scale_export.families import load_family

from .engine import CPU, OnnxEngine

ENDING: Final = "_kernel_time"
"""Of the name of an event that is a node's run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What ran where.

    Attributes:
        wanted: the package's providers, in order of preference.
        ran: role of a graph → node, with its operator, → the provider that ran it.
    """

    wanted: tuple[str, ...]
    ran: Mapping[str, Mapping[str, str]]

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Role → provider → nodes."""
        return {
            role: {provider: [*nodes.values()].count(provider) for provider in sorted({*nodes.values()})}
            for role, nodes in self.ran.items()
        }

    @property
    def fallen(self) -> dict[str, list[str]]:
        """Role → the nodes that landed on the CPU; none of a package that is for the CPU."""
        if self.wanted[0] == CPU:
            return {}
        found = {role: [n for n, ran in nodes.items() if ran == CPU] for role, nodes in self.ran.items()}
        return {role: nodes for role, nodes in found.items() if nodes}

    @property
    def passed(self) -> bool:
        """Whether nodes ran in every graph, and none fell."""
        return bool(self.ran) and all(self.ran.values()) and not self.fallen


def nodes_of(profile: Path) -> dict[str, str]:
    """Every node of a record, as ``name (operator)``, and the provider that ran it.

    A node that ran on several providers, which one session can't do, would count where it ran last.

    Raises:
        UserError: the file is no record of ONNX Runtime's.
    """
    try:
        events = json.loads(profile.read_text(encoding="utf-8"))
        if not isinstance(events, list):
            raise TypeError("a record is a list of events")
        runs = [event for event in events if event.get("cat") == "Node" and event["name"].endswith(ENDING)]
        return {
            f"{event['name'].removesuffix(ENDING)} ({event['args']['op_name']})": event["args"]["provider"]
            for event in runs
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"{profile.name} is no profile that this version of scale-export reads: update ONNX Runtime"
        ) from None


def placement(package: Package) -> Placement:
    """Run the first case of the package's self-test and look where its nodes ran.

    Raises:
        UserError: it is no package for ONNX Runtime, or this machine's build lacks one of its providers.
    """
    manifest = package.files.manifest
    if manifest.backend != "onnxruntime":
        raise UserError(
            f"--placement looks at what ONNX Runtime ran, and this is a package for {manifest.backend}: leave it out"
        )
    missing = [p for p in manifest.execution_providers if p not in ort.get_available_providers()]
    if missing:
        raise UserError(
            f"placement can't be seen here, since ONNX Runtime on this machine has no {', '.join(missing)}: run this "
            f"on the device that target {manifest.target} is for"
        )
    with tempfile.TemporaryDirectory(prefix="scale-export-placement-") as scratch:
        engine = OnnxEngine(
            {role: package.files.path(name) for role, name in manifest.graphs.items()},
            context_length=manifest.context_length,
            providers=manifest.execution_providers,
            threads=package.threads,
            profile=Path(scratch),
        )
        _run(package, engine)
        ran = {role: nodes_of(path) for role, path in engine.profiles().items()}
    return Placement(wanted=tuple(manifest.execution_providers), ran=ran)


def _run(package: Package, engine: OnnxEngine) -> None:
    """A prompt with pictures, where the self-test has one, and its tokens."""
    manifest, cases = package.files.manifest, Golden.read(package).cases
    case = next((case for case in cases if case.images), cases[0])
    images = [package.files.path(f"{FOLDER}/{name}") for name in case.images]
    generator = Generator(
        engine=engine,
        family=load_family(manifest.model_type, generic=manifest.generic),
        fold=manifest.fold,
        image_token_id=manifest.image_token_id,
        runtime_config=manifest.extras,
    )
    generator.forced_logits(package.prepare(images, case.prompt), case.tokens)
