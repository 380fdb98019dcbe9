"""Signatures of images: who must have signed the bytes of an image, and whether he has.

An image says in its properties how it is signed, and names the certificate of who has signed it. Certificates are
files of the host, so that nobody who can change images can change what they are judged by.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, PSS
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from kilonova.domain.clock import Clock
from kilonova.domain.errors import InvalidInput
from kilonova.domain.image import Image

TRUSTED_CERTS = "COMPUTE_TRUSTED_CERTS"
"""Trait of a host that checks the signature of an image against given certificates."""

SIGNATURE = "img_signature"
HASH_METHOD = "img_signature_hash_method"
KEY_TYPE = "img_signature_key_type"
CERTIFICATE = "img_signature_certificate_uuid"

METHODS: dict[str, hashes.HashAlgorithm] = {
    "SHA-224": hashes.SHA224(), "SHA-256": hashes.SHA256(), "SHA-384": hashes.SHA384(), "SHA-512": hashes.SHA512(),
}

_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,63}")

_Judge = Callable[[bytes, bytes], None]
"""Called with a signature and the digest that it is to be of. Raises InvalidSignature."""


class SignatureOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What images a host makes disks of."""

    verify_glance_signatures: bool = False
    """Demand of all images that they are signed; otherwise only for servers with `trusted_image_certificates`."""
    enable_certificate_validation: bool = False
    """Demand of all signed images that their certificate is trusted, also for servers that name none."""
    default_trusted_certificate_ids: tuple[str, ...] = ()
    """With `enable_certificate_validation`: the certificates that servers trust that name none."""
    certificates: str = ""
    """Directory of certificates, each a file `<id>.pem`; empty for `certificates` in the data directory."""


@dataclass(frozen=True)
class Signature:
    """What the bytes of one image are checked against.

    Args:
        fingerprint: the same for the same signature by the same certificate only.
    """

    image_id: str
    value: bytes
    method: str
    fingerprint: str
    judge: _Judge

    def verify(self, file: Path) -> None:
        """Read a file, piece by piece. Raises InvalidInput: it is not what was signed."""
        with file.open("rb") as data:
            digest = hashlib.file_digest(data, METHODS[self.method].name).digest()
        try:
            self.judge(self.value, digest)
        except InvalidSignature as error:
            raise _failed(self.image_id, "its data is not what was signed") from error


class ImageSignatures:
    """The rules of a host.

    Args:
        directory: of the certificates.
    """

    def __init__(self, options: SignatureOptions, directory: Path, clock: Clock) -> None:
        self._options = options
        self._directory = directory
        self._clock = clock

    def demanded(self, image: Image, trusted: Sequence[str]) -> Signature | None:
        """How the bytes of an image must be signed; None if they need not be. Reads files.

        Args:
            trusted: ids of certificates: the image's is to be one of them, or issued by one of them.

        Raises:
            InvalidInput: it is not signed, or not by a certificate that is known, valid now and trusted.
        """
        options = self._options
        if not trusted and options.enable_certificate_validation:
            trusted = options.default_trusted_certificate_ids
        if not (trusted or options.verify_glance_signatures):
            return None
        properties = image.properties
        missing = [name for name in (SIGNATURE, HASH_METHOD, KEY_TYPE, CERTIFICATE) if not properties.get(name)]
        if missing:
            raise _failed(image.id, f"it lacks {', '.join(missing)}")
        method, key_type = properties[HASH_METHOD], properties[KEY_TYPE]
        if method not in METHODS:
            raise _failed(image.id, f"{HASH_METHOD} must be one of {', '.join(METHODS)}")
        try:
            value = base64.b64decode(properties[SIGNATURE], validate=True)
        except binascii.Error as error:
            raise _failed(image.id, f"{SIGNATURE} is not base64") from error
        certificate = self._load(properties[CERTIFICATE], image.id)
        if not self._is_valid(certificate):
            raise _failed(image.id, f"certificate {properties[CERTIFICATE]} is not valid at this time")
        if (trusted or options.enable_certificate_validation) and not self._is_trusted(certificate, trusted, image.id):
            raise _failed(image.id, f"certificate {properties[CERTIFICATE]} is not trusted")
        judge = _judge(certificate, key_type, METHODS[method])
        if judge is None:
            raise _failed(image.id, f"{KEY_TYPE} is not that of certificate {properties[CERTIFICATE]}")
        parts = (certificate.fingerprint(hashes.SHA256()), method.encode(), key_type.encode(), value)
        fingerprint = hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]
        return Signature(image.id, value, method, fingerprint, judge)

    def _load(self, certificate_id: str, image_id: str) -> x509.Certificate:
        try:
            if not _ID.fullmatch(certificate_id):
                raise FileNotFoundError(certificate_id)
            return x509.load_pem_x509_certificate((self._directory / f"{certificate_id}.pem").read_bytes())
        except FileNotFoundError as error:
            raise _failed(image_id, f"the host does not know certificate {certificate_id}") from error
        except ValueError as error:
            raise _failed(image_id, f"the host's file of certificate {certificate_id} holds none") from error

    def _is_valid(self, certificate: x509.Certificate) -> bool:
        now = datetime.fromtimestamp(self._clock.now(), UTC)
        return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc

    def _is_trusted(self, certificate: x509.Certificate, trusted: Sequence[str], image_id: str) -> bool:
        anchors = [self._load(one, image_id) for one in trusted]
        return any(
            anchor == certificate or (self._is_valid(anchor) and _has_issued(anchor, certificate)) for anchor in anchors
        )


def _failed(image_id: str, why: str) -> InvalidInput:
    return InvalidInput(f"Signature verification of image {image_id} failed: {why}.")


def _has_issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    """Whether a certificate may sign others and has signed that one."""
    try:
        certificate.verify_directly_issued_by(issuer)
        if not issuer.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return False
        return issuer.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound):
        return False


def _judge(certificate: x509.Certificate, key_type: str, method: hashes.HashAlgorithm) -> _Judge | None:
    """None if its key is of another type."""
    key, digest_of = certificate.public_key(), Prehashed(method)
    if isinstance(key, rsa.RSAPublicKey) and key_type == "RSA-PSS":
        padding = PSS(MGF1(method), PSS.AUTO)
        return lambda value, digest: key.verify(value, digest, padding, digest_of)
    if isinstance(key, dsa.DSAPublicKey) and key_type == "DSA":
        return lambda value, digest: key.verify(value, digest, digest_of)
    if isinstance(key, ec.EllipticCurvePublicKey) and key_type == f"ECC_{key.curve.name.upper()}":
        return lambda value, digest: key.verify(value, digest, ec.ECDSA(digest_of))
    return None
