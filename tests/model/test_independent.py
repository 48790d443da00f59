"""The streamed reference reads weights without our reader: a bug of ours moves one side of the proof alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from scale_export import UserError
from scale_export.core.progress import WorkLog
from scale_export.model import checkpoint as reader
from scale_export.model.base import BaseModel, open_base
from scale_export.model.checkpoint import Checkpoint, StoredTensor, read_header
from scale_export.model.independent import IndependentReader
from scale_export.model.weights import CheckpointWeights
from scale_export.plan.make import make_plan
from scale_export.plan.options import ExportOptions
from scale_export.plan.targets import load_target
from scale_export.plan.weights import PlannedWeights
from scale_export.proof.legs import fold_leg
from scale_export.proof.measure import Measurement
from tests.helpers.coefficients import random_coefficients, saved
from tests.helpers.folds import fold_on
from tests.helpers.models import FAMILIES

SQUARE = {"hidden_size": 128}
"""Queries as wide as the model, so that a transposed matrix fits."""

Q, K, V = (f"model.language_model.layers.1.self_attn.{name}_proj.weight" for name in "qkv")


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_parameter_is_the_loaded_models(base_of: Any, family: str):
    base = base_of(family, "llama")
    read = IndependentReader(base.directory, base.skeleton)
    state = dict(base.model.named_parameters(remove_duplicate=False))
    assert state
    for name, weight in state.items():
        assert torch.equal(read(name), weight), name


@pytest.fixture
def fold_error(tmp_path: Path) -> Callable[..., float]:
    """The fold leg of a random LLaVA in two bfloat16 shards, streamed."""

    def measure(break_it: Callable[[], None] = lambda: None, *, tied: bool = False) -> float:
        directory = tmp_path / "model"
        FAMILIES["llava"](directory=directory, dtype=torch.bfloat16, tie_word_embeddings=tied, **SQUARE)
        in_two_shards(directory)
        coefficients = random_coefficients(open_base(str(directory)))
        break_it()
        base = open_base(str(directory))
        plan = make_plan(
            coefficients, base, load_target("cpu"), ExportOptions(precision="float32", fold="gate")
        )
        unused: Any = None
        measurement = Measurement(
            plan=plan,
            weights=PlannedWeights.of(plan, None),
            directory=unused,
            graphs={},
            log=WorkLog(quiet=True),
            parity="streamed",
        )
        cases = measurement.reference_paths()
        return fold_leg(cases, measurement._portable(measurement.weights.folded, cases)).error.value

    return measure


def in_two_shards(directory: Path) -> None:
    """Every second tensor in the one, the rest in the other; the first also holds an older ``Q``, not indexed."""
    weights, q = load_file(directory / "model.safetensors"), Checkpoint(directory).resolve(Q)
    (directory / "model.safetensors").unlink()
    files = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    index = {name: files[number % 2] for number, name in enumerate(sorted(weights))} | {q: files[1]}
    shards = [{n: weights[n] for n, file in index.items() if file == shard} for shard in files]
    shards[0][q] = weights[q].flip(0).contiguous()
    for file, shard in zip(files, shards, strict=True):
        save_file(shard, directory / file, {"format": "pt"})
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = Checkpoint.resolve
    monkeypatch.setattr(Checkpoint, "resolve", lambda self, name: resolve(self, {K: V, V: K}.get(name, name)))


def cast_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a type of fewer bits."""
    tensor = Checkpoint.tensor
    monkeypatch.setattr(Checkpoint, "tensor", lambda self, name: tensor(self, name).to(torch.float8_e4m3fn))


def bits_taken_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 read as float16."""
    tensor = Checkpoint.tensor

    def wrong(self: Checkpoint, name: str) -> Any:
        value = tensor(self, name)
        return value.view(torch.float16) if name == Q else value

    monkeypatch.setattr(Checkpoint, "tensor", wrong)


def from_a_wrong_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    """The older copy, which lies in the other shard."""
    read = reader._read_shards

    def wrong(index: Path) -> Mapping[str, StoredTensor]:
        older = read_header(index.parent / "model-00001-of-00002.safetensors")
        found = read(index)
        (q,) = (name for name in older if found[name] != older[name])
        return {**found, q: older[q]}

    monkeypatch.setattr(reader, "_read_shards", wrong)


def from_another_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Checkpoint.resolve
    other = Q.replace("layers.1", "layers.0")
    monkeypatch.setattr(Checkpoint, "resolve", lambda self, name: found(self, other if name == Q else name))


def transposed(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = CheckpointWeights.matrix
    monkeypatch.setattr(
        CheckpointWeights,
        "matrix",
        lambda self, name: matrix(self, name).T if name.endswith("q_proj") else matrix(self, name),
    )


def tensors_transposed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same where files are read, which the streamed model's own reader shares."""
    tensor = Checkpoint.tensor
    monkeypatch.setattr(
        Checkpoint, "tensor", lambda self, n: tensor(self, n).T if n == Q else tensor(self, n)
    )


def tied_by_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Checkpoint.resolve
    table = "model.language_model.embed_tokens.weight"
    monkeypatch.setattr(
        Checkpoint, "resolve", lambda self, name: found(self, table if name == "lm_head.weight" else name)
    )


def rows_shifted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedding's slice begins a row late."""
    tensor = Checkpoint.tensor

    def wrong(self: Checkpoint, name: str) -> Any:
        value = tensor(self, name)
        return value.roll(1, 0) if "embed_tokens" in name else value

    monkeypatch.setattr(Checkpoint, "tensor", wrong)


def vision_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the tower, which our reader reads for the export."""
    found = Checkpoint.resolve

    def wrong(self: Checkpoint, name: str) -> str:
        if "vision_tower" in name and ".k_proj." in name:
            name = name.replace(".k_proj.", ".v_proj.")
        return found(self, name)

    monkeypatch.setattr(Checkpoint, "resolve", wrong)


BUGS = (
    swapped,
    cast_wrongly,
    bits_taken_for_others,
    from_a_wrong_shard,
    from_another_layer,
    transposed,
    tensors_transposed,
    tied_by_mistake,
    rows_shifted,
    vision_swapped,
)


@pytest.mark.parametrize("tied", [False, True])
def test_our_reader_as_it_is_passes(fold_error: Callable[..., float], tied: bool):
    assert fold_error(tied=tied) <= 1e-5


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_bug_of_our_reader_fails_streamed_parity(
    fold_error: Callable[..., float], monkeypatch: pytest.MonkeyPatch, bug: Any
):
    """Sabotage. What lies in ``Checkpoint`` passed while the reference was read by it too."""
    assert not fold_error(lambda: bug(monkeypatch)) <= 1e-3


def test_a_lost_tie_fails(fold_error: Callable[..., float], monkeypatch: pytest.MonkeyPatch):
    """The output's matrix is another one where the config ties it to the table."""

    def lose() -> None:
        tensor = Checkpoint.tensor

        def wrong(self: Checkpoint, name: str) -> Any:
            value = tensor(self, name)
            return value.flip(0) if name == "lm_head.weight" else value

        monkeypatch.setattr(Checkpoint, "tensor", wrong)

    assert not fold_error(lose, tied=True) <= 1e-3


def test_a_report_says_what_read_the_reference(base_of: Any, tmp_path: Path):
    base: BaseModel = base_of("llava", "llama")
    coeffs = saved(random_coefficients(base, "all"), tmp_path)
    said = {}
    for parity in ("full", "streamed", "files"):
        out = tmp_path / parity
        outcome = fold_on(base, coeffs, "checkpoint", out=out, evaluation="none", parity=parity)
        assert outcome.passed
        said[parity] = json.loads((out / "parity.json").read_text())["reference"]
        assert said[parity] in (out / "report.html").read_text()
    assert said["full"].endswith("loaded by transformers") and "no model ran" in said["files"]
    assert "read by safetensors, under the names that transformers gives them" in said["streamed"]


def test_what_is_not_there_is_refused(base_of: Any, tmp_path: Path):
    base = base_of("llava", "llama")
    weights = load_file(base.directory / "model.safetensors")
    del weights[base.checkpoint.resolve(Q)]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    read = IndependentReader(tmp_path, base.skeleton)
    with pytest.raises(UserError, match=f"holds nothing that transformers loads as {Q}"):
        read(Q)
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="cannot be read"):
        IndependentReader(tmp_path, base.skeleton)
