"""The CPUs, NUMA cells and memory of a guest, on those of the host that it was given."""

from __future__ import annotations

from kilonova.hypervisor.libvirt.domain.cpu import AddressSpace, Cpu, NumaCell
from kilonova.hypervisor.libvirt.domain.memory import HugePages, MemoryBacking
from kilonova.hypervisor.libvirt.domain.placement import CellMemory, CpuPlacement, MemoryPlacement, VcpuPin
from kilonova.hypervisor.libvirt.host import HostCapabilities
from kilonova.shapes.host import Layout
from kilonova.shapes.shape import Shape


def cpu(host: HostCapabilities, shape: Shape, layout: Layout | None) -> Cpu:
    asked = shape.cpu
    cells = tuple(
        NumaCell(id=number, cpus=place.cpus, memory_mib=place.memory_mib)
        for number, place in enumerate(layout.places if layout is not None else ())
    )
    return Cpu(
        mode=host.cpu_mode, sockets=asked.topology.sockets, cores=asked.topology.cores,
        threads=asked.topology.threads,
        addresses=AddressSpace(mode=asked.address_mode, bits=asked.address_bits) if asked.address_mode else None,
        cells=cells or None,
    )


def placement(shape: Shape, layout: Layout | None) -> CpuPlacement | None:
    """None for a guest that may run on all CPUs that guests share."""
    if layout is None:
        return None
    on = {
        vcpu: (place.pins[vcpu],) if vcpu in place.pins else place.floating
        for place in layout.places for vcpu in place.cpus
    }
    everywhere = tuple(sorted({host_cpu for cpus in on.values() for host_cpu in cpus}))
    return CpuPlacement(
        pins=tuple(VcpuPin(vcpu=vcpu, cpus=cpus) for vcpu, cpus in sorted(on.items())),
        emulator=layout.emulator or everywhere,
        realtime=tuple(sorted(shape.cpu.realtime)) or None,
    )


def memory_placement(layout: Layout | None) -> MemoryPlacement | None:
    """None for memory from anywhere."""
    if layout is None:
        return None
    places = enumerate(layout.places)
    return MemoryPlacement(cells=tuple(CellMemory(cell=number, host_cell=one.host_cell) for number, one in places))


def memory_backing(
    host: HostCapabilities, shape: Shape, layout: Layout | None, *, shared: bool
) -> MemoryBacking | None:
    """None for memory that the host treats like any other."""
    usual = {min(cell.pages, default=None) for cell in host.topology.cells}
    places = enumerate(layout.places if layout is not None else ())
    huge = tuple(
        HugePages(kib=place.page_kib, cell=number)
        for number, place in places if place.page_kib is not None and place.page_kib not in usual
    )
    realtime = bool(shape.cpu.realtime)
    if not huge and not realtime and not shape.memory.locked and not shared:
        return None
    return MemoryBacking(
        huge_pages=huge or None, locked=shape.memory.locked or realtime, private=realtime, shared=shared
    )


def shared_cpus(host: HostCapabilities) -> tuple[int, ...] | None:
    """The CPUs for guests without a place; None if those are all of the host."""
    if not host.divided:
        return None
    return tuple(cpu for cell in host.topology.cells for cpu in cell.shared)
