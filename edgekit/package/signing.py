"""Ed25519 signatures (RFC 8032) over ``SHA256SUMS``, which covers every other file of a bundle."""

from __future__ import annotations

import base64
import binascii
import importlib
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, cast

from edgekit.errors import MissingExtraError, UntrustedSourceError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNATURE = "SHA256SUMS.sig"
_ED25519 = "hazmat.primitives.asymmetric.ed25519"


def sign(message: bytes, key_file: Path) -> bytes:
    """The signature of ``message`` in base64, with the unencrypted PEM private key in ``key_file``."""
    return base64.b64encode(_private(key_file).sign(message)) + b"\n"


def check(message: bytes, signature: bytes, key_file: Path) -> None:
    """Raise :class:`UntrustedSourceError` unless ``signature`` is the key's over ``message``."""
    key = _public(key_file)
    try:
        key.verify(base64.b64decode(signature.strip(), validate=True), message)
    except (_cryptography("exceptions").InvalidSignature, binascii.Error) as e:
        raise UntrustedSourceError(
            f"the signature is not that of {key_file.name}",
            hint="do not use this bundle; ask its sender for the right key or a new bundle",
        ) from e


def _private(path: Path) -> Ed25519PrivateKey:
    load = _cryptography("hazmat.primitives.serialization").load_pem_private_key
    try:
        key: object = load(_bytes(path), password=None)
    except (ValueError, TypeError) as e:
        raise _no_key(path, "private") from e
    if not isinstance(key, _cryptography(_ED25519).Ed25519PrivateKey):
        raise _no_key(path, "private")
    return cast("Ed25519PrivateKey", key)


def _public(path: Path) -> Ed25519PublicKey:
    load = _cryptography("hazmat.primitives.serialization").load_pem_public_key
    try:
        key: object = load(_bytes(path))
    except ValueError as e:
        raise _no_key(path, "public") from e
    if not isinstance(key, _cryptography(_ED25519).Ed25519PublicKey):
        raise _no_key(path, "public")
    return cast("Ed25519PublicKey", key)


def _cryptography(module: str) -> ModuleType:
    """A module of ``cryptography``, which is an extra."""
    try:
        return importlib.import_module(f"cryptography.{module}")
    except ImportError as e:
        raise MissingExtraError("cryptography", "sign") from e


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as e:
        raise UsageError(f"cannot read the key {path}: {e.strerror}", hint="name a PEM file") from e


def _no_key(path: Path, kind: str) -> UsageError:
    command = f"openssl genpkey -algorithm ed25519 -out {path.name}"
    if kind == "public":
        command = f"openssl pkey -in KEY.pem -pubout -out {path.name}"
    return UsageError(f"{path} is no unencrypted Ed25519 {kind} key in PEM", hint=f"make one: {command}")
