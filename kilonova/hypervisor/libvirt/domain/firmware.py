"""How the guest's machine starts."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

from kilonova.hypervisor.libvirt.domain.element import add


@dataclass(frozen=True, kw_only=True)
class UefiVariables:
    """template: what they are at first. file: the guest's own copy, which libvirt makes."""

    template: str
    file: str

    def add_to(self, os: ET.Element) -> None:
        add(os, "nvram", self.file, template=self.template)


@dataclass(frozen=True, kw_only=True)
class Uefi:
    """UEFI.

    Args:
        loader: the firmware's code. variables: None for a firmware that keeps none.
        secure: nothing is started that is not signed.
    """

    loader: str
    variables: UefiVariables | None
    secure: bool = False

    def add_to(self, os: ET.Element) -> None:
        loader = add(os, "loader", self.loader, readonly=True, type="pflash")
        if self.secure:
            loader.set("secure", "yes")
        if self.variables is None:
            loader.set("stateless", "yes")
        else:
            self.variables.add_to(os)
