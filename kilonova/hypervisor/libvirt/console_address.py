"""Where the consoles of a running guest listen."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import libvirt  # type: ignore[import-untyped]

from kilonova.domain.console import ConsoleAddress, ConsoleKind
from kilonova.domain.errors import Conflict, NotFound, NotSupported
from kilonova.hypervisor.libvirt import power


def find(connection: libvirt.virConnect, uuid: str, kind: ConsoleKind, serial_socket: Path) -> ConsoleAddress:
    """Read it from what libvirt says of the guest as it runs.

    Args:
        serial_socket: where the guest's serial console is, as this process finds it.

    Raises:
        NotFound: no such guest. Conflict: it is off. NotSupported: it has no console of this kind.
    """
    domain = power.find(connection, uuid)
    if domain is None:
        raise NotFound(f"This host has no guest of instance {uuid}.")
    if not domain.isActive():
        raise Conflict(f"The guest of instance {uuid} does not run.")
    devices = ET.fromstring(domain.XMLDesc()).find("devices")
    assert devices is not None
    if kind is ConsoleKind.SERIAL and devices.find("serial[@type='unix']") is not None:
        return ConsoleAddress(internal_access_path=str(serial_socket))
    graphics = devices.find(f"graphics[@type='{kind}']")
    if graphics is None:
        raise NotSupported(f"The guest of instance {uuid} has no {kind} console.")
    port, tls_port = _port(graphics.get("port")), _port(graphics.get("tlsPort"))
    if port is None and tls_port is None:
        raise Conflict(f"The guest of instance {uuid} has just ended.")
    return ConsoleAddress(host=graphics.get("listen", ""), port=port, tls_port=tls_port)


def _port(text: str | None) -> int | None:
    """libvirt says -1 where there is none."""
    return int(text) if text is not None and int(text) > 0 else None
