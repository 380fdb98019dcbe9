"""Finding the place of a guest on a host: which cells, CPUs and pages it gets beside those that have some already.

A pure function of what the host has and what is taken. It is asked twice: by the scheduler, to choose a host, and by
the claim, with the host locked, to decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import msgspec

from kilonova.shapes.cpu import CpuShape
from kilonova.shapes.host import DoesNotFit, HostCell, HostTopology, Layout, Place
from kilonova.shapes.memory import PageSize
from kilonova.shapes.numa import GuestCell
from kilonova.shapes.pci_fitting import choose
from kilonova.shapes.shape import Shape

MIB = 1024
"""KiB."""
MOST_TRIED = 500
"""Ways to place the cells of a guest that are tried for one with devices near to it."""


@dataclass(frozen=True)
class _Free:
    """What is left of a cell."""

    cell: HostCell
    dedicated: frozenset[int]
    memory_kib: dict[int | None, int]

    def cores(self) -> list[list[int]]:
        """The free CPUs, grouped by core."""
        grouped = [sorted(self.dedicated & set(group)) for group in self.cell.siblings]
        alone = self.dedicated - {cpu for group in self.cell.siblings for cpu in group}
        return [group for group in grouped if group] + [[cpu] for cpu in sorted(alone)]

    def core_of(self, cpu: int) -> frozenset[int]:
        return next((frozenset(group) for group in self.cell.siblings if cpu in group), frozenset({cpu}))


def fit(shape: Shape, topology: HostTopology | None, taken: Iterable[Layout]) -> Layout | None:
    """Where a guest of this shape goes; None if it needs no place of its own.

    Args:
        topology: None for a host that has told of none. taken: the layouts of the guests that are there.

    Raises:
        DoesNotFit: with the reason.
    """
    if not shape.needs_place:
        return None
    there = tuple(taken)
    if not shape.cells:
        return Layout(places=(), devices=choose(shape.pci_requests, topology or HostTopology(()), there, None))
    if topology is None or not topology.cells:
        raise DoesNotFit("The host does not tell its NUMA cells and CPUs.")
    if len(shape.cells) > len(topology.cells):
        raise DoesNotFit(f"The guest has {len(shape.cells)} NUMA cells, but the host has {len(topology.cells)}.")
    emulator = _shared_emulator(topology) if shape.cpu.emulator_threads == "share" else ()
    free = _left(topology, there)
    refused: DoesNotFit | None = None
    for page_kib in _page_sizes(shape.memory.page_size, topology):
        try:
            found = _with_devices(shape, topology, there, _place_cells(shape, free, page_kib))
        except DoesNotFit as error:
            refused = refused or error
        else:
            return msgspec.structs.replace(found, emulator=found.emulator or emulator)
    raise refused or DoesNotFit(f"The host has no memory pages of size {shape.memory.page_size}.")


def _with_devices(
    shape: Shape, topology: HostTopology, taken: Sequence[Layout], placed: Iterator[Layout]
) -> Layout:
    """The first way to place its cells for which there are devices near to them; else the first for which there are
    devices that its policies allow."""
    first = next(placed)
    if not shape.pci_requests:
        return first
    ways = [first, *islice(placed, MOST_TRIED)]
    refused: DoesNotFit | None = None
    for strict in (True, False):
        for way in ways:
            cells = {place.host_cell for place in way.places}
            try:
                devices = choose(shape.pci_requests, topology, taken, cells, strict=strict)
            except DoesNotFit as error:
                refused = error
            else:
                return msgspec.structs.replace(way, devices=devices)
    assert refused is not None
    raise refused


def _shared_emulator(topology: HostTopology) -> tuple[int, ...]:
    cpus = tuple(cpu for cell in topology.cells for cpu in cell.shared)
    if not cpus:
        raise DoesNotFit("hw:emulator_threads_policy = share needs a host with cpu_shared_set.")
    return cpus


def _left(topology: HostTopology, taken: Iterable[Layout]) -> list[_Free]:
    memory = {cell.id: _memory(cell) for cell in topology.cells}
    used: set[int] = set()
    for layout in taken:
        used |= layout.taken()
        for place in layout.places:
            pools = memory.get(place.host_cell)
            if pools is not None:
                pool = place.page_kib if place.page_kib in pools else None
                pools[pool] -= place.memory_mib * MIB
    return [_Free(cell, frozenset(cell.dedicated) - used, memory[cell.id]) for cell in topology.cells]


def _memory(cell: HostCell) -> dict[int | None, int]:
    """KiB by size of page. The usual pages are one pool, whether a guest asks for their size or for none."""
    usual = min(cell.pages, default=None)
    huge: dict[int | None, int] = {size: size * count for size, count in cell.pages.items() if size != usual}
    return {None: cell.memory_mib * MIB - sum(huge.values()), **huge}


def _page_sizes(wanted: PageSize | None, topology: HostTopology) -> list[int | None]:
    """Sizes to be tried, in this order. The same for all cells, as the guest is one piece of memory to its users."""
    sizes = sorted({size for cell in topology.cells for size in cell.pages}, reverse=True)
    if wanted is None:
        return [None]
    if isinstance(wanted, int):
        return [wanted] if wanted in sizes else []
    if wanted == "small":
        return list(sizes[-1:])
    return list(sizes[:-1] if wanted == "large" else sizes)


def _place_cells(shape: Shape, free: Sequence[_Free], page_kib: int | None) -> Iterator[Layout]:
    """The ways to have each cell of the guest in a cell of the host of its own, the best first. Raises DoesNotFit if
    there is none."""
    reasons: list[str] = []

    def search(index: int, left: tuple[_Free, ...]) -> Iterator[tuple[list[Place], tuple[int, ...]]]:
        if index == len(shape.cells):
            yield [], ()
            return
        needs_emulator = index == 0 and shape.cpu.emulator_threads == "isolate"
        for one in left:
            try:
                place, own = _place(shape.cells[index], shape.cpu, one, page_kib, needs_emulator)
            except DoesNotFit as error:
                reasons.append(error.reason)
                continue
            for rest, _ in search(index + 1, tuple(other for other in left if other is not one)):
                yield [place, *rest], own

    fullest_first = tuple(sorted(free, key=lambda one: (len(one.dedicated), one.cell.id)))
    none = True
    for places, own in search(0, fullest_first):
        none = False
        yield Layout(places=tuple(places), emulator=own, own_emulator=bool(own))
    if none:
        raise DoesNotFit(reasons[0])


def _place(
    guest: GuestCell, cpu: CpuShape, free: _Free, page_kib: int | None, needs_emulator: bool
) -> tuple[Place, tuple[int, ...]]:
    name = f"NUMA cell {free.cell.id} of the host"
    needed = guest.memory_mib * MIB
    pool = page_kib if page_kib in free.memory_kib else None
    if page_kib is not None and page_kib not in free.cell.pages:
        raise DoesNotFit(f"{name} has no pages of {page_kib} KiB.")
    if page_kib is not None and needed % page_kib:
        raise DoesNotFit(f"{guest.memory_mib} MiB are no multiple of pages of {page_kib} KiB.")
    if free.memory_kib[pool] < needed:
        pages = "" if pool is None else f" in pages of {pool} KiB"
        raise DoesNotFit(f"{name} has {max(free.memory_kib[pool], 0) // MIB} MiB left{pages}, "
                         f"the guest needs {guest.memory_mib} MiB.")
    pinned = sorted(guest.cpus & cpu.dedicated)
    floating = len(guest.cpus) - len(pinned)
    if floating > len(free.cell.shared):
        raise DoesNotFit(f"{name} has {len(free.cell.shared)} shared CPUs, the guest needs {floating}.")
    chosen, idle = _choose(len(pinned), cpu, free, name)
    own: tuple[int, ...] = ()
    if needs_emulator:
        spare = sorted(free.dedicated - set(chosen) - set(idle))
        if not spare:
            raise DoesNotFit(f"{name} has no CPU left for the emulator's threads.")
        own = (spare[0],)
    return Place(
        host_cell=free.cell.id, cpus=tuple(sorted(guest.cpus)), pins=dict(zip(pinned, chosen, strict=True)),
        floating=free.cell.shared if floating else (), idle=idle, memory_mib=guest.memory_mib, page_kib=page_kib,
    ), own


def _choose(count: int, cpu: CpuShape, free: _Free, name: str) -> tuple[list[int], tuple[int, ...]]:
    """CPUs of the host for so many of the guest, and those that must stay idle for it."""
    if not count:
        return [], ()
    if cpu.thread_policy == "isolate":
        whole = [core for core in free.cores() if set(core) == free.core_of(core[0]) & set(free.cell.dedicated)]
        if len(whole) < count:
            raise DoesNotFit(f"{name} has {len(whole)} whole cores left, the guest needs {count}.")
        used = whole[:count]
        return [core[0] for core in used], tuple(cpu for core in used for cpu in core[1:])
    cores = free.cores()
    if cpu.thread_policy == "require":
        cores = [core for core in cores if len(core) > 1]
        if not cores:
            raise DoesNotFit(f"{name} has no cores left with more than one thread.")
    cores.sort(key=lambda core: (-len(core), core))
    chosen = [cpu for core in cores for cpu in core]
    if cpu.thread_policy == "require":
        width = len(cores[0])
        if count % width:
            raise DoesNotFit(f"{count} vCPUs do not fill cores of {width} threads.")
    if len(chosen) < count:
        raise DoesNotFit(f"{name} has {len(chosen)} dedicated CPUs left, the guest needs {count}.")
    return chosen[:count], ()
