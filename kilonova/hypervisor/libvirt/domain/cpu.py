"""The guest's processor."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Literal

from kilonova.hypervisor.libvirt.domain.element import add, make
from kilonova.hypervisor.libvirt.domain.placement import cpu_list


@dataclass(frozen=True, kw_only=True)
class NumaCell:
    """A NUMA cell that the guest sees."""

    id: int
    cpus: tuple[int, ...]
    memory_mib: int

    def add_to(self, numa: ET.Element) -> None:
        add(numa, "cell", id=self.id, cpus=cpu_list(self.cpus), memory=self.memory_mib, unit="MiB")


@dataclass(frozen=True, kw_only=True)
class AddressSpace:
    """How many bits physical addresses have."""

    mode: Literal["passthrough", "emulate"]
    bits: int | None = None

    def add_to(self, cpu: ET.Element) -> None:
        add(cpu, "maxphysaddr", mode=self.mode, bits=self.bits)


@dataclass(frozen=True, kw_only=True)
class Cpu:
    """mode: as libvirt names it."""

    mode: Literal["host-model", "host-passthrough", "maximum"]
    sockets: int
    cores: int = 1
    threads: int = 1
    addresses: AddressSpace | None = None
    cells: tuple[NumaCell, ...] | None = None

    @property
    def vcpus(self) -> int:
        return self.sockets * self.cores * self.threads

    def element(self) -> ET.Element:
        cpu = make("cpu", mode=self.mode)
        if self.mode == "host-model":
            cpu.set("check", "partial")
        add(cpu, "topology", sockets=self.sockets, dies=1, cores=self.cores, threads=self.threads)
        if self.addresses is not None:
            self.addresses.add_to(cpu)
        if self.cells:
            numa = add(cpu, "numa")
            for cell in self.cells:
                cell.add_to(numa)
        return cpu
