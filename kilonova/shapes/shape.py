"""The whole shape of a guest."""

from __future__ import annotations

import msgspec

from kilonova.domain.flavor import Flavor
from kilonova.domain.image import Image
from kilonova.shapes.asked import Asked
from kilonova.shapes.cpu import CpuShape, cpu_shape
from kilonova.shapes.devices import Devices, devices_shape
from kilonova.shapes.legacy import modern
from kilonova.shapes.limits import Limits, limits_of
from kilonova.shapes.memory import MemoryShape, memory_shape
from kilonova.shapes.numa import GuestCell, asks_for_cells, guest_cells


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What flavor and image ask of a guest.

    Args:
        cells: its NUMA cells. Not empty if the guest shows cells, has CPUs of its own or pages of a certain size; then
            it needs a place on its host (`fitting.py`).
    """

    cpu: CpuShape
    memory: MemoryShape
    cells: tuple[GuestCell, ...]
    limits: Limits
    devices: Devices


def shape_of(flavor: Flavor, image: Image | None) -> Shape:
    """Read and check everything that flavor and image ask for.

    Raises:
        InvalidInput: a value that is not understood, or flavor and image contradict each other or themselves.
    """
    properties = modern(image.properties) if image is not None else {}
    return read_shape(flavor.vcpus, flavor.memory_mib, Asked(flavor.extra_specs, properties))


def read_shape(vcpus: int, memory_mib: int, asked: Asked) -> Shape:
    """The same, of the numbers of a guest."""
    cpu = cpu_shape(vcpus, asked)
    memory = memory_shape(memory_mib, asked, has_cells=asks_for_cells(asked))
    cells = guest_cells(cpu, memory_mib, asked)
    if not cells and (cpu.dedicated or memory.page_size is not None):
        cells = (GuestCell(cpus=frozenset(range(vcpus)), memory_mib=memory_mib),)
    return Shape(cpu=cpu, memory=memory, cells=cells, limits=limits_of(asked), devices=devices_shape(asked))
