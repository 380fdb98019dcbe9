"""What the machine tells its guest about itself."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

from kilonova.hypervisor.libvirt.domain.element import add, make

PRODUCT = "OpenStack Compute"
"""The name by which the start-up agents in images know that there is an OpenStack metadata service."""


@dataclass(frozen=True, kw_only=True)
class Smbios:
    """uuid: of the instance."""

    version: str
    uuid: str

    def element(self) -> ET.Element:
        sysinfo = make("sysinfo", type="smbios")
        system = add(sysinfo, "system")
        for name, value in (
            ("manufacturer", "Kilonova"), ("product", PRODUCT), ("version", self.version), ("serial", self.uuid),
            ("uuid", self.uuid), ("family", "Virtual Machine"),
        ):
            add(system, "entry", value, name=name)
        return sysinfo
