"""A kernel that is started without a boot loader."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

from kilonova.hypervisor.libvirt.domain.element import add


@dataclass(frozen=True, kw_only=True)
class DirectKernel:
    """Paths as QEMU finds them; ramdisk: None for none."""

    path: str
    ramdisk: str | None
    command_line: str

    def add_to(self, os: ET.Element) -> None:
        add(os, "kernel", self.path)
        if self.ramdisk is not None:
            add(os, "initrd", self.ramdisk)
        add(os, "cmdline", self.command_line)
