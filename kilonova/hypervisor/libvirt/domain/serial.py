"""The serial console."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

from kilonova.hypervisor.libvirt.domain.element import add, make


@dataclass(frozen=True, kw_only=True)
class SerialConsole:
    """A serial port that can be joined through a socket; the first one is recorded in a file.

    A socket of the file system needs no port number, and whoever may open it is decided by the directory it lies
    in. QEMU serves one client at a time.
    """

    socket: str
    log: str | None = None
    port: int = 0

    def element(self) -> ET.Element:
        serial = make("serial", type="unix")
        add(serial, "source", mode="bind", path=self.socket)
        if self.log is not None:
            add(serial, "log", file=self.log, append="on")
        add(serial, "target", port=self.port)
        return serial
