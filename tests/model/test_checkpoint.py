"""Checkpoints by their module names, whatever the files call them; damaged and hostile ones refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from scale_export.core.errors import UserError
from scale_export.model.base import open_base
from scale_export.model.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint
from tests.helpers.models import FAMILIES, TEXT_MODELS

O_PROJ = "model.language_model.layers.0.self_attn.o_proj.weight"
STORED_O_PROJ = "language_model.model.layers.0.self_attn.o_proj.weight"
EMBEDDING = "model.language_model.embed_tokens.weight"
Q_PROJ = "model.language_model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    directory = tmp_path_factory.mktemp("llava")
    return FAMILIES["llava"](directory=directory, dtype=torch.bfloat16), directory


@pytest.fixture
def copy(saved: tuple[Any, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved[1], tmp_path / "model"))


def restore(directory: Path, rename: Callable[[str], str | None]) -> Checkpoint:
    """Store the weights under other names; those renamed to None are dropped."""
    file = directory / SINGLE_FILE
    renamed = {rename(name): tensor for name, tensor in load_file(file).items()}
    renamed.pop(None, None)
    save_file({str(name): tensor for name, tensor in renamed.items()}, file)
    return Checkpoint(directory)


def edit_config(directory: Path, **changes: Any) -> Checkpoint:
    file = directory / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({key: config.get(key) for key in reversed(config)} | changes))
    return Checkpoint(directory)


def assert_same_model(checkpoint: Checkpoint, model: Any) -> None:
    for name, weight in model.named_parameters():
        assert name in checkpoint
        assert checkpoint.shape(name) == tuple(weight.shape)
        assert checkpoint.tensor(name).dtype == weight.dtype
        assert torch.equal(checkpoint.tensor(name), weight)


@pytest.mark.parametrize("family", ["llava", "llava_next"])
@pytest.mark.parametrize("text", TEXT_MODELS)
def test_every_parameter_is_found_under_its_module_name(family: str, text: str, tmp_path: Path) -> None:
    model = FAMILIES[family](text, directory=tmp_path)
    assert_same_model(Checkpoint(tmp_path), model)


def test_shards_read_as_one_file(saved: tuple[Any, Path], tmp_path: Path) -> None:
    model, directory = saved
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    assert (tmp_path / INDEX_FILE).is_file()
    assert not (tmp_path / SINGLE_FILE).exists()
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    single, sharded = Checkpoint(directory), Checkpoint(tmp_path)
    assert_same_model(sharded, model)
    assert sharded.stored_names() == single.stored_names()
    assert all(sharded.sha256(name) == single.sha256(name) for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    "spelling",
    [
        ("language_model.model.", "model.language_model."),
        ("language_model.model.", "model.text_model."),
        ("language_model.model.", "text_model."),
        ("language_model.model.", "language_model."),
        ("language_model.model.", "model."),
        ("vision_tower.", "vision_tower.vision_model."),
        ("vision_tower.", "model.vision_tower."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
        ("language_model.lm_head.", "lm_head."),
    ],
)
def test_other_spellings_of_checkpoints(
    saved: tuple[Any, Path], copy: Path, spelling: tuple[str, str]
) -> None:
    old, new = spelling
    before = Checkpoint(copy).sha256(O_PROJ)
    checkpoint = restore(copy, lambda name: new + name.removeprefix(old) if name.startswith(old) else name)
    assert any(name.startswith(new) for name in checkpoint.stored_names())
    assert_same_model(checkpoint, saved[0])
    assert checkpoint.sha256(O_PROJ) == before


def test_the_modules_own_name_wins(copy: Path) -> None:
    weights = load_file(copy / SINGLE_FILE)
    save_file(weights | {O_PROJ: weights[STORED_O_PROJ] * 2}, copy / SINGLE_FILE)
    assert Checkpoint(copy).resolve(O_PROJ) == O_PROJ


@pytest.mark.parametrize("level", ["top", "text"])
def test_tied_output_head_is_the_embedding(copy: Path, level: str) -> None:
    restore(copy, lambda name: None if "lm_head" in name else name)
    text = json.loads((copy / "config.json").read_text())["text_config"]
    tied = {"tie_word_embeddings": True}
    checkpoint = edit_config(copy, **(tied if level == "top" else {"text_config": text | tied}))
    assert checkpoint.resolve("lm_head.weight") == checkpoint.resolve(EMBEDDING)
    assert torch.equal(checkpoint.tensor("lm_head.weight"), checkpoint.tensor(EMBEDDING))


def test_a_config_that_leaves_the_tie_out_means_its_class_default(tmp_path: Path) -> None:
    """Gemma's checkpoints have neither an output head nor the key."""
    FAMILIES["paligemma"](directory=tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("tie_word_embeddings")
    config["text_config"].pop("tie_word_embeddings", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.resolve("lm_head.weight").endswith("embed_tokens.weight")


def test_missing_output_head_of_an_untied_model_is_refused(copy: Path) -> None:
    checkpoint = restore(copy, lambda name: None if "lm_head" in name else name)
    assert "lm_head.weight" not in checkpoint
    with pytest.raises(UserError, match=r"lm_head\.weight .*tried"):
        checkpoint.resolve("lm_head.weight")


def test_unknown_weight_is_refused_with_what_was_tried(saved: tuple[Any, Path]) -> None:
    name = "model.language_model.layers.9.mlp.down_proj.weight"
    checkpoint = Checkpoint(saved[1])
    for ask in (checkpoint.resolve, checkpoint.tensor, checkpoint.shape, checkpoint.sha256):
        with pytest.raises(UserError) as refusal:
            ask(name)
        for part in (name, str(saved[1]), "language_model.model.layers.9.mlp.down_proj.weight"):
            assert part in str(refusal.value)
    assert 3 not in checkpoint


def test_hash_is_of_dtype_shape_and_stored_bytes(saved: tuple[Any, Path]) -> None:
    raw = load_file(saved[1] / SINGLE_FILE)[STORED_O_PROJ].view(torch.uint8).numpy().tobytes()
    expected = hashlib.sha256(b'["BF16", [64, 128]]\n' + raw).hexdigest()
    assert Checkpoint(saved[1]).sha256(O_PROJ) == expected


def test_large_weights_are_hashed_in_pieces(saved: tuple[Any, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Checkpoint(saved[1]).sha256(O_PROJ)
    monkeypatch.setattr("scale_export.model.checkpoint.CHUNK", 1000)
    assert Checkpoint(saved[1]).sha256(O_PROJ) == whole


@pytest.mark.parametrize(
    "sabotage",
    [
        lambda weight: weight.view(torch.float16),
        lambda weight: weight.reshape(128, 64),
        lambda weight: weight.flip(0),
        lambda weight: torch.where(weight == weight.max(), weight.nextafter(weight * 2), weight),
    ],
    ids=["dtype", "shape", "order", "one unit in the last place"],
)
def test_hash_sees_every_change(copy: Path, sabotage: Callable[[torch.Tensor], torch.Tensor]) -> None:
    before = Checkpoint(copy).sha256(O_PROJ)
    weights = load_file(copy / SINGLE_FILE)
    changed = sabotage(weights[STORED_O_PROJ]).contiguous()
    save_file(weights | {STORED_O_PROJ: changed}, copy / SINGLE_FILE)
    assert Checkpoint(copy).sha256(O_PROJ) != before


def test_config_hash_ignores_what_saving_again_changes(copy: Path) -> None:
    before = Checkpoint(copy).config_sha256()
    text = json.loads((copy / "config.json").read_text())["text_config"]
    again = edit_config(
        copy,
        transformers_version="9.9",
        dtype="float64",
        torch_dtype="float64",
        _name_or_path="elsewhere",
        text_config=text | {"_name_or_path": "elsewhere", "torch_dtype": "float16"},
    )
    assert again.config_sha256() == before
    assert edit_config(copy, vision_feature_layer=-1).config_sha256() != before
    assert edit_config(copy, text_config=text | {"rms_norm_eps": 1e-3}).config_sha256() != before


def remove(name: str) -> Callable[[Path], None]:
    return lambda directory: (directory / name).unlink()


def write(name: str, content: bytes) -> Callable[[Path], None]:
    def change(directory: Path) -> None:
        (directory / name).write_bytes(content)

    return change


def pickle_only(directory: Path) -> None:
    (directory / SINGLE_FILE).rename(directory / "pytorch_model.bin")


def cut_last_byte(directory: Path) -> None:
    content = (directory / SINGLE_FILE).read_bytes()
    (directory / SINGLE_FILE).write_bytes(content[:-1])


def append_byte(directory: Path) -> None:
    with (directory / SINGLE_FILE).open("ab") as file:
        file.write(b"\0")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "is not a directory"),
        (remove("config.json"), r"no config\.json"),
        (write("config.json", b"{"), "is not readable JSON"),
        (write("config.json", b"\xff"), "is not readable JSON"),
        (write("config.json", b"[" * 100_000), "is not readable JSON"),
        (write("config.json", b"[]"), "not an object"),
        (remove(SINGLE_FILE), "holds neither"),
        (pickle_only, "pickle weights only"),
        (append_byte, "is not a whole safetensors file"),
        (cut_last_byte, "is not a whole safetensors file"),
        (write(SINGLE_FILE, b""), "is not a whole safetensors file"),
        (write(SINGLE_FILE, b"\xff" * 100), "is not a whole safetensors file"),
        (write(SINGLE_FILE, b"\x02" + b"\0" * 7 + b"[]"), "is not a whole safetensors file"),
    ],
)
def test_directories_that_are_no_checkpoint(copy: Path, change: Callable[[Path], None], message: str) -> None:
    change(copy)
    with pytest.raises(UserError, match=message):
        Checkpoint(copy)


@pytest.mark.parametrize("offsets", [[0, 1e999], [0, -4], [4, 0], [0], ["0", "4"], None, [0, True], [0, 0]])
def test_hostile_offsets(copy: Path, offsets: Any) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": offsets}}).encode()
    (copy / SINGLE_FILE).write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(UserError, match="is not a whole safetensors file"):
        Checkpoint(copy)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "../model.safetensors"}, "not a file beside the index"),
        ({"a": "/etc/passwd"}, "not a file beside the index"),
        ({"a": "sub/model.safetensors"}, "not a file beside the index"),
        ({"a": "..\\model.safetensors"}, "not a file beside the index"),
        ({"a": ".."}, "lacks the shard|not a file beside the index"),
        ({"a": "nul\0.safetensors"}, "not a file beside the index"),
        ({"a": 3}, "not a file beside the index"),
        ({"a": "shard-2.safetensors"}, r"lacks the shard shard-2\.safetensors"),
        ({"a": "shard.safetensors"}, "which does not hold it"),
        ({}, "has no weight_map"),
        ([], "has no weight_map"),
    ],
)
def test_hostile_or_broken_index(copy: Path, weight_map: Any, message: str) -> None:
    (copy / SINGLE_FILE).rename(copy / "shard.safetensors")
    (copy / INDEX_FILE).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match=message):
        Checkpoint(copy)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_damaged_headers_never_end_in_a_traceback(saved: tuple[Any, Path], data: st.DataObject) -> None:
    _, source = saved
    content = bytearray((source / SINGLE_FILE).read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    directory = source.parent / "damaged"
    directory.mkdir(exist_ok=True)
    shutil.copy(source / "config.json", directory)
    (directory / SINGLE_FILE).write_bytes(content)
    try:
        checkpoint = Checkpoint(directory)
        for name in checkpoint.stored_names():
            checkpoint.sha256(name)
            checkpoint.tensor(name)
    except UserError:
        pass


def test_hashing_needs_no_torch(saved: tuple[Any, Path]) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from pathlib import Path\n"
        "from scale_export.model.checkpoint import Checkpoint\n"
        f"print(Checkpoint(Path({str(saved[1])!r})).sha256({O_PROJ!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == Checkpoint(saved[1]).sha256(O_PROJ)


PUBLISHED: dict[str, dict[str, str]] = {
    "qwen2_vl": {"model.visual.": "visual.", "model.language_model.": "model."},
    "qwen2_5_vl": {"model.visual.": "visual.", "model.language_model.": "model."},
    "qwen3_vl": {},
    "mistral3": {
        "model.language_model.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
        "model.": "",
    },
}
PUBLISHED["llava_pixtral"] = PUBLISHED["mistral3"]
"""How the published checkpoints of a family spell its modules' names."""


@pytest.mark.parametrize("family", PUBLISHED)
@pytest.mark.parametrize("tied", [False, True])
def test_published_spellings(family: str, tied: bool, tmp_path: Path) -> None:
    model = FAMILIES[family](directory=tmp_path, dtype=torch.bfloat16, tie_word_embeddings=tied)
    assert_same_model(Checkpoint(tmp_path), model)

    def published(name: str) -> str:
        own, stored = next(((o, s) for o, s in PUBLISHED[family].items() if name.startswith(o)), ("", ""))
        return stored + name.removeprefix(own)

    weights = {published(name): weight.clone() for name, weight in model.named_parameters()}
    save_file(weights, tmp_path / SINGLE_FILE, {"format": "pt"})
    checkpoint = Checkpoint(tmp_path)
    assert_same_model(checkpoint, model)
    again = open_base(str(tmp_path))
    assert torch.equal(again.weights.matrix("layers.1.q_proj"), again.model.state_dict()[Q_PROJ])
    assert torch.equal(again.weights.matrix("lm_head"), again.model.lm_head.weight)
    assert torch.equal(again.weights.embedding(), again.model.get_input_embeddings().weight)
