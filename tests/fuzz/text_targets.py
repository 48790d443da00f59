"""Readers of small files, each reached without a whole package's opening: thousands of inputs a minute."""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import io
import json
import shutil
import tempfile
from pathlib import Path
from random import Random

import numpy as np
import torch
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from safetensors.torch import save

from scale_export.core.errors import UserError
from scale_export.core.huggingface import ScaledModel
from scale_export.device.certificate import device_leg, own_result, read_result
from scale_export.device.coreml.host import read_host_config
from scale_export.device.onnxruntime.host import read_runtime_config
from scale_export.device.package import Package, open_package
from scale_export.device.rules import GENERATION_CONFIG, read_rules
from scale_export.device.selftest import run_selftest
from scale_export.model.base import open_base
from scale_export.model.importing import import_state_dict
from scale_export.package.manifest import open_package_files
from scale_export.package.signing import check_signature, sign_package
from scale_export.package.stored_report import failed_checks, read_report
from scale_export.quantize.calibration import StoredStatistics
from scale_export.quantize.self_written import read_chats
from scale_export.quantize.stored import RECORD_SCHEMA, recorded_sha256, write_whole
from scale_export.questions import load_questions
from tests.helpers.coefficients import random_coefficients, saved
from tests.helpers.folds import fold_on, opened_once
from tests.helpers.models import FAMILIES
from tests.helpers.packages import plant, write
from tests.helpers.pictures import picture

from .mutation import damaged_bytes, damaged_json


def fold(folder: Path, target: str, precision: str | None = None) -> Path:
    """A package of a random LLaVA, in that folder; each kind is exported once in this process."""
    return shutil.copytree(_folded(target, precision), folder / "package")


@functools.cache
def _folded(target: str, precision: str | None) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="scale-export-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    FAMILIES["llava"]("llama", directory=folder / "base")
    base = opened_once(folder / "base")
    asked = {"precision": precision, "evaluation": "none"}
    fold_on(base, saved(random_coefficients(base), folder), target, out=folder / "package", **asked)
    return folder / "package"


def runtime_seeds(folder: Path) -> dict[str, bytes]:
    """``runtime.json`` of both kinds of packages."""
    (folder / "phone").mkdir()
    both = {"onnx": fold(folder, "cpu", "float32"), "phone": fold(folder / "phone", "iphone")}
    return {f"{kind}/runtime.json": (package / "runtime.json").read_bytes() for kind, package in both.items()}


def read_runtime(folder: Path, name: str, data: bytes) -> object:
    """As an engine reads it, scalars included."""
    file = folder / "runtime.json"
    file.write_bytes(data)
    return read_runtime_config(file).defaults() if name.startswith("onnx") else read_host_config(file)


@functools.cache
def _opened(folder: Path) -> Package:
    return open_package(folder / "package")


def result_seeds(folder: Path) -> dict[str, bytes]:
    """What this machine's self-test saves."""
    package = open_package(fold(folder, "cpu", "float32"))
    table = own_result(package, run_selftest(package)).model_dump(mode="json", by_alias=True)
    return {"result.json": json.dumps(table).encode()}


def read_device_result(folder: Path, name: str, data: bytes) -> object:
    """As ``verify --device-result`` judges it."""
    (folder / name).write_bytes(data)
    package = _opened(folder)
    leg = device_leg(package.files, package, read_result(folder / name))
    return json.dumps(leg.to_json(), allow_nan=False), dict(leg.figures())


def report_seeds(folder: Path) -> dict[str, bytes]:
    """A package's report."""
    return {"parity.json": (fold(folder, "cpu", "float32") / "parity.json").read_bytes()}


def read_parity(folder: Path, name: str, data: bytes) -> object:
    """As ``inspect`` and ``doctor`` read it."""
    plant(folder / "package", name, data)
    return failed_checks(read_report(open_package_files(folder / "package")))


LINES = (
    {"id": "a", "image": "1.png", "question": "where is it?", "answer": "left", "options": ["left", "right"]},
    {
        "id": "b",
        "images": ["1.png", "2.png"],
        "question": "how many?",
        "answers": ["2", "two"],
        "scoring": "contains",
    },
    {
        "id": "c",
        "image": "1.png",
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]},
            {"role": "assistant", "content": "a circle"},
            {"role": "user", "content": "where?"},
        ],
        "answer": "left",
        "kind": "other",
        "topic": "place",
    },
    {"id": "d", "question": "how far?", "answer": "3", "scoring": "number"},
)


def question_seeds(folder: Path) -> dict[str, bytes]:
    """Question files: every field, with splits and without, and the pictures beside them."""
    for number in (1, 2):
        picture(number).save(folder / f"{number}.png")
    parted = [
        {**line, "split": split} for line, split in zip(LINES, ("train", "val", "test", "test"), strict=True)
    ]
    return {
        f"{name}.jsonl": "".join(json.dumps(line) + "\n" for line in lines).encode()
        for name, lines in {"whole": LINES, "parted": parted}.items()
    }


def damaged_lines(rng: Random, _: str, data: bytes) -> bytes:
    """One line damaged as JSON three times in four, else bytes anywhere."""
    if rng.random() < 0.25:
        return damaged_bytes(rng, data)
    lines = data.splitlines()
    at = rng.randrange(len(lines))
    lines[at] = damaged_json(rng, lines[at]).replace(b"\n", b"\\n")
    return b"\n".join(lines)


def read_questions(folder: Path, name: str, data: bytes) -> object:
    """As ``--eval jsonl:FILE`` and training read it, pictures included."""
    (folder / name).write_bytes(data)
    asked = f"jsonl:{folder / name}" + (",whole" if name.startswith("whole") else "")
    return [question.images for question in load_questions(asked, "test")]


BASES = {"llava": "llama", "qwen2_vl": None, "gemma3": None, "internvl": "qwen2"}
"""Families of other towers and rotary embeddings; None stands for the family's own text model."""


def base_seeds(folder: Path) -> dict[str, bytes]:
    """What is read of base models before weights are: configs, generation's rules, and the weights' own headers."""
    seeds = {}
    for family, text in BASES.items():
        FAMILIES[family](*filter(None, [text]), directory=folder / family)
        for file in sorted((folder / family).iterdir()):
            if file.name in ("config.json", GENERATION_CONFIG):
                seeds[f"{family}/{file.name}"] = file.read_bytes()
    weights = (folder / "llava/model.safetensors").read_bytes()
    size = int.from_bytes(weights[:8], "little")
    return {**seeds, "llava/model.safetensors": weights[: 8 + size]}


def damaged_base(rng: Random, name: str, data: bytes) -> bytes:
    """JSON, or a safetensors header within its frame."""
    if not name.endswith(".safetensors"):
        return damaged_json(rng, data)
    if rng.random() < 0.2:
        return damaged_bytes(rng, data)
    header = damaged_json(rng, data[8:])
    return len(header).to_bytes(8, "little") + header


class _Ends:
    """A tokenizer as far as generation's rules ask for one."""

    eos_token_id = 2
    all_special_ids = (0, 1, 2)


def read_base(folder: Path, name: str, data: bytes) -> object:
    """As a fold opens it and builds its skeleton; the rules without loading a tokenizer."""
    directory, file = folder / name.split("/", maxsplit=1)[0], folder / name
    whole = file.read_bytes()
    try:
        weights = whole[8 + int.from_bytes(whole[:8], "little") :] if file.suffix == ".safetensors" else b""
        file.write_bytes(data + weights)
        if file.name == GENERATION_CONFIG:
            return read_rules(directory, _Ends())  # type: ignore[arg-type]
        base = open_base(str(directory))
        return base.spec, base.image_token_id, base.skeleton
    finally:
        file.write_bytes(whole)


def signature_seeds(folder: Path) -> dict[str, bytes]:
    """A small package's signature, and its signer's public key."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem = serialization.Encoding.PEM
    package = write(folder / "package")
    (folder / "signer.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / "signer.pub").write_bytes(public)
    return {"package.sig": sign_package(package, folder / "signer.pem").read_bytes(), "signer.pub": public}


def damaged_signature(rng: Random, name: str, data: bytes) -> bytes:
    """JSON, and bytes of a key."""
    return damaged_json(rng, data) if name.endswith(".sig") else damaged_bytes(rng, data)


def read_signature(folder: Path, name: str, data: bytes) -> object:
    """As ``--public-key`` checks it; one that passes must say what the true one says."""
    whole = (folder / name).read_bytes()
    try:
        (folder / name).write_bytes(data)
        return check_signature(folder / "package", folder / "signer.pub", folder / "package.sig")
    finally:
        (folder / name).write_bytes(whole)


SEALED = "sealed/"
"""Before the names of files of a cache whose own hashes are made to fit again, as who can write them can do."""
MOMENTS, CHATS = "layers.0.safetensors", "chats.json"
WORDS = 320


def cache_seeds(folder: Path) -> dict[str, bytes]:
    """What a cache keeps of calibration: moments with their record, and chats."""
    rows = np.random.default_rng(0).random((8, 4), np.float32)
    sites = {"layers.0.q_proj": rows.T @ rows / 8, "layers.0.q_proj.peaks": rows.max(axis=0)}
    write_whole(sites, folder / MOMENTS)
    chats = [[[5, 6, 7], [8, 9]], [[WORDS - 1], [2]]]
    (folder / CHATS).write_text(json.dumps(_sealed_chats(chats)))
    names = (MOMENTS, f"{Path(MOMENTS).stem}.json", CHATS)
    whole = {name: (folder / name).read_bytes() for name in names}
    return {**whole, **{f"{SEALED}{name}": whole[name] for name in (MOMENTS, CHATS)}}


def _sealed_chats(chats: object) -> dict[str, object]:
    return {"sha256": hashlib.sha256(json.dumps(chats).encode()).hexdigest(), "chats": chats}


def read_cache(folder: Path, name: str, data: bytes) -> object:
    """As calibration reads it; what it does not believe, and would collect again, counts as refused."""
    plain = name.removeprefix(SEALED)
    file, record = folder / plain, folder / f"{Path(MOMENTS).stem}.json"
    kept = {path: path.read_bytes() for path in {file, record}}
    try:
        file.write_bytes(data)
        if plain == CHATS:
            return _read_chats(file, sealed=plain != name)
        if plain != name:
            found = {"schema": RECORD_SCHEMA, "sha256": hashlib.sha256(data).hexdigest()}
            record.write_text(json.dumps(found))
        digest = recorded_sha256(folder / MOMENTS)
        if digest is None:
            raise UserError("collected again")
        statistics = StoredStatistics(folder, ((MOMENTS, digest),))
        return statistics.moments("layers.0.k_proj"), statistics.peaks("layers.0.k_proj")
    finally:
        for path, content in kept.items():
            path.write_bytes(content)


def _read_chats(file: Path, *, sealed: bool) -> object:
    if sealed:
        with contextlib.suppress(ValueError, RecursionError, TypeError, KeyError):
            file.write_text(json.dumps(_sealed_chats(json.loads(file.read_bytes())["chats"])))
    chats = read_chats(file, 2, WORDS)
    if chats is None:
        raise UserError("written again")
    return np.array([token for chat in chats for part in chat for token in part], np.int64)


HEADS, MLP = "net.{layer}.heads", "net.{layer}.mlp"


def state_seeds(folder: Path) -> dict[str, bytes]:
    """State dicts of scalars of two layers, in both formats and two dtypes."""
    FAMILIES["llava"]("llama", directory=folder / "base")
    seeds = {}
    for kind, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        state = {f"net.{layer}.heads": torch.linspace(0.5, 1.5, 4).to(dtype) for layer in (0, 2)}
        state["net.1.mlp"] = torch.tensor(0.75, dtype=dtype)
        content = io.BytesIO()
        torch.save(state, content)
        seeds[f"{kind}.pt"] = content.getvalue()
        seeds[f"{kind}.safetensors"] = save(state)
    return seeds


@functools.cache
def _model(directory: Path) -> ScaledModel:
    return opened_once(directory).streamed_model


def read_state(folder: Path, name: str, data: bytes) -> object:
    """As ``import`` reads it, every hash of the base model included."""
    (folder / name).write_bytes(data)
    base = folder / "base"
    asked = {"head_pattern": HEADS, "mlp_pattern": MLP, "scope": "last", "values": "s"}
    return import_state_dict(folder / name, model=_model(base), base_dir=base, **asked)  # type: ignore[arg-type]
