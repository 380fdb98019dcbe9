"""The guest's NUMA cells, as asked for or as pinning and page sizes imply them."""

from __future__ import annotations

import msgspec

from kilonova.domain.errors import InvalidInput
from kilonova.shapes.asked import Asked, cpu_set, whole
from kilonova.shapes.cpu import CpuShape

MOST_CELLS = 64


class GuestCell(msgspec.Struct, frozen=True, kw_only=True):
    """A NUMA cell of the guest: its vCPUs, and MiB of memory."""

    cpus: frozenset[int]
    memory_mib: int


def asks_for_cells(asked: Asked) -> bool:
    return asked.one_side("hw:numa_nodes", whole(1, MOST_CELLS)) is not None


def guest_cells(cpu: CpuShape, memory_mib: int, asked: Asked) -> tuple[GuestCell, ...]:
    """The cells that are asked for; empty if none are.

    Raises:
        InvalidInput: both flavor and image describe them, or the description is not one of this guest.
    """
    count = asked.one_side("hw:numa_nodes", whole(1, MOST_CELLS))
    strange = (asked.indices("hw:numa_cpus") | asked.indices("hw:numa_mem")) - set(range(count or 0))
    if strange:
        raise InvalidInput(f"hw:numa_cpus or hw:numa_mem is set for NUMA cell {min(strange)}, but hw:numa_nodes is "
                           f"{count or 'not set'}.")
    if count is None:
        return ()
    cpus = [asked.one_side(f"hw:numa_cpus.{cell}", cpu_set(cpu.vcpus - 1)) for cell in range(count)]
    memory = [asked.one_side(f"hw:numa_mem.{cell}", whole(1)) for cell in range(count)]
    described = [one for one in (*cpus, *memory) if one is not None]
    if not described:
        return _even(cpu.vcpus, memory_mib, count)
    if len(described) < 2 * count:
        raise InvalidInput("If one NUMA cell has hw:numa_cpus and hw:numa_mem, each of them needs both.")
    cells = tuple(
        GuestCell(cpus=found, memory_mib=amount)
        for found, amount in zip(cpus, memory, strict=True) if found is not None and amount is not None
    )
    _check(cells, cpu.vcpus, memory_mib)
    return cells


def _even(vcpus: int, memory_mib: int, count: int) -> tuple[GuestCell, ...]:
    if vcpus % count or memory_mib % count:
        raise InvalidInput(f"{vcpus} vCPUs and {memory_mib} MiB cannot be spread evenly over {count} NUMA cells; set "
                           "hw:numa_cpus.N and hw:numa_mem.N.")
    each = vcpus // count
    return tuple(
        GuestCell(cpus=frozenset(range(cell * each, (cell + 1) * each)), memory_mib=memory_mib // count)
        for cell in range(count)
    )


def _check(cells: tuple[GuestCell, ...], vcpus: int, memory_mib: int) -> None:
    seen: set[int] = set()
    for cell in cells:
        if seen & cell.cpus:
            raise InvalidInput(f"vCPU {min(seen & cell.cpus)} is in two NUMA cells.")
        seen |= cell.cpus
    missing = set(range(vcpus)) - seen
    if missing:
        raise InvalidInput(f"vCPU {min(missing)} is in no NUMA cell.")
    total = sum(cell.memory_mib for cell in cells)
    if total != memory_mib:
        raise InvalidInput(f"The NUMA cells have {total} MiB of memory, but the flavor has {memory_mib} MiB.")
