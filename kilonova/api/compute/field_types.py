"""Kinds of values that bodies of several resources share. Spec: API-057."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import unicodedata
import uuid
from typing import Any

from kilonova.api.schema import Enum, Integer, MapOf, Reading, Text, nullable


def _printable(text: str) -> bool:
    return text == text.strip() and all(c.isprintable() or unicodedata.category(c) == "Zs" for c in text)


def _is_uuid(text: str) -> bool:
    try:
        return str(uuid.UUID(text)).replace("-", "") == text.lower().replace("-", "")
    except ValueError:
        return False


def is_ipv4(text: str) -> bool:
    """Whether a text is an IPv4 address."""
    try:
        return ipaddress.IPv4Address(text) is not None
    except ValueError:
        return False


def is_ipv6(text: str) -> bool:
    """Whether a text is an IPv6 address (without a zone)."""
    try:
        return "%" not in text and ipaddress.IPv6Address(text) is not None
    except ValueError:
        return False


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return False
    return True


class _AddressV6(Text):
    """An IPv6 address in any form, read as its short one."""

    def read(self, value: Any, reading: Reading) -> Any:
        return str(ipaddress.IPv6Address(super().read(value, reading)))


NAME = Text(1, 255, format=("name: printable, no white space at its ends", _printable), trimmed_when_lenient=True)
DESCRIPTION = nullable(Text(0, 255, format=("text without control characters", lambda text: "\0" not in text)))
UUID = Text(format=("uuid", _is_uuid))
IPV4 = Text(format=("ipv4", is_ipv4))
IPV6 = _AddressV6(format=("ipv6", is_ipv6))
ADDRESS = Text(format=("ip address", lambda text: is_ipv4(text) or is_ipv6(text)))
BASE64 = Text(format=("base64", _is_base64))
USER_DATA = Text(0, 65535, format=("base64", _is_base64))
METADATA_KEY = r"[a-zA-Z0-9-_:. ]{1,255}"
METADATA_VALUE = Text(0, 255)
METADATA = MapOf(METADATA_KEY, METADATA_VALUE)
TAG = Text(1, 60, r"[^,/]*")
HOST = Text(1, 255, r"[a-zA-Z0-9-._]*")
HOSTNAME = Text(2, 63, r"[a-zA-Z0-9]+[a-zA-Z0-9-]*[a-zA-Z0-9]+")
FULL_HOSTNAME = Text(1, 255, r"[a-zA-Z0-9-._]*")
DISK_CONFIG = Enum("AUTO", "MANUAL")
POSITIVE = Integer(1)
