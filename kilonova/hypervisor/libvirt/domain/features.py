"""What the machine offers besides devices: power management, and what one kind of guest or emulator needs."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

from kilonova.hypervisor.libvirt.domain.element import add, make


@dataclass(frozen=True, kw_only=True)
class Features:
    """What the machine offers.

    Args:
        tb_cache_mib: MiB that the emulator may fill with translated code. hyperv: what makes Windows run well.
        smm: the mode of the processor that secure boot needs. hidden: the guest is not told that KVM runs it.
        pmu: whether the guest may count events of its processor, None for what is usual.
        own_apic: the I/O APIC is QEMU's.
    """

    tb_cache_mib: int | None = None
    hyperv: bool = False
    smm: bool = False
    hidden: bool = False
    own_apic: bool = False
    pmu: bool | None = None

    def element(self) -> ET.Element:
        features = make("features")
        add(features, "acpi")
        add(features, "apic")
        if self.hyperv:
            hyperv = add(features, "hyperv", mode="custom")
            add(hyperv, "relaxed", state="on")
            add(hyperv, "vapic", state="on")
            add(hyperv, "spinlocks", state="on", retries=8191)
        if self.hidden:
            add(add(features, "kvm"), "hidden", state="on")
        if self.pmu is not None:
            add(features, "pmu", state="on" if self.pmu else "off")
        if self.smm:
            add(features, "smm", state="on")
        if self.own_apic:
            add(features, "ioapic", driver="qemu")
        if self.tb_cache_mib is not None:
            add(add(features, "tcg"), "tb-cache", self.tb_cache_mib, unit="MiB")
        return features
