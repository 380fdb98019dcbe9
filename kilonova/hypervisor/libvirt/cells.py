"""The NUMA cells, CPUs and memory pages of the host, as libvirt tells of them and as the operator divides them."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

import libvirt  # type: ignore[import-untyped]

from kilonova.domain.errors import InvalidInput
from kilonova.shapes.asked import cpu_set
from kilonova.shapes.host import HostCell, HostTopology

MOST_CPUS = 8192


@dataclass(frozen=True)
class CpuSets:
    """Which CPUs of the host guests may have, as lists such as `0-3,^2`.

    Args:
        dedicated: CPUs that are given to one guest at a time. shared: those on which all other guests run. Both empty:
            all CPUs are shared.
    """

    dedicated: str = ""
    shared: str = ""


def topology(connection: libvirt.virConnect, sets: CpuSets) -> HostTopology:
    """Ask libvirt.

    Raises:
        InvalidInput: the sets overlap, or name CPUs that the host does not have.
    """
    cells = ET.fromstring(connection.getCapabilities()).findall("./host/topology/cells/cell")
    every = {int(cpu.get("id", "")) for cell in cells for cpu in cell.findall("./cpus/cpu")}
    dedicated = _read("cpu_dedicated_set", sets.dedicated, every)
    shared = _read("cpu_shared_set", sets.shared, every)
    if dedicated & shared:
        both = ", ".join(map(str, sorted(dedicated & shared)))
        raise InvalidInput(f"cpu_dedicated_set and cpu_shared_set both name CPUs {both}.")
    if not dedicated and not shared:
        shared = frozenset(every)
    return HostTopology(cells=tuple(sorted((_cell(cell, dedicated, shared) for cell in cells), key=lambda one: one.id)))


def _read(name: str, text: str, every: set[int]) -> frozenset[int]:
    found = cpu_set(MOST_CPUS)(name, text) if text else frozenset()
    if found - every:
        raise InvalidInput(f"{name} names CPU {min(found - every)}, which this host does not have.")
    return found


def _cell(cell: ET.Element, dedicated: frozenset[int], shared: frozenset[int]) -> HostCell:
    cpus = {int(cpu.get("id", "")): cpu.get("siblings", "") for cpu in cell.findall("./cpus/cpu")}
    cores = {cpu_set(MOST_CPUS)("siblings", text) for text in cpus.values() if text}
    pages = {int(page.get("size", "")): int(page.text or 0) for page in cell.findall("./pages")}
    usual = min(pages, default=0)
    sockets = {int(cpu.get("socket_id", "-1")) for cpu in cell.findall("./cpus/cpu")}
    return HostCell(
        id=int(cell.get("id", "")),
        memory_mib=int(cell.findtext("./memory") or 0) // 1024,
        dedicated=tuple(sorted(dedicated & cpus.keys())),
        shared=tuple(sorted(shared & cpus.keys())),
        siblings=tuple(sorted(tuple(sorted(core)) for core in cores if len(core) > 1)),
        pages={size: count for size, count in sorted(pages.items()) if count or size == usual},
        socket=sockets.pop() if len(sockets) == 1 else None,
    )
