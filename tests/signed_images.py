"""Signed images for tests: certificates made on the spot, in a directory as an operator keeps it."""

from __future__ import annotations

import base64
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, padding, rsa

from kilonova.domain.clock import SystemClock
from kilonova.domain.image import Image
from kilonova.imaging.signatures import ImageSignatures, SignatureOptions

SHA256 = hashes.SHA256()


class Signer:
    """A certificate with its key, and what both can do."""

    def __init__(self, directory: Path, key: Any, key_type: str, *, issuer: Signer | None = None, ca: bool = False,
                 days: tuple[int, int] = (-1, 1), signs_others: bool = True) -> None:
        self.id = str(uuid.uuid4())
        self.key, self.key_type = key, key_type
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, self.id)])
        now = datetime.now(UTC)
        made = (
            x509.CertificateBuilder().subject_name(self.name).issuer_name(issuer.name if issuer else self.name)
            .public_key(key.public_key()).serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=days[0])).not_valid_after(now + timedelta(days=days[1]))
        )
        if ca:
            usage = dict.fromkeys(("digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
                                   "key_agreement", "crl_sign", "encipher_only", "decipher_only"), False)
            made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            made = made.add_extension(x509.KeyUsage(key_cert_sign=signs_others, **usage), critical=True)
        self.pem = made.sign(issuer.key if issuer else key, SHA256).public_bytes(serialization.Encoding.PEM)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{self.id}.pem").write_bytes(self.pem)

    def sign(self, data: bytes, method: hashes.HashAlgorithm = SHA256) -> bytes:
        if isinstance(self.key, rsa.RSAPrivateKey):
            return self.key.sign(data, padding.PSS(padding.MGF1(method), padding.PSS.MAX_LENGTH), method)
        if isinstance(self.key, ec.EllipticCurvePrivateKey):
            return self.key.sign(data, ec.ECDSA(method))
        assert isinstance(self.key, dsa.DSAPrivateKey)
        return self.key.sign(data, method)

    def properties(self, data: bytes, **changes: str) -> dict[str, str]:
        """What an image of these bytes says of its signature."""
        method = changes.get("img_signature_hash_method", "SHA-256")
        return {
            "img_signature": base64.b64encode(self.sign(data, getattr(hashes, method.replace("-", ""))())).decode(),
            "img_signature_hash_method": method, "img_signature_key_type": self.key_type,
            "img_signature_certificate_uuid": self.id, **changes,
        }

    def signed(self, image: Image, data: bytes, **changes: str) -> Image:
        """The image as it says that it is signed."""
        return msgspec.structs.replace(image, properties=image.properties | self.properties(data, **changes))


def elliptic(directory: Path, **more: Any) -> Signer:
    """The kind of signer that is made fastest."""
    return Signer(directory, ec.generate_private_key(ec.SECP384R1()), "ECC_SECP384R1", **more)


def rules(directory: Path, **options: Any) -> ImageSignatures:
    return ImageSignatures(SignatureOptions(**options), directory, SystemClock())
