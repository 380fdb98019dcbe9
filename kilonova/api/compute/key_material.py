"""Keys of users: their fingerprints, and pairs made for those who bring none. Only public keys are kept."""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from datetime import UTC, datetime, timedelta

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from kilonova.domain.errors import InvalidInput

BITS = 2048
"""Of a generated RSA key: the kind that every guest takes, Windows among them."""
CERTIFICATE_DAYS = 3650
PRINCIPAL_NAME = ObjectIdentifier("1.3.6.1.4.1.311.20.2.3")
"""User principal name in a certificate; Windows guests map it to an account."""


class KeyPair(msgspec.Struct, frozen=True, kw_only=True):
    """A new pair. private_key: PEM, handed to the user once."""

    public_key: str
    private_key: str
    fingerprint: str


def ssh_fingerprint(public_key: str) -> str:
    """MD5 of an OpenSSH public key, as pairs of digits with colons.

    Raises:
        InvalidInput: the text is not one public key.
    """
    text = public_key.strip()
    words = text.split(maxsplit=2)
    if len(words) < 2 or "\n" in text or "\r" in text:
        raise _invalid("it is not one line of an OpenSSH public key")
    try:
        blob = base64.b64decode(words[1], validate=True)
    except (binascii.Error, ValueError) as error:
        raise _invalid("its data is not base64") from error
    kind = words[0].encode()
    if not blob.startswith(struct.pack(">I", len(kind)) + kind):
        raise _invalid("its data does not fit its type")
    if not kind.startswith(b"sk-"):
        try:
            serialization.load_ssh_public_key(text.encode())
        except (ValueError, UnsupportedAlgorithm) as error:
            raise _invalid("its data cannot be read") from error
    return _digits(hashlib.md5(blob, usedforsecurity=False).digest())


def x509_fingerprint(certificate: str) -> str:
    """SHA-1 of a PEM certificate, as pairs of digits with colons. Raises InvalidInput."""
    try:
        found = x509.load_pem_x509_certificate(certificate.encode())
    except ValueError as error:
        raise _invalid("it is not a PEM certificate") from error
    return _digits(found.fingerprint(hashes.SHA1()))


def _invalid(reason: str) -> InvalidInput:
    return InvalidInput(f"Keypair data is invalid: {reason}.")


def _digits(digest: bytes) -> str:
    return digest.hex(":")


def generate_ssh() -> KeyPair:
    """A new RSA pair. Takes a good part of a second of CPU: call it in a thread."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=BITS)
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    public_key = f"{public.decode()} Generated-by-Kilonova"
    return KeyPair(public_key=public_key, private_key=_pem(key), fingerprint=ssh_fingerprint(public_key))


def generate_x509(user_id: str, now: float) -> KeyPair:
    """A new RSA key and a certificate of its own signing, with which the user may log in to Windows guests.

    Takes a good part of a second of CPU: call it in a thread.
    """
    key = rsa.generate_private_key(public_exponent=65537, key_size=BITS)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, user_id[:64])])
    principal = x509.OtherName(PRINCIPAL_NAME, _utf8_string(f"{user_id}@localhost"))
    start = datetime.fromtimestamp(now, UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - timedelta(minutes=5))
        .not_valid_after(start + timedelta(days=CERTIFICATE_DAYS))
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([principal]), critical=False)
        .sign(key, hashes.SHA256())
    )
    text = certificate.public_bytes(serialization.Encoding.PEM).decode()
    return KeyPair(public_key=text, private_key=_pem(key), fingerprint=x509_fingerprint(text))


def _utf8_string(text: str) -> bytes:
    """A text as DER: tag 12, the length in as few bytes as it needs, the bytes."""
    data = text.encode()
    length = len(data).to_bytes((len(data).bit_length() + 7) // 8 or 1, "big")
    size = length if len(data) < 128 else bytes([0x80 | len(length)]) + length
    return b"\x0c" + size + data


def _pem(key: rsa.RSAPrivateKey) -> str:
    form = serialization.PrivateFormat.TraditionalOpenSSL
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()
