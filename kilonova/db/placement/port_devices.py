"""The PCI device that a port is, added to what a server holds, and taken from it again."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from kilonova.db.placement.claims import add_use, fits, held_by, lock_existing_consumers
from kilonova.db.placement.in_place import hold, root_of
from kilonova.db.placement.layouts import forget_layout, layouts_on, read_topology, take_place
from kilonova.db.placement.tables import allocations, hosts, inventories
from kilonova.domain.errors import PortDeviceNotFree
from kilonova.domain.pci import DeviceRequest
from kilonova.shapes.host import DoesNotFit, HostTopology, Layout
from kilonova.shapes.pci import HeldDevice
from kilonova.shapes.pci_fitting import choose
from kilonova.shapes.port_devices import PORT

NOTHING = HostTopology(())


def add_device(connection: sa.Connection, consumer: str, host: str, request: DeviceRequest) -> None:
    """Make a consumer hold the device that a port asks for, of a host that it holds something of; repeating it adds
    none. What is chosen fits its NUMA cells there.

    Raises:
        PortDeviceNotFree: there is none left that would do, or the consumer holds nothing there.

    Spec: IFC-17 to IFC-19, IFC-28, IFC-31.
    """
    lock_existing_consumers(connection, consumer)
    found = _place(connection, consumer, host)
    if found is None:
        raise PortDeviceNotFree(_port(request), host, "the server holds nothing of it")
    provider, topology = found
    there = layouts_on(connection, host)
    own = there.get(consumer, Layout(places=()))
    if any(device.alias == request.alias for device in own.devices):
        return
    cells = {place.host_cell for place in own.places} or None
    try:
        (chosen,) = choose((request,), topology, there.values(), cells)
    except DoesNotFit as error:
        raise PortDeviceNotFree(_port(request), host, error.reason) from error
    held = held_by(connection, consumer).get(provider, {}).get(chosen.resource_class, 0)
    offer = connection.execute(sa.select(inventories).where(
        inventories.c.provider_id == provider, inventories.c.resource_class == chosen.resource_class
    )).first()
    if offer is None or not fits(offer, held + 1, held):
        raise PortDeviceNotFree(_port(request), host, f"no {chosen.resource_class} is left of it")
    _change(connection, consumer, provider, own, (*own.devices, chosen), chosen.resource_class, 1)


def drop_device(connection: sa.Connection, consumer: str, alias: str) -> None:
    """Take the device of a port from what a consumer holds, wherever that is; nothing if it holds none. Spec: IFC-15,
    IFC-47, XEV-22."""
    lock_existing_consumers(connection, consumer)
    for host in connection.execute(
        sa.select(hosts.c.host).join(allocations, allocations.c.provider_id == hosts.c.provider_id)
        .where(allocations.c.consumer == consumer).distinct().order_by(hosts.c.host)
    ).scalars().all():
        found = _place(connection, consumer, host)
        own = layouts_on(connection, host).get(consumer)
        gone = next((one for one in own.devices if one.alias == alias), None) if own is not None else None
        if found is None or own is None or gone is None:
            continue
        left = tuple(one for one in own.devices if one is not gone)
        _change(connection, consumer, found[0], own, left, gone.resource_class, -1)


def _place(connection: sa.Connection, consumer: str, host: str) -> tuple[int, HostTopology] | None:
    """The provider of a host, locked, and what it has; None if the consumer holds nothing of it."""
    provider = root_of(connection, consumer, host)
    if provider is None:
        return None
    topology = connection.execute(sa.select(hosts.c.topology).where(hosts.c.provider_id == provider)).scalar()
    return provider, read_topology(topology or "") or NOTHING


def _change(
    connection: sa.Connection, consumer: str, provider: int, own: Layout, devices: Sequence[HeldDevice],
    resource_class: str, change: int,
) -> None:
    """Layout, allocation and counter together. Nothing is given back that is not held."""
    held = held_by(connection, consumer).get(provider, {})
    before = held.get(resource_class, 0)
    after = max(before + change, 0)
    add_use(connection, provider, {resource_class: after - before})
    hold(connection, consumer, provider, held | {resource_class: after})
    if own.places or devices:
        take_place(connection, consumer, provider, msgspec.structs.replace(own, devices=tuple(devices)))
    else:
        forget_layout(connection, consumer, provider)


def _port(request: DeviceRequest) -> str:
    return request.alias.removeprefix(PORT)
