"""Comparing the ports of servers that are PCI devices with the devices that are held for them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from kilonova.audit.differences import Difference, Kind
from kilonova.domain.instance import Instance
from kilonova.shapes.pci import HeldDevice
from kilonova.shapes.port_devices import by_port


class Seen(Protocol):
    """The part of a look that is about them. own_devices: by consumer."""

    @property
    def servers(self) -> dict[str, tuple[str, Instance]]: ...
    @property
    def own_devices(self) -> dict[str, tuple[HeldDevice, ...]]: ...


def compare_port_devices(look: Seen) -> Iterator[Difference]:
    """A server on a host holds the device that each of its ports is, and none for any other port."""
    for uuid, (cell, server) in look.servers.items():
        held = by_port(look.own_devices.get(uuid, ()))
        ports = {vif.id: vif for vif in server.network_info if vif.is_device}
        about = {"subject": uuid, "host": server.host or "", "cell": cell}
        for port_id in sorted(held.keys() - ports.keys()):
            yield Difference(
                kind=Kind.PORT_DEVICE_LEFT, object=f"{uuid}/{port_id}", **about,
                what=f"server {uuid} holds PCI device {held[port_id].address} for port {port_id}, which it does not "
                     "have",
            )
        for port_id in sorted(ports.keys() - held.keys()) if server.host is not None else ():
            yield Difference(
                kind=Kind.PORT_DEVICE_MISSING, object=port_id, **about,
                what=f"port {port_id} of server {uuid} is to be a PCI device of {server.host}, and none is held for it",
            )
