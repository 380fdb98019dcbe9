"""How the guest's machine starts."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

from kilonova.hypervisor.libvirt.domain.element import add


@dataclass(frozen=True, kw_only=True)
class Uefi:
    """loader: the firmware's code. template: its empty variables. variables: the guest's own copy of those."""

    loader: str
    template: str
    variables: str

    def add_to(self, os: ET.Element) -> None:
        add(os, "loader", self.loader, readonly=True, type="pflash")
        add(os, "nvram", self.variables, template=self.template)
