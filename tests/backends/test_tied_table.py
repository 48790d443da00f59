"""An output head that is the embedding table: its integer codes are stored once, and both graphs read them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from scale_export.backends.onnxruntime.backend import BACKEND
from scale_export.core import limits
from scale_export.core.compare import relative_error
from scale_export.device.onnxruntime.engine import OnnxEngine
from scale_export.plan.estimate import matrix_bytes, reach
from scale_export.quantize import QuantizedWeights
from scale_export.search.budget import _Bench
from tests.helpers.emission import TOKENS, emission_of, generator, prompt, reference, stored, weights_of
from tests.helpers.folds import opened_once
from tests.helpers.models import FAMILIES
from tests.helpers.plans import plan_of
from tests.helpers.variants import variant_of


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A llava whose text model has no output head of its own."""
    directory = tmp_path_factory.mktemp("tied")
    FAMILIES["llava"](directory=directory, tie_word_embeddings=True)
    return opened_once(directory)


def emit(plan: Any, folder: Path, weights: Any = None) -> tuple[Any, dict[str, Path]]:
    folded = stored(plan) if weights is None else weights
    made = emission_of(plan, folded, vision_precision="float32")
    return folded, {role: folder / name for role, name in BACKEND.emit(made, folder).items()}


def table_place(graph: Path, name: str) -> dict[str, str]:
    """Where a tensor's bytes lie: file, offset and length."""
    tensors = {t.name: t for t in onnx.load(graph, load_external_data=False).graph.initializer}
    return {entry.key: entry.value for entry in tensors[name].external_data}


def stored_once(graphs: dict[str, Path]) -> int:
    """Bytes of all codes and block scales, wherever several tensors lie in the same place counted once."""
    places: dict[tuple[str, str], int] = {}
    for role in ("decoder", "embedding"):
        for tensor in onnx.load(graphs[role], load_external_data=False).graph.initializer:
            if tensor.name.endswith((".codes", ".scales")):
                entry = {e.key: e.value for e in tensor.external_data}
                places[entry["location"], entry["offset"]] = int(entry["length"])
    return sum(places.values())


@pytest.mark.parametrize("bits", [None, "uniform"], ids=["8", "4"])
def test_the_table_is_stored_once_and_both_graphs_read_it(tied: Any, bits: Any, tmp_path: Path):
    plan = plan_of(tied, bits=bits)
    width = 8 if bits is None else 4
    assert plan.other_bits.get("embedding", 4) == plan.other_bits.get("lm_head", 4) == width
    folded, graphs = emit(plan, tmp_path)
    for part in ("codes", "scales"):
        head = table_place(graphs["decoder"], f"lm_head.{part}")
        assert head == table_place(graphs["embedding"], f"embed_tokens.{part}")
        assert head["location"] == "decoder.onnx.data"
    assert stored_once(graphs) == matrix_bytes(plan)
    assert not (tmp_path / "embedding.onnx.data").exists()
    engine = OnnxEngine(graphs, context_length=96, providers=["CPUExecutionProvider"], strict=True)
    ids = np.arange(tied.spec.vocab_size)[None]
    words = engine.embed(ids[:, :64], np.zeros((0, tied.spec.hidden_size), np.float32))[0]
    np.testing.assert_allclose(words, folded.weights.matrix("lm_head").numpy()[:64], atol=1e-6)
    inputs = prompt(tied)
    expected = reference(plan, folded).forced_logits(inputs, TOKENS)
    found = generator(engine, tied, plan.fold).forced_logits(inputs, TOKENS)
    assert relative_error(expected, found) <= limits.LOWERING_RELATIVE["float32"]


def test_a_scaled_table_shares_codes_alone(base_of: Any, tmp_path: Path):
    """Gemma's embeddings are the table times a number, which is in their block scales."""
    base = base_of("gemma3", variant_of("gemma3"))
    assert base.spec.embedding_scale != 1
    plan = plan_of(base)
    folded, graphs = emit(plan, tmp_path)
    assert table_place(graphs["embedding"], "embed_tokens.codes") == table_place(
        graphs["decoder"], "lm_head.codes"
    )
    own = table_place(graphs["embedding"], "embed_tokens.scales")
    assert own["location"] == "embedding.onnx.data"
    engine = OnnxEngine(graphs, context_length=96, providers=["CPUExecutionProvider"], strict=True)
    words = engine.embed(np.arange(32)[None], np.zeros((0, base.spec.hidden_size), np.float32))[0]
    expected = folded.weights.matrix("lm_head").numpy()[:32] * base.spec.embedding_scale
    np.testing.assert_allclose(words, expected, atol=1e-5)


@pytest.mark.parametrize(
    "changes", [{"quantizer": "awq"}, {"bits": {"lm_head": 8, "embedding": 4}}], ids=["awq", "bits apart"]
)
def test_a_head_of_other_codes_is_stored_beside_the_table(tied: Any, changes: Any, tmp_path: Path):
    plan = plan_of(tied, **changes)
    folded, graphs = emit(plan, tmp_path)
    assert not folded.weights.table_is_head
    assert table_place(graphs["embedding"], "embed_tokens.codes")["location"] == "embedding.onnx.data"
    assert stored_once(graphs) == matrix_bytes(plan)


def test_codes_that_differ_are_never_shared(tied: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One code of the table off by one: what is shared is decided by the bytes, not by the config."""
    honest = QuantizedWeights.pack

    def pack(self: QuantizedWeights, name: str) -> Any:
        block = honest(self, name)
        if name != "embedding":
            return block
        codes = block.codes.copy()
        codes[0, 0, 0] ^= 1
        return replace(block, codes=codes)

    monkeypatch.setattr(QuantizedWeights, "pack", pack)
    _, graphs = emit(plan_of(tied), tmp_path)
    assert table_place(graphs["embedding"], "embed_tokens.codes")["location"] == "embedding.onnx.data"


def test_a_search_counts_the_table_once_and_narrows_it_with_the_head(tied: Any):
    plan = plan_of(tied, bits="uniform")
    bench = _Bench(plan, weights_of(plan).statistics)
    assert "embedding" not in bench.free and "lm_head" in bench.free
    assert reach(plan) == (bench.size - sum(map(bench.saved, bench.free)), bench.size)
    wide = bench.engine.tensors["embedding"]
    bench.narrow(["lm_head"])
    assert bench.engine.tensors["embedding"] is not wide
    bench.widen(["lm_head"])
    assert bench.engine.tensors["embedding"] is wide
