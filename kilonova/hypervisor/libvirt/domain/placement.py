"""On which CPUs and memory of the host a guest runs."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

from kilonova.hypervisor.libvirt.domain.element import add, make

REALTIME_PRIORITY = 1


@dataclass(frozen=True, kw_only=True)
class VcpuPin:
    """A CPU of the guest, and those of the host that it may run on."""

    vcpu: int
    cpus: tuple[int, ...]

    def add_to(self, tune: ET.Element) -> None:
        add(tune, "vcpupin", vcpu=self.vcpu, cpuset=cpu_list(self.cpus))


@dataclass(frozen=True, kw_only=True)
class CellMemory:
    """A NUMA cell of the guest, and that of the host which has its memory."""

    cell: int
    host_cell: int

    def add_to(self, tune: ET.Element) -> None:
        add(tune, "memnode", cellid=self.cell, mode="strict", nodeset=self.host_cell)


@dataclass(frozen=True, kw_only=True)
class CpuPlacement:
    """On which CPUs of its host a guest runs.

    Args:
        emulator: CPUs for the emulator's own threads. realtime: CPUs of the guest that no other work interrupts.
    """

    pins: tuple[VcpuPin, ...]
    emulator: tuple[int, ...]
    realtime: tuple[int, ...] | None = None

    def add_to(self, tune: ET.Element) -> None:
        for pin in self.pins:
            pin.add_to(tune)
        add(tune, "emulatorpin", cpuset=cpu_list(self.emulator))
        if self.realtime:
            add(tune, "vcpusched", vcpus=cpu_list(self.realtime), scheduler="fifo", priority=REALTIME_PRIORITY)


@dataclass(frozen=True, kw_only=True)
class MemoryPlacement:
    """From which cells of its host the memory of a guest comes: from these, or not at all."""

    cells: tuple[CellMemory, ...]

    def element(self) -> ET.Element:
        tune = make("numatune")
        add(tune, "memory", mode="strict", nodeset=cpu_list(sorted({one.host_cell for one in self.cells})))
        for one in self.cells:
            one.add_to(tune)
        return tune


def cpu_list(cpus: tuple[int, ...] | list[int]) -> str:
    return ",".join(map(str, cpus))
