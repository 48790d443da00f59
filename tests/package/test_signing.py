"""Signatures: what they cover, where they lie, and everything that must break them."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from model_signing import hashing
from model_signing import signing as library

from scale_export import UserError, open_package, verify
from scale_export.package.manifest import open_package_files
from scale_export.package.signing import PASSWORD_VARIABLE, check_signature, default_signature, sign_package
from tests.helpers.cli import last_json, run

PEM = serialization.Encoding.PEM


def key_pair(directory: Path, name: str, key: Any = None, password: bytes | None = None) -> tuple[Path, Path]:
    """PEM files of a private key and its public key."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    private, public = directory / f"{name}.pem", directory / f"{name}.pub"
    locked = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    private.write_bytes(key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, locked))
    public.write_bytes(key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def signed(package: Path, tmp_path: Path) -> tuple[Path, Path, Path]:
    """A copy of a package with its signature beside it; the package, the signer's private key, the public one."""
    copy = tmp_path / "package"
    shutil.copytree(package, copy)
    private, public = key_pair(tmp_path, "signer")
    assert sign_package(copy, private) == default_signature(copy) == tmp_path / "package.sig"
    return copy, private, public


def test_the_package_stays_what_its_manifest_says_and_the_signature_holds(signed: tuple[Path, Path, Path]):
    package, _, public = signed
    files = open_package_files(package)
    found = verify(package, public_key=public, selftest_only=True)
    assert found.passed and found.signature is not None
    assert found.signature.public_key_sha256 == hashlib.sha256(public.read_bytes()).hexdigest()
    envelope = json.loads(default_signature(package).read_text())["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    listed = {resource["name"]: resource["digest"] for resource in statement["predicate"]["resources"]}
    assert listed.keys() == {"manifest.json", *files.manifest.files}
    assert listed["decoder.onnx"] == files.manifest.files["decoder.onnx"].sha256


def test_a_package_is_opened_and_asked_only_with_its_signers_key(
    signed: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    package, _, public = signed
    _, stranger = key_pair(tmp_path, "stranger")
    opened = open_package(package, public_key=public, signature=default_signature(package))
    assert opened.signature is not None
    assert opened.signature.path == default_signature(package)
    assert open_package(package).signature is None
    with pytest.raises(UserError, match="not that key's signature"):
        open_package(package, public_key=stranger)
    with pytest.raises(UserError, match="give --public-key too"):
        open_package(package, signature=default_signature(package))
    asked = ["run", str(package), "--prompt", "where ?", "--max-new-tokens", "1", "--public-key"]
    assert run(*asked, str(public)) == 0
    capsys.readouterr()
    assert run(*asked, str(stranger)) == 2
    assert "not that key's signature" in capsys.readouterr().err


def test_the_librarys_own_command_reads_it(signed: tuple[Path, Path, Path]):
    package, _, public = signed
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(package)]
    command += ["--signature", str(default_signature(package)), "--public_key", str(public)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_a_package_may_move_with_its_signature(signed: tuple[Path, Path, Path], tmp_path: Path):
    package, _, public = signed
    moved = tmp_path / "elsewhere" / "renamed"
    shutil.copytree(package, moved)
    check_signature(moved, public, default_signature(package))


def rewrite(package: Path, name: str) -> None:
    """A forger's change: the file, and its hash in a manifest that is sealed again."""
    from scale_export.package.manifest import SEAL, canonical_json, hash_file

    path = package / name
    path.write_bytes(path.read_bytes() + b" ")
    table = json.loads((package / "manifest.json").read_text())
    entry = hash_file(path)
    table["files"][name] = {"sha256": entry.sha256, "size": entry.size}
    del table[SEAL]
    seal = hashlib.sha256(canonical_json(table)).hexdigest()
    (package / "manifest.json").write_bytes(canonical_json({**table, SEAL: seal}))


def test_a_forged_package_passes_its_own_hashes_but_not_the_signature(signed: tuple[Path, Path, Path]):
    package, _, public = signed
    rewrite(package, "chat_template.jinja")
    open_package_files(package)
    with pytest.raises(UserError, match="do not trust the package"):
        verify(package, public_key=public, selftest_only=True)


def test_another_key_a_changed_signature_and_a_missing_one_are_refused(
    signed: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    package, _, public = signed
    _, stranger = key_pair(tmp_path, "stranger")
    with pytest.raises(UserError, match="is not that key's signature"):
        check_signature(package, stranger)
    path = default_signature(package)
    bundle = json.loads(path.read_text())
    payload = base64.b64decode(bundle["dsseEnvelope"]["payload"])
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload.replace(b"decoder", b"decodes")).decode()
    for text in (json.dumps(bundle), "{}", "no JSON", ""):
        path.write_text(text)
        with pytest.raises(UserError, match="is not that key's signature of"):
            check_signature(package, public)
    path.unlink()
    with pytest.raises(UserError, match="--signature"):
        check_signature(package, public)
    path.write_text("{}")
    with pytest.raises(UserError, match="--public-key"):
        check_signature(package, tmp_path / "none.pub")


def test_a_signature_that_leaves_the_manifest_out_is_refused(signed: tuple[Path, Path, Path]):
    package, private, public = signed
    partial = hashing.Config().set_ignored_paths(paths=["manifest.json"])
    signer = library.Config().use_elliptic_key_signer(private_key=private).set_hashing_config(partial)
    signer.sign(package, default_signature(package))
    with pytest.raises(UserError, match="does not sign manifest"):
        check_signature(package, public)


def test_a_damaged_package_is_not_signed(package: Path, tmp_path: Path):
    copy = tmp_path / "package"
    shutil.copytree(package, copy)
    (copy / "generation_config.json").write_text("{}")
    with pytest.raises(UserError, match="export it again"):
        sign_package(copy, key_pair(tmp_path, "signer")[0])
    assert not default_signature(copy).exists()


def test_keys_that_are_none_and_places_that_are_taken_are_refused(
    signed: tuple[Path, Path, Path], tmp_path: Path
):
    package, private, public = signed
    with pytest.raises(UserError, match="--force"):
        sign_package(package, private)
    sign_package(package, private, force=True)
    with pytest.raises(UserError, match="inside the package"):
        sign_package(package, private, package / "package.sig")
    other = tmp_path / "other.sig"
    rsa_key, rsa_public = key_pair(tmp_path, "rsa", rsa.generate_private_key(65537, 2048))
    koblitz, _ = key_pair(tmp_path, "koblitz", ec.generate_private_key(ec.SECP256K1()))
    for wrong in (rsa_key, koblitz, public, package / "manifest.json"):
        with pytest.raises(UserError, match="cannot be opened as a private key"):
            sign_package(package, wrong, other)
    for wrong in (rsa_public, private):
        with pytest.raises(UserError, match="is not a public key"):
            check_signature(package, wrong)
    with pytest.raises(UserError, match="cannot be read"):
        sign_package(package, tmp_path / "none.pem", other)
    with pytest.raises(UserError, match="cannot be written"):
        sign_package(package, private, tmp_path / "none" / "x.sig")
    assert not other.exists()


def test_an_encrypted_key_opens_with_its_password(
    signed: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    package, _, _ = signed
    private, public = key_pair(tmp_path, "locked", password=b"correct horse")
    monkeypatch.setenv(PASSWORD_VARIABLE, "wrong")
    with pytest.raises(UserError, match=PASSWORD_VARIABLE):
        sign_package(package, private, force=True)
    monkeypatch.setenv(PASSWORD_VARIABLE, "correct horse")
    sign_package(package, private, force=True)
    check_signature(package, public)


def test_without_the_library_the_extra_is_named(
    signed: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
):
    package, private, public = signed
    monkeypatch.setitem(sys.modules, "model_signing", None)
    for attempt in (
        lambda: sign_package(package, private, force=True),
        lambda: check_signature(package, public),
    ):
        with pytest.raises(UserError, match=r"scale-export\[sign\]"):
            attempt()


def test_the_commands_speak_json_and_exit_codes(signed: tuple[Path, Path, Path], capsys: Any):
    package, private, public = signed
    assert run("sign", str(package), "--key", str(private)) == 2
    assert run("sign", str(package), "--key", str(private), "--force", "--json") == 0
    assert last_json(capsys)["signature"] == str(default_signature(package))
    assert run("verify", str(package), "--selftest", "--public-key", str(public), "--json") == 0
    assert last_json(capsys)["signature"]["path"].endswith("package.sig")
    assert run("verify", str(package), "--selftest", "--json") == 0
    assert last_json(capsys)["signature"] is None
    assert run("verify", str(package), "--selftest", "--signature", "x.sig") == 2
    assert "--public-key" in capsys.readouterr().err
    rewrite(package, "chat_template.jinja")
    assert run("verify", str(package), "--selftest", "--public-key", str(public)) == 2
