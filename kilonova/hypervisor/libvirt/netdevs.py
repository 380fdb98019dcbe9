"""Network devices of the host, and the PCI devices that they belong to."""

from __future__ import annotations

from pathlib import Path

from kilonova.domain.errors import TryElsewhere

SYSFS = Path("/sys")


def netdev_of(address: str, root: Path = SYSFS) -> str:
    """The network device of a PCI device, which has one while its driver on the host holds it.

    Raises:
        TryElsewhere: it has none.
    """
    found = sorted(one.name for one in (root / "bus/pci/devices" / address / "net").glob("*"))
    if not found:
        raise TryElsewhere(
            f"PCI device {address} has no network device on this host, which a port of type macvtap needs.",
            hint="load its driver on the host",
        )
    return found[0]


def address_of(netdev: str, root: Path = SYSFS) -> str:
    """The PCI device of a network device, "" if it belongs to none."""
    device = root / "class/net" / netdev / "device"
    return device.resolve().name if device.exists() else ""
