"""Signing a package and checking a signature: OpenSSF Model Signing with a key pair, offline.

A package's own hashes find damage, not forgery. The signature is a Sigstore bundle with an in-toto statement of every
file's SHA-256, which ``model_signing verify key`` reads too. Rules:

1. It lies beside the package, by default as ``<package>.sig``: a package holds nothing that its manifest doesn't list.
2. Only an intact package is signed, all of it, and nothing of a package is used before its signature was checked.
3. A signature must cover the manifest, which holds the hash of every other file: one that leaves files out is refused.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from scale_export.core.errors import UserError

from .manifest import MANIFEST_NAME, open_package_files

PASSWORD_VARIABLE = "SCALE_EXPORT_KEY_PASSWORD"
"""The environment variable that holds an encrypted key's password."""

_CURVES = "on curve P-256, P-384 or P-521, in PEM form"


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """A signature that was checked; ``public_key_sha256`` is of the key's PEM file."""

    path: Path
    public_key_sha256: str


def default_signature(package: Path) -> Path:
    """``<package>.sig``, beside it."""
    directory = package.resolve()
    return directory.with_name(f"{directory.name}.sig")


def sign_package(package: Path, key: Path, out: Path | None = None, *, force: bool = False) -> Path:
    """Sign every file of a package with an elliptic-curve private key; returns where the signature lies.

    Raises:
        UserError: a package that is not intact, a key that is none, a place that is taken or inside the package, or
            the library missing.
    """
    open_package_files(package, exact=True)
    signing, _, hashing = _library()
    out = default_signature(package) if out is None else out.resolve()
    if out.is_relative_to(package.resolve()):
        raise UserError(
            f"{out} lies inside the package, which may only hold files that its manifest lists: choose another --out"
        )
    if os.path.lexists(out) and not force:
        raise UserError(f"{out} exists already: choose another --out, or give --force to replace it")
    password = os.environ.get(PASSWORD_VARIABLE)
    try:
        config = signing.Config().use_elliptic_key_signer(
            private_key=key, password=None if password is None else password.encode()
        )
    except OSError as error:
        raise UserError(f"{key} cannot be read ({error.strerror}): check --key") from None
    except Exception:  # cryptography's errors have no common base
        ways = f"for an encrypted one set {PASSWORD_VARIABLE}"
        raise UserError(f"{key} cannot be opened as a private key {_CURVES}: {ways}") from None
    every_file = hashing.Config().set_ignored_paths(paths=[], ignore_git_paths=False)
    try:
        config.set_hashing_config(every_file).sign(package.resolve(), out)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}): choose another --out") from None
    return out


def check_signature(package: Path, public_key: Path, signature: Path | None = None) -> Signature:
    """Check that the holder of a key signed this package, all of it, as it is.

    Raises:
        UserError: a signature that is missing, broken, by another key or of other contents; a key that is none; or the
            library missing.
    """
    _, verifying, _ = _library()
    path = default_signature(package) if signature is None else signature
    for file, option in ((path, "--signature"), (public_key, "--public-key")):
        if not file.is_file():
            raise UserError(f"there is no file {file}: check {option}")
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except Exception:  # cryptography's errors have no common base
        raise UserError(f"{public_key} is not a public key {_CURVES}: check --public-key") from None
    try:
        config.verify(package.resolve(), path)
        covered = _covered(path)
    except (
        Exception
    ) as error:  # a file from elsewhere may break the library in any way, and none of them is a pass
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{path} is not that key's signature of {package} ({why}): do not trust the package"
        ) from None
    if MANIFEST_NAME not in covered:
        raise UserError(f"{path} does not sign {MANIFEST_NAME}: have the whole package signed")
    return Signature(path=path, public_key_sha256=hashlib.sha256(public_key.read_bytes()).hexdigest())


def _covered(signature: Path) -> set[str]:
    """The files that a checked signature speaks of."""
    envelope = json.loads(signature.read_text(encoding="utf-8"))["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    return {resource["name"] for resource in statement["predicate"]["resources"]}


def _library() -> tuple[ModuleType, ModuleType, ModuleType]:
    """The library's modules that sign, verify and hash."""
    try:
        from model_signing import hashing, signing, verifying
    except ModuleNotFoundError as error:
        raise UserError(
            f"signatures need {error.name}, which is not installed: pip install 'scale-export[sign]'"
        ) from None
    return signing, verifying, hashing
