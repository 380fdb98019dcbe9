"""A whole guest."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Literal

from kilonova.hypervisor.libvirt.domain.clock import GuestClock
from kilonova.hypervisor.libvirt.domain.cpu import Cpu
from kilonova.hypervisor.libvirt.domain.element import Device, add, make
from kilonova.hypervisor.libvirt.domain.features import Features
from kilonova.hypervisor.libvirt.domain.firmware import Uefi
from kilonova.hypervisor.libvirt.domain.kernel import DirectKernel
from kilonova.hypervisor.libvirt.domain.limits import CpuLimits
from kilonova.hypervisor.libvirt.domain.mark import Mark
from kilonova.hypervisor.libvirt.domain.memory import MemoryBacking
from kilonova.hypervisor.libvirt.domain.placement import CpuPlacement, MemoryPlacement, cpu_list
from kilonova.hypervisor.libvirt.domain.smbios import Smbios

BOOT_MENU_TIMEOUT = 5000
"""Milliseconds that the menu is shown."""


@dataclass(frozen=True, kw_only=True)
class Domain:
    """Everything libvirt is told of a guest.

    Args:
        virt: `kvm`, or `qemu` where QEMU translates the guest's instructions.
        machine: as QEMU names it.
        cpuset: CPUs of the host on which the guest may run, None for all. placement, memory_placement: its own place.
        firmware: None for a BIOS. kernel: None to boot from a disk. boot_menu: it shows one.
    """

    virt: Literal["kvm", "qemu"]
    name: str
    uuid: str
    memory_mib: int
    arch: str
    machine: str
    cpu: Cpu
    mark: Mark
    smbios: Smbios
    firmware: Uefi | None = None
    kernel: DirectKernel | None = None
    boot_menu: bool = False
    features: Features = Features()
    clock: GuestClock = GuestClock()
    cpu_limits: CpuLimits | None = None
    cpuset: tuple[int, ...] | None = None
    placement: CpuPlacement | None = None
    memory_placement: MemoryPlacement | None = None
    backing: MemoryBacking | None = None
    devices: tuple[Device, ...] = ()

    def element(self) -> ET.Element:
        domain = make("domain", type=self.virt)
        add(domain, "name", self.name)
        add(domain, "uuid", self.uuid)
        add(domain, "metadata").append(self.mark.element())
        add(domain, "memory", self.memory_mib, unit="MiB")
        add(domain, "currentMemory", self.memory_mib, unit="MiB")
        if self.backing is not None:
            domain.append(self.backing.element())
        add(domain, "vcpu", self.cpu.vcpus, placement="static", cpuset=cpu_list(self.cpuset) if self.cpuset else None)
        if self.cpu_limits is not None or self.placement is not None:
            tune = add(domain, "cputune")
            for part in (self.cpu_limits, self.placement):
                if part is not None:
                    part.add_to(tune)
        if self.memory_placement is not None:
            domain.append(self.memory_placement.element())
        domain.append(self.smbios.element())
        os = add(domain, "os")
        add(os, "type", "hvm", arch=self.arch, machine=self.machine)
        if self.firmware is not None:
            self.firmware.add_to(os)
        if self.kernel is not None:
            self.kernel.add_to(os)
        if self.boot_menu:
            add(os, "bootmenu", enable=True, timeout=BOOT_MENU_TIMEOUT)
        add(os, "smbios", mode="sysinfo")
        domain.extend([self.features.element(), self.cpu.element(), self.clock.element()])
        for tag, action in (("on_poweroff", "destroy"), ("on_reboot", "restart"), ("on_crash", "destroy")):
            add(domain, tag, action)
        devices = add(domain, "devices")
        devices.extend(device.element() for device in self.devices)
        return domain

    def xml(self) -> str:
        """As libvirt takes it."""
        return ET.tostring(self.element(), encoding="unicode")
