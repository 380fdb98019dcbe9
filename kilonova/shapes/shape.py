"""The whole shape of a guest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import get_args

import msgspec

from kilonova.domain.flavor import Flavor
from kilonova.domain.image import Image
from kilonova.domain.network import PortNeed
from kilonova.domain.pci import DeviceRequest, NumaPolicy
from kilonova.shapes.asked import Asked, word
from kilonova.shapes.cpu import CpuShape, cpu_shape
from kilonova.shapes.devices import Devices, devices_shape
from kilonova.shapes.legacy import modern
from kilonova.shapes.limits import Limits, limits_of
from kilonova.shapes.memory import MemoryShape, memory_shape
from kilonova.shapes.numa import GuestCell, asks_for_cells, guest_cells
from kilonova.shapes.port_devices import requests_of

NUMA_POLICY = "hw:pci_numa_affinity_policy"


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """What flavor and image ask of a guest.

    Args:
        cells: its NUMA cells. Not empty if the guest shows cells, has CPUs of its own or pages of a certain size.
        pci_requests: devices of its host that are to be its own.
    """

    cpu: CpuShape
    memory: MemoryShape
    cells: tuple[GuestCell, ...]
    limits: Limits
    devices: Devices
    pci_requests: tuple[DeviceRequest, ...] = ()

    @property
    def needs_place(self) -> bool:
        """Whether a part of its host belongs to it (`fitting.py`)."""
        return bool(self.cells or self.pci_requests)


def shape_of(flavor: Flavor, image: Image | None, needs: Iterable[PortNeed] = ()) -> Shape:
    """Read and check everything that flavor and image ask for.

    Args:
        needs: what the ports of the guest ask for, some of which are devices.

    Raises:
        InvalidInput: a value that is not understood, or flavor and image contradict each other or themselves.
    """
    properties = modern(image.properties) if image is not None else {}
    asked = Asked(flavor.extra_specs, properties)
    policy = asked.agreed(NUMA_POLICY, word(*get_args(NumaPolicy)))
    requests = tuple(
        msgspec.structs.replace(one, numa_policy=policy) if policy is not None else one for one in flavor.pci_requests
    )
    requests += requests_of(needs, policy)
    return msgspec.structs.replace(read_shape(flavor.vcpus, flavor.memory_mib, asked), pci_requests=requests)


def read_shape(vcpus: int, memory_mib: int, asked: Asked) -> Shape:
    """The same, of the numbers of a guest."""
    cpu = cpu_shape(vcpus, asked)
    memory = memory_shape(memory_mib, asked, has_cells=asks_for_cells(asked))
    cells = guest_cells(cpu, memory_mib, asked)
    if not cells and (cpu.dedicated or memory.page_size is not None):
        cells = (GuestCell(cpus=frozenset(range(vcpus)), memory_mib=memory_mib),)
    return Shape(cpu=cpu, memory=memory, cells=cells, limits=limits_of(asked), devices=devices_shape(asked))
