"""Certificates for storage daemons and for those who use them."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

NAMES = (x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
"""Of both ends."""


class Authority:
    """Signs certificates for both ends of a connection."""

    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = self._signed(name, self._key, ca=True)

    def _signed(self, name: str, key: ec.EllipticCurvePrivateKey, *, ca: bool = False) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        issuer = subject if ca else self._certificate.subject
        made = (
            x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
            .serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if not ca:
            made = made.add_extension(x509.SubjectAlternativeName(NAMES), critical=False)
        return made.sign(self._key, hashes.SHA256())

    def write(self, directory: Path, end: Literal["server", "client"]) -> tuple[str, str]:
        """Certificates of one end. Returns arguments of qemu-io that use them."""
        directory.mkdir()
        key = ec.generate_private_key(ec.SECP256R1())
        pem = serialization.Encoding.PEM
        (directory / "ca-cert.pem").write_bytes(self._certificate.public_bytes(pem))
        (directory / f"{end}-cert.pem").write_bytes(self._signed(end, key).public_bytes(pem))
        (directory / f"{end}-key.pem").write_bytes(key.private_bytes(
            pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ))
        return "--object", f"tls-creds-x509,id=tls,dir={directory},endpoint={end}"
