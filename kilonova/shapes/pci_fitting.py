"""Choosing the PCI devices of a guest among those that its host has left."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from kilonova.domain.pci import DeviceRequest
from kilonova.shapes.host import DoesNotFit, HostTopology, Layout
from kilonova.shapes.pci import HeldDevice, OfferedDevice
from kilonova.shapes.port_devices import meaning


def choose(
    requests: Sequence[DeviceRequest], topology: HostTopology, taken: Iterable[Layout],
    cells: Collection[int] | None, *, strict: bool = False,
) -> tuple[HeldDevice, ...]:
    """A device for each that is asked for, and each for one guest only. A device that can be divided goes as a whole,
    or in its parts.

    Args:
        taken: the layouts of the guests that are there. cells: cells of the host on which the guest is, None for a
            guest without cells, which may have devices from anywhere.
        strict: a policy that prefers devices in the cells requires them.

    Raises:
        DoesNotFit: with the reason.
    """
    free = _left(topology.devices, taken)
    for request in requests:
        meant = [device for device in free if any(device.is_meant(match) for match in request.matches)]
        if len(meant) < request.count:
            raise DoesNotFit(f"The host has {len(meant)} PCI devices left {meaning(request)}, "
                             f"the guest needs {request.count}.")
    slots = [request for request in requests for _ in range(request.count)]
    names = [[one.address for one in _ranked(request, free, topology, cells, strict=strict)] for request in slots]
    by_address = {device.address: device for device in free}
    while True:
        chosen = _match(names)
        if chosen is None:
            where = " near its NUMA cells" if cells is not None else ""
            asked = ", ".join(f"{request.alias}:{request.count}" for request in requests)
            raise DoesNotFit(f"The host has not enough PCI devices left{where} for {asked}.")
        parts = {address for address in chosen if by_address[address].parent in chosen}
        if not parts:
            return tuple(_held(by_address[address], slot) for address, slot in zip(chosen, slots, strict=True))
        names = [[name for name in each if name not in parts] for each in names]


def _held(device: OfferedDevice, request: DeviceRequest) -> HeldDevice:
    return HeldDevice(
        address=device.address, alias=request.alias, resource_class=device.resource_class, parent=device.parent,
        vendor_id=device.vendor_id, product_id=device.product_id, physical_network=device.physical_network,
    )


def _left(devices: Sequence[OfferedDevice], taken: Iterable[Layout]) -> list[OfferedDevice]:
    """A card of which a part is held is not there as a whole, its other parts are."""
    held = [device for layout in taken for device in layout.devices]
    own, divided = {device.address for device in held}, {device.parent for device in held}
    return [
        device for device in devices
        if device.address not in own | divided and device.parent not in own
    ]


def _ranked(
    request: DeviceRequest, free: Sequence[OfferedDevice], topology: HostTopology, cells: Collection[int] | None, *,
    strict: bool,
) -> list[OfferedDevice]:
    """Those that will do, the nearest first."""
    sockets = {cell.socket for cell in topology.cells if cells is not None and cell.id in cells} - {None}
    near_sockets = {cell.id for cell in topology.cells if cell.socket in sockets}
    found: list[tuple[int, str, OfferedDevice]] = []
    for device in free:
        if not any(device.is_meant(match) for match in request.matches):
            continue
        rank = 0
        if cells is not None and device.numa_cell not in cells:
            rank = 1 if device.numa_cell is None else 2
        match request.numa_policy:
            case _ if cells is None:
                allowed = True
            case "required":
                allowed = rank == 0
            case "socket":
                allowed = device.numa_cell in near_sockets
            case "preferred":
                allowed = rank == 0 or not strict
            case _:
                allowed = rank == 0 or (rank == 1 and not strict)
        if allowed:
            found.append((rank, device.address, device))
    return [device for _, _, device in sorted(found, key=lambda one: one[:2])]


def _match(names: Sequence[Sequence[str]]) -> list[str] | None:
    """A name of its own for each, out of those that it may have; None if there is no such choice."""
    owner: dict[str, int] = {}

    def give(slot: int, seen: set[str]) -> bool:
        """One that nobody has, else one whose owner can have another."""
        free = next((name for name in names[slot] if name not in owner), None)
        if free is not None:
            owner[free] = slot
            return True
        for name in names[slot]:
            if name not in seen:
                seen.add(name)
                if give(owner[name], seen):
                    owner[name] = slot
                    return True
        return False

    if not all(give(slot, set()) for slot in range(len(names))):
        return None
    by_slot = {slot: name for name, slot in owner.items()}
    return [by_slot[slot] for slot in range(len(names))]
