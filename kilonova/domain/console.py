"""Consoles of guests: their kinds and types, where they listen, and the tokens that let somebody in."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class ConsoleKind(StrEnum):
    """The protocol that a console speaks, by its name in the Compute API."""

    VNC = "vnc"
    SPICE = "spice"
    RDP = "rdp"
    SERIAL = "serial"
    MKS = "mks"


SPICE_DIRECT = "spice-direct"
"""SPICE spoken by a client of its own through a proxy that is not a part of this product. Spec: API-599."""

KINDS = {
    "novnc": ConsoleKind.VNC,
    "spice-html5": ConsoleKind.SPICE,
    SPICE_DIRECT: ConsoleKind.SPICE,
    "rdp-html5": ConsoleKind.RDP,
    "serial": ConsoleKind.SERIAL,
    "webmks": ConsoleKind.MKS,
}
"""By type of console, which says how a client uses it. Spec: API-182, CON-11, CON-12, CON-27."""


class ConsoleAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Where a guest's console listens.

    Args:
        host, port: address and TCP port, as seen from the guest's host; port None for a socket of the file system.
        internal_access_path: that socket. tls_port: where the same console is served encrypted.
    """

    host: str = ""
    port: int | None = None
    internal_access_path: str = ""
    tls_port: int | None = None


class ConsoleToken(msgspec.Struct, frozen=True, kw_only=True):
    """The right to use one console of one server until it expires (seconds since the epoch).

    Args:
        type: as in `KINDS`. compute_host: the server's host when the token was made.
        access_url_base: the URL that the token was added to. Spec: CON-13.
    """

    instance_uuid: str
    type: str
    compute_host: str
    address: ConsoleAddress
    access_url_base: str
    expires_at: float
