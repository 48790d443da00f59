"""Small packages of made-up files, and how they are forged."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scale_export.core.errors import UserError
from scale_export.package.exchange import Exchange, exchange
from scale_export.package.manifest import (
    DecoderFacts,
    Manifest,
    Tool,
    open_package_files,
)
from scale_export.package.staging import StagedPackage

CONTENTS = {
    "decoder.onnx": b"graph" * 50,
    "decoder.onnx.data": bytes(range(256)) * 8,
    "vision.onnx": b"vision graph",
    "embedding.onnx": b"embedding graph",
    "scale.safetensors": b"\0\1\2",
    "selftest/case0.npz": b"golden",
    "selftest/deeper/empty": b"",
}


def manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "tool": Tool(name="scale-export", version="0.1.0"),
        "libraries": {"onnx": "1.23.2", "numpy": "2.3.5"},
        "name": "tiny",
        "base_model": "examples/tiny_vlm",
        "model_type": "llava",
        "target": "cpu",
        "backend": "onnxruntime",
        "execution_providers": ("CPUExecutionProvider",),
        "scope": "last",
        "fold": "gate",
        "precision": "int8",
        "block_size": 32,
        "context_length": 4096,
        "graphs": {"decoder": "decoder.onnx", "vision": "vision.onnx", "embedding": "embedding.onnx"},
        "decoder": DecoderFacts(
            num_layers=4,
            num_heads=4,
            num_kv_heads=2,
            head_dim=32,
            hidden_size=128,
            vocab_size=96,
            activation_dtype="float32",
            kv_dtype="float32",
        ),
        "coefficients": "scale.safetensors",
        "image_token_id": 3,
        "extras": {"grid": [3, 3], "word": "é"},
    }
    return Manifest(**(fields | changes))


def fill(directory: Path, *, tag: bytes = b"", contents: dict[str, bytes] = CONTENTS) -> None:
    for name, content in contents.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    if tag:
        (directory / "vision.onnx").write_bytes(tag)


def write(out: Path, *, force: bool = False, tag: bytes = b"", exchange: Exchange = exchange) -> Path:
    with StagedPackage(out, force=force, exchange=exchange) as staged:
        fill(staged.directory, tag=tag)
        return staged.commit(manifest())


def tag_of(out: Path) -> bytes:
    return open_package_files(out).path("vision.onnx").read_bytes()


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def reseal(out: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Forge a manifest whose own hash is right, to reach the checks behind it."""
    table = json.loads((out / "manifest.json").read_bytes())
    del table["manifest_sha256"]
    change(table)
    plain = json.dumps(table, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    table["manifest_sha256"] = hashlib.sha256(plain.encode()).hexdigest()
    text = json.dumps(table, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    (out / "manifest.json").write_text(text, encoding="utf-8")


def plant(out: Path, name: str, content: bytes) -> None:
    """Change a file of a package, or add one, as a forger does: size, hash and seal are renewed."""
    (out / name).write_bytes(content)
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    reseal(out, lambda table: table["files"].update({name: entry}))


def in_hub_cache(package: Path, cache: Path) -> Path:
    """The package as the hub's cache holds it: a snapshot in which every file is a link to a blob."""
    blobs, snapshot = (
        cache / "models--user--pkg" / "blobs",
        cache / "models--user--pkg" / "snapshots" / "0123abcd",
    )
    blobs.mkdir(parents=True)
    for file in sorted(path for path in package.rglob("*") if path.is_file()):
        blob = blobs / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.write_bytes(file.read_bytes())
        place = snapshot / file.relative_to(package)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(os.path.relpath(blob, place.parent))
    return snapshot


def no_exchange(first: Path, second: Path) -> bool:
    """A file system on which two paths can't change places at once."""
    return False
