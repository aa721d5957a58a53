"""Signatures of bundles: who made one, where hashes only say that it is whole.

A signature is Ed25519 over `bundle.json`, which holds the hashes of all other files. Keys are files
as `ssh-keygen -t ed25519` or `openssl genpkey -algorithm ed25519` write them; the `cryptography`
library, of the extra `sign_bundle`, does the rest.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.bundles.formats import MANIFEST, SIGNATURE
from trainers.files import read_whole

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

CONTEXT = b"equisearch bundle 1\n"  # so that a signature of anything else never fits
LARGEST_FILE = 100_000  # bytes of a key or signature file
MISSING = (
    "signatures need the cryptography library, which is not installed; install the extra: "
    "pip install 'equisearch[sign]'"
)


def sign_bundle(folder: Path, key: Path) -> Path:
    """Signs the bundle in `folder` with the private key in a file; the path of the signature.
    Raises ValueError for a file that holds no such key, or without `cryptography`.
    """
    signature = private_key(key).sign(CONTEXT + read_whole(folder / MANIFEST))
    path = folder / SIGNATURE
    path.write_bytes(base64.encodebytes(signature))
    return path


def signed_by(folder: Path, key: Path) -> str | None:
    """None where the bundle in `folder` is signed with the private half of the public key in a
    file, else why it is not. Raises ValueError as `sign_bundle`.
    """
    public, path = public_key(key), folder / SIGNATURE
    from cryptography.exceptions import InvalidSignature

    if not path.is_file():
        return f"it is not signed: {SIGNATURE} is missing"
    try:
        signature = base64.b64decode(read_whole(path)[:LARGEST_FILE])
        public.verify(signature, CONTEXT + read_whole(folder / MANIFEST))
    except (InvalidSignature, binascii.Error):
        return f"{SIGNATURE} is not by the key in {key}, or {MANIFEST} was changed since"
    return None


def private_key(path: Path) -> Ed25519PrivateKey:
    """The private key in a file, PEM or OpenSSH, without a passphrase. Raises ValueError."""
    content = _read(path, "private")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    is_ssh = b"OPENSSH PRIVATE KEY" in content
    load = serialization.load_ssh_private_key if is_ssh else serialization.load_pem_private_key
    try:
        key = load(content, password=None)
    except TypeError:
        raise ValueError(
            f"the key in {path} has a passphrase; give one without, such as `ssh-keygen -t ed25519 "
            "-N '' -f bundle-key` writes"
        ) from None
    except Exception as error:  # of any type, on files that hold anything
        raise ValueError(_wrong(path, "private", error)) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(_wrong(path, "private", None))
    return key


def public_key(path: Path) -> Ed25519PublicKey:
    """The public key in a file, PEM or OpenSSH. Raises ValueError."""
    content = _read(path, "public")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    is_pem = content.lstrip().startswith(b"-----BEGIN")
    load = serialization.load_pem_public_key if is_pem else serialization.load_ssh_public_key
    try:
        key = load(content)
    except Exception as error:  # of any type, on files that hold anything
        raise ValueError(_wrong(path, "public", error)) from None
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError(_wrong(path, "public", None))
    return key


def _read(path: Path, what: str) -> bytes:
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise ValueError(MISSING) from None
    try:
        with open(path.expanduser(), "rb") as file:  # a pipe may be given, a device may not end
            return file.read(LARGEST_FILE)
    except OSError as error:
        raise ValueError(f"the {what} key {path} cannot be read: {error.strerror}") from None


def _wrong(path: Path, what: str, error: Exception | None) -> str:
    reason = f" ({type(error).__name__})" if error else ""
    name = "bundle-key" if what == "private" else "bundle-key.pub"
    return (
        f"{path} holds no {what} Ed25519 key{reason}; `ssh-keygen -t ed25519 -f bundle-key` writes "
        f"a pair, of which {name} is the {what} one"
    )
