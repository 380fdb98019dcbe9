"""Smaller wishes about a guest's machine: timers, ports, entropy, watchdog, IOMMU."""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

from kilonova.domain.errors import InvalidInput
from kilonova.shapes.asked import Asked, Parse, boolean, whole, word
from kilonova.shapes.kernel import Kernel, kernel_of

Watchdog = Literal["none", "pause", "poweroff", "reset"]
Iommu = Literal["intel", "smmuv3", "virtio"]
MOST_SERIAL_PORTS = 4
"""What a PC has addresses and interrupts for."""
_WATCHDOG: Parse[Watchdog | Literal["disabled"]] = word(*get_args(Watchdog), "disabled")
_IOMMU: Parse[Iommu | Literal["auto"]] = word(*get_args(Iommu), "auto")
_ENTROPY: Parse[str] = word("virtio")
_CONFIG_DRIVE: Parse[str] = word("mandatory", "optional")
_ARCHITECTURE: Parse[str] = word("x86_64", "aarch64", "ppc64le", "mipsel", "s390x", "riscv64")
RATE_PERIOD = 1000
"""Milliseconds, where a flavor names a rate without its period."""


class EntropyRate(msgspec.Struct, frozen=True, kw_only=True):
    """At most so many bytes in a period of milliseconds."""

    bytes: int
    period: int = RATE_PERIOD


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """The rest of the machine.

    Args:
        watchdog: what happens to a guest that does not feed it; None for no watchdog.
        entropy: there is a source of randomness. entropy_rate: None for no limit.
        agent: there is a channel for an agent in the guest. quiesce: a snapshot without its help fails.
        iommu: None for none.
        kernel: that is started directly; None to boot from a disk. emulated: an architecture other than the host's.
    """

    watchdog: Watchdog | None = None
    entropy: bool = True
    entropy_rate: EntropyRate | None = None
    agent: bool = True
    quiesce: bool = False
    boot_menu: bool = False
    serial_ports: int = 1
    hpet: bool = False
    iommu: Iommu | None = None
    windows: bool = False
    kernel: Kernel | None = None
    emulated: str = ""

    @property
    def traits(self) -> dict[str, str]:
        """What a host must be able to do, and what asks for it."""
        wanted = {}
        if self.iommu is not None:
            wanted[f"COMPUTE_VIOMMU_MODEL_{self.iommu.upper()}"] = "hw:viommu_model"
        if self.emulated:
            wanted[f"COMPUTE_ARCH_{self.emulated.upper()}"] = "hw_emulation_architecture"
        return wanted


def machine_shape(asked: Asked) -> Machine:
    """Raises InvalidInput: a wrong value, or a contradiction."""
    asked.of_image("hw:rng_model", _ENTROPY)
    asked.of_image("img:config_drive", _CONFIG_DRIVE)
    return Machine(
        watchdog=_watchdog(asked), entropy=asked.of_flavor("hw_rng:allowed", boolean) is not False,
        entropy_rate=_entropy_rate(asked), agent=asked.of_image("hw:qemu_guest_agent", boolean) is not False,
        quiesce=asked.of_image("os:require_quiesce", boolean) or False,
        boot_menu=asked.flavor_first("hw:boot_menu", boolean) or False, serial_ports=_serial_ports(asked),
        hpet=asked.of_image("hw:time_hpet", boolean) or False, iommu=_iommu(asked),
        windows=asked.properties.get("os_type", "").lower() == "windows",
        kernel=kernel_of(asked), emulated=asked.of_image("hw:emulation_architecture", _ARCHITECTURE) or "",
    )


def _watchdog(asked: Asked) -> Watchdog | None:
    """The flavor says what is usual, the image decides."""
    found = asked.image_first("hw:watchdog_action", _WATCHDOG)
    return None if found == "disabled" else found


def _entropy_rate(asked: Asked) -> EntropyRate | None:
    amount = asked.of_flavor("hw_rng:rate_bytes", whole())
    period = asked.of_flavor("hw_rng:rate_period", whole())
    return EntropyRate(bytes=amount, period=period or RATE_PERIOD) if amount else None


def _serial_ports(asked: Asked) -> int:
    """The flavor says how many there may be, and are if the image does not say."""
    count = whole(0, MOST_SERIAL_PORTS)
    most, wanted = asked.of_flavor("hw:serial_port_count", count), asked.of_image("hw:serial_port_count", count)
    if wanted is not None and most is not None and wanted > most:
        raise InvalidInput(f"Image property hw_serial_port_count = {wanted} exceeds the flavor's limit of {most}.")
    found = most if wanted is None else wanted
    return 1 if found is None else found


def _iommu(asked: Asked) -> Iommu | None:
    found = asked.agreed("hw:viommu_model", _IOMMU)
    machine = asked.properties.get("hw_machine_type", "q35")
    if found == "auto":
        return "smmuv3" if machine.startswith("virt") else "intel" if "q35" in machine else "virtio"
    if found == "intel" and "q35" not in machine:
        raise InvalidInput("An IOMMU of the model intel needs the machine type q35.")
    return found
