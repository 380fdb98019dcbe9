"""The guest's processor."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Literal

from kilonova.hypervisor.libvirt.domain.element import add, make


@dataclass(frozen=True, kw_only=True)
class Cpu:
    """mode: as libvirt names it. Every vcpu is a socket of its own."""

    mode: Literal["host-model", "host-passthrough", "maximum"]
    vcpus: int

    def element(self) -> ET.Element:
        cpu = make("cpu", mode=self.mode)
        if self.mode == "host-model":
            cpu.set("check", "partial")
        add(cpu, "topology", sockets=self.vcpus, dies=1, cores=1, threads=1)
        return cpu
