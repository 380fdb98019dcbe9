"""Where the service may fetch image data from on behalf of a caller.

A caller who names a URI makes this machine ask for it, so what the machine can reach and the caller cannot is
refused: the machine itself, link-local addresses (with the metadata services of clouds), and files.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec

from kilonova.domain.errors import InvalidInput

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

CLOUD_METADATA = frozenset({ipaddress.ip_address("fd00:ec2::254"), ipaddress.ip_address("100.100.100.200")})
"""Metadata addresses that lie outside the link-local range."""

DEFAULT_PORTS = {"http": 80, "https": 443}


class ImportRules(msgspec.Struct, frozen=True, kw_only=True):
    """What web-download may fetch.

    Args:
        schemes: of http and https.
        ports: TCP ports; empty for all.
        networks: networks to allow that are refused by default, such as 127.0.0.0/8.
        directories: files below these may be read with file:// URIs.
    """

    schemes: tuple[str, ...] = ("http", "https")
    ports: tuple[int, ...] = (80, 443)
    networks: tuple[str, ...] = ()
    directories: tuple[Path, ...] = ()


def check_uri(uri: str, rules: ImportRules) -> None:
    """Check what can be told from the URI itself; names are resolved when it is fetched. Raises InvalidInput."""
    if any(character.isspace() or not character.isprintable() for character in uri):
        raise InvalidInput("The URI to import from holds blanks or control characters.")
    try:
        parts = urlsplit(uri)
        port = parts.port
    except ValueError as error:
        raise InvalidInput(f"The URI to import from is malformed: {error}.") from error
    if parts.scheme == "file":
        local_file(uri, rules)
        return
    if parts.scheme not in rules.schemes or parts.scheme not in DEFAULT_PORTS:
        raise InvalidInput(f"Images cannot be imported from {parts.scheme or 'relative'} URIs.")
    if not parts.hostname or parts.username is not None or parts.password is not None:
        raise InvalidInput("The URI to import from must name a host and no user.")
    if rules.ports and (port or DEFAULT_PORTS[parts.scheme]) not in rules.ports:
        raise InvalidInput(f"Images cannot be imported from port {port}.")


def check_address(address: Address, rules: ImportRules) -> None:
    """Raises InvalidInput for an address that callers must not reach through this machine."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if any(address in ipaddress.ip_network(network) for network in rules.networks):
        return
    if (address.is_loopback or address.is_link_local or address.is_multicast or address.is_unspecified
            or address.is_reserved or address in CLOUD_METADATA):
        raise InvalidInput("Images cannot be imported from this host: its address is not allowed.")


def local_file(uri: str, rules: ImportRules) -> Path:
    """The file a file:// URI names. Raises InvalidInput unless it lies below an allowed directory."""
    parts = urlsplit(uri)
    path = Path(unquote(parts.path))
    if parts.netloc not in ("", "localhost") or not path.is_absolute() or "\0" in str(path):
        raise InvalidInput("The file to import from needs an absolute path on this machine.")
    resolved = path.resolve()
    if not any(resolved.is_relative_to(directory.resolve()) for directory in rules.directories):
        raise InvalidInput("Images cannot be imported from this file: its directory is not allowed.")
    return resolved
