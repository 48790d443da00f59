"""The safetensors files of a Hugging Face model directory, read tensor by tensor."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from scale_export.core.errors import UserError
from scale_export.core.inside import is_inside_name
from scale_export.core.records import Json

if TYPE_CHECKING:
    import torch

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

STORED_PREFIXES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "model.language_model.",
        ("language_model.model.", "language_model.", "model.text_model.", "text_model.", "model."),
    ),
    ("model.text_model.", ("text_model.", "model.language_model.", "language_model.model.")),
    ("lm_head.", ("language_model.lm_head.", "model.lm_head.", "text_model.lm_head.")),
    (
        "model.vision_tower.",
        ("vision_tower.", "vision_tower.vision_model.", "model.vision_tower.vision_model."),
    ),
    ("model.", ("",)),
)
"""Prefix of a module's name → the prefixes that checkpoints store it under, in the order tried.

Rows are tried top to bottom and all that match count; the module's own name is always tried first.
"""

VOLATILE_CONFIG_KEYS = frozenset({"transformers_version", "_name_or_path", "torch_dtype", "dtype"})
"""Keys of ``config.json`` that change when the same model is saved again, at any depth."""

_OUTPUT_HEAD = "lm_head.weight"
_EMBEDDINGS = ("model.language_model.embed_tokens.weight", "model.text_model.embed_tokens.weight")
_HEADER_LIMIT = 100_000_000  # the safetensors library's own limit
CHUNK = 1 << 20
"""Bytes that are hashed at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Where one tensor lies: ``size`` bytes at ``start`` of ``file``; ``dtype`` as safetensors spells it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


class Checkpoint:
    """The safetensors files of one Hugging Face model directory, one file or shards with an index.

    Tensors are named as transformers names modules (``model.language_model.layers.0.mlp.down_proj.weight``,
    ``lm_head.weight``), whatever the files call them. Opening reads ``config.json`` and the files' headers;
    weights are read when asked for.
    """

    def __init__(self, directory: Path) -> None:
        """Open ``directory``.

        Raises:
            UserError: it isn't a directory, lacks ``config.json`` or safetensors weights, or a file is
                missing, damaged, or named outside the directory by the index.
        """
        self.directory = Path(directory)
        if not self.directory.is_dir():
            raise UserError(f"{self.directory} is not a directory: give a Hugging Face model directory")
        config_file = self.directory / "config.json"
        if not config_file.is_file():
            raise UserError(
                f"{self.directory} holds no config.json, so it is not a Hugging Face model directory: "
                "give the directory that save_pretrained wrote"
            )
        self.config: dict[str, Json] = _read_json_object(config_file)
        self._entries = _read_entries(self.directory)
        self._hashes: dict[str, str] = {}

    def stored_names(self) -> tuple[str, ...]:
        """Every tensor's name as stored, sorted."""
        return tuple(sorted(self._entries))

    def resolve(self, module_name: str) -> str:
        """The stored name of a module's tensor; that of the embedding for a tied ``lm_head.weight``.

        Raises:
            UserError: no stored name fits; names what was tried.
        """
        found = self._find(module_name)
        if found is None:
            tried = ", ".join(dict.fromkeys(_stored_candidates(module_name)))
            raise UserError(
                f"{self.directory} holds no weight for {module_name} (tried {tried}): "
                "give the complete checkpoint of the base model"
            )
        return found

    def __contains__(self, module_name: object) -> bool:
        return isinstance(module_name, str) and self._find(module_name) is not None

    def tensor(self, module_name: str) -> torch.Tensor:
        """The weight in its stored dtype and shape, memory mapped.

        Raises:
            UserError: there is no such weight, or this torch can't hold its dtype.
        """
        from safetensors import SafetensorError, safe_open

        stored = self.resolve(module_name)
        entry = self._entries[stored]
        try:
            with safe_open(entry.file, framework="pt") as opened:
                weight: torch.Tensor = opened.get_tensor(stored)
                return weight
        except (SafetensorError, AttributeError, OSError) as error:
            raise UserError(
                f"cannot read {stored} ({entry.dtype}) from {entry.file}: {error}; download that file again"
            ) from error

    def stored(self, module_name: str) -> StoredTensor:
        """Where the weight lies; raises as ``resolve``."""
        return self._entries[self.resolve(module_name)]

    def stored_as(self, stored_name: str) -> StoredTensor:
        """Where the tensor of that stored name lies; raises KeyError where ``stored_names`` has it not."""
        return self._entries[stored_name]

    def weight_files(self) -> tuple[Path, ...]:
        """The safetensors files, sorted."""
        return tuple(sorted({entry.file for entry in self._entries.values()}))

    def shape(self, module_name: str) -> tuple[int, ...]:
        """The weight's shape; raises as ``resolve``."""
        return self._entries[self.resolve(module_name)].shape

    def sha256(self, module_name: str) -> str:
        """SHA-256 over dtype, shape and stored bytes, in hex; the same however the file is sharded.

        The bytes are streamed once, without a tensor library, so that every dtype works. Raises as ``resolve``.
        """
        stored = self.resolve(module_name)
        if stored not in self._hashes:
            self._hashes[stored] = stored_sha256(self._entries[stored])
        return self._hashes[stored]

    def config_sha256(self) -> str:
        """SHA-256 in hex over the config as canonical JSON, without ``VOLATILE_CONFIG_KEYS``."""
        canonical = json.dumps(without_volatile(self.config), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def _find(self, module_name: str) -> str | None:
        for candidate in _stored_candidates(module_name):
            if candidate in self._entries:
                return candidate
        if module_name == _OUTPUT_HEAD and self._is_tied():
            return next((stored for name in _EMBEDDINGS if (stored := self._find(name))), None)
        return None

    def _is_tied(self) -> bool:
        text_config = self.config.get("text_config")
        inner = text_config if isinstance(text_config, dict) else {}
        stated = [c["tie_word_embeddings"] for c in (self.config, inner) if "tie_word_embeddings" in c]
        return True in stated if stated else self._ties_by_default()

    def _ties_by_default(self) -> bool:
        """What transformers' config class says where config.json leaves it out, as Gemma's do."""
        from transformers import AutoConfig

        try:
            config = AutoConfig.from_pretrained(self.directory, trust_remote_code=False)
        except Exception:  # config classes check values in ways of their own
            return False
        return getattr(config, "tie_word_embeddings", None) is True


def _stored_candidates(module_name: str) -> Iterator[str]:
    yield module_name
    for prefix, alternatives in STORED_PREFIXES:
        if module_name.startswith(prefix):
            for alternative in alternatives:
                yield alternative + module_name.removeprefix(prefix)


def without_volatile(value: Json) -> Json:
    """JSON without ``VOLATILE_CONFIG_KEYS``, at any depth."""
    if isinstance(value, dict):
        return {k: without_volatile(v) for k, v in value.items() if k not in VOLATILE_CONFIG_KEYS}
    if isinstance(value, list):
        return [without_volatile(item) for item in value]
    return value


def _read_entries(directory: Path) -> Mapping[str, StoredTensor]:
    single, index = directory / SINGLE_FILE, directory / INDEX_FILE
    if single.is_file():
        return read_header(single)
    if index.is_file():
        return _read_shards(index)
    if list(directory.glob("*.bin")) or list(directory.glob("*.pt*")):
        raise UserError(
            f"{directory} holds pickle weights only, which are never opened: load the model where you trust "
            "it and save it again with save_pretrained, which writes safetensors"
        )
    raise UserError(f"{directory} holds neither {SINGLE_FILE} nor {INDEX_FILE}: download the model's weights")


def _read_shards(index: Path) -> Mapping[str, StoredTensor]:
    weight_map = _read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map: download that file again")
    shards: dict[str, Mapping[str, StoredTensor]] = {}
    entries = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or "/" in shard or not is_inside_name(shard):
            raise UserError(
                f"{index} places {name} in {shard!r}, which is not a file beside the index: "
                "download the model again"
            )
        if shard not in shards:
            if not (index.parent / shard).is_file():
                raise UserError(f"{index.parent} lacks the shard {shard} that its index names: download it")
            shards[shard] = read_header(index.parent / shard)
        if name not in shards[shard]:
            raise UserError(
                f"{index} places {name} in {shard}, which does not hold it: download the model again"
            )
        entries[name] = shards[shard][name]
    return entries


def stored_sha256(entry: StoredTensor) -> str:
    """SHA-256 in hex over dtype, shape and bytes of one stored tensor; see ``Checkpoint.sha256``."""
    digest = hashlib.sha256(json.dumps([entry.dtype, entry.shape]).encode() + b"\n")
    with entry.file.open("rb") as file:
        file.seek(entry.start)
        left = entry.size
        while left:
            chunk = file.read(min(left, CHUNK))
            if not chunk:
                raise UserError(f"{entry.file} ended while it was read: download that file again")
            digest.update(chunk)
            left -= len(chunk)
    return digest.hexdigest()


def read_header(file: Path) -> Mapping[str, StoredTensor]:
    """Every tensor of one safetensors file; the header and the file's length are checked."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if length > min(size - 8, _HEADER_LIMIT):
                raise ValueError("its header is longer than the file")
            header = json.loads(opened.read(length))
        entries = {
            name: _entry(file, 8 + length, value) for name, value in header.items() if name != "__metadata__"
        }
        if size != max((e.start + e.size for e in entries.values()), default=8 + length):
            raise ValueError("its length is not what its header says")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{file} is not a whole safetensors file ({error}): download that file again"
        ) from error
    return entries


def _entry(file: Path, data_start: int, value: Mapping[str, Json]) -> StoredTensor:
    shape = _lengths(value["shape"])
    begin, end = _lengths(value["data_offsets"])
    if begin > end or (end == begin) != (math.prod(shape) == 0):
        raise ValueError("a tensor's offsets contradict its shape")
    return StoredTensor(
        file=file, dtype=str(value["dtype"]), shape=shape, start=data_start + begin, size=end - begin
    )


def _lengths(value: Json) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(item) is int and item >= 0 for item in value):
        raise ValueError("a shape or an offset is not a list of lengths")
    return tuple(value)


def _read_json_object(file: Path) -> dict[str, Json]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} is not readable JSON ({error}): download that file again") from error
    if not isinstance(value, dict):
        raise UserError(f"{file} holds JSON that is not an object: download that file again")
    return value
