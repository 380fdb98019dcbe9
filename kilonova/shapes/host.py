"""What a host has of CPUs, NUMA cells and pages, and which part of it a guest was given."""

from __future__ import annotations

import msgspec

from kilonova.domain.errors import NoValidHost
from kilonova.shapes.pci import HeldDevice, OfferedDevice


class DoesNotFit(NoValidHost):
    """The host has no place for a guest of this shape. reason: why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class HostCell(msgspec.Struct, frozen=True, kw_only=True):
    """One NUMA cell of a host.

    Args:
        dedicated: CPUs that are given to one guest at a time. shared: CPUs on which all other guests run.
        siblings: groups of CPUs that are threads of one core; empty without such.
        pages: how many pages guests may have, by size in KiB; the smallest are the host's usual ones.
        socket: number of the processor that it belongs to, None if the host does not tell.
    """

    id: int
    memory_mib: int
    dedicated: tuple[int, ...] = ()
    shared: tuple[int, ...] = ()
    siblings: tuple[tuple[int, ...], ...] = ()
    pages: dict[int, int] = {}
    socket: int | None = None


class HostTopology(msgspec.Struct, frozen=True):
    """The cells of a host, in the order of their numbers; none if it does not tell. devices: those that guests may have
    for themselves."""

    cells: tuple[HostCell, ...]
    devices: tuple[OfferedDevice, ...] = ()


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """One NUMA cell of a guest on a host.

    Args:
        host_cell: number of the cell of the host. cpus: the guest's CPUs in this cell.
        pins: the host's CPU for each dedicated CPU of the guest. floating: the host's CPUs on which the others run.
        idle: CPUs of the host that stay empty, because they share a core with one of `pins`.
        page_kib: size of the pages, None for the host's usual ones without account.
    """

    host_cell: int
    cpus: tuple[int, ...]
    pins: dict[int, int] = {}
    floating: tuple[int, ...] = ()
    idle: tuple[int, ...] = ()
    memory_mib: int
    page_kib: int | None = None


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """Where a guest is on its host, and what of it is its own.

    Args:
        places: one for each NUMA cell of the guest, in their order; none for a guest that may run anywhere.
        emulator: CPUs of the host for the emulator's own threads; empty leaves them to the guest's CPUs.
        own_emulator: whether `emulator` belongs to this guest alone.
        devices: PCI devices of the host that it has for itself.
    """

    places: tuple[Place, ...]
    emulator: tuple[int, ...] = ()
    own_emulator: bool = False
    devices: tuple[HeldDevice, ...] = ()

    def taken(self) -> frozenset[int]:
        """The host's CPUs that no other guest may have."""
        own = {cpu for place in self.places for cpu in (*place.pins.values(), *place.idle)}
        return frozenset(own | set(self.emulator if self.own_emulator else ()))
