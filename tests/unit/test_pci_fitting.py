"""Devices of hosts that guests may have, and the choice among them."""

from __future__ import annotations

import msgspec
import pytest
from host_cells import TWO_CELLS
from host_devices import ALIASES, CARD, FUNCTIONS, GPU_CLASS, GPUS, OTHER, SPECS

from kilonova.domain.errors import InvalidInput
from kilonova.domain.flavor import Flavor
from kilonova.domain.image import Image
from kilonova.domain.pci import NumaPolicy
from kilonova.shapes.fitting import fit
from kilonova.shapes.host import DoesNotFit, HostTopology, Layout
from kilonova.shapes.pci import PciDevice
from kilonova.shapes.pci_fitting import choose
from kilonova.shapes.pci_requests import ALIAS, DeviceSpec, PciAlias, offered, read_requests
from kilonova.shapes.shape import shape_of

SOCKETS = tuple(msgspec.structs.replace(cell, socket=0) for cell in TWO_CELLS.cells)


def host(*devices: PciDevice) -> HostTopology:
    return HostTopology(TWO_CELLS.cells, offered(devices, SPECS))


def chosen(asked: str, topology: HostTopology, *taken: Layout, cells: set[int] | None = None) -> list[str]:
    found = choose(read_requests({ALIAS: asked}, ALIASES), topology, taken, cells)
    return [device.address for device in found]


def test_what_is_offered_is_what_is_specified() -> None:
    found = {device.address: device for device in offered((*GPUS, CARD, *FUNCTIONS, OTHER), SPECS)}
    assert set(found) == {device.address for device in (*GPUS, CARD, *FUNCTIONS)}
    assert (found[GPUS[0].address].resource_class, found[GPUS[0].address].traits) == (GPU_CLASS, ())
    assert (found[CARD.address].resource_class, found[CARD.address].traits) == ("CUSTOM_NIC", ("CUSTOM_FAST",))


@pytest.mark.parametrize(("spec", "count"), [
    (DeviceSpec(address=CARD.address), 3), (DeviceSpec(address="0000:81:02.*"), 2), (DeviceSpec(address="*:81:*.1"), 1),
    (DeviceSpec(address="0000:81:*.*", product_id="154c"), 2), (DeviceSpec(vendor_id="8086", product_id="1db6"), 0),
])
def test_a_card_is_meant_with_its_functions(spec: DeviceSpec, count: int) -> None:
    assert len(offered((*GPUS, CARD, *FUNCTIONS), [spec])) == count


@pytest.mark.parametrize(("asked", "why"), [
    ("gpu:1,tpu:1,npu:2", "PCI alias npu, tpu is not defined."), ("gpu:0", "no device"), ("gpu:65", "more than 64"),
    ("gpu", "name:count"),
])
def test_what_is_not_understood_is_refused(asked: str, why: str) -> None:
    with pytest.raises(InvalidInput, match=why):
        read_requests({ALIAS: asked}, ALIASES)


def test_the_same_alias_twice_adds_up() -> None:
    assert [(one.alias, one.count) for one in read_requests({ALIAS: "gpu:1, nic:2,gpu:1"}, ALIASES)] == [
        ("gpu", 2), ("nic", 2)
    ]


def test_a_card_that_can_be_divided_is_given_only_if_it_is_asked_for() -> None:
    assert chosen("nic:1", host(CARD, *FUNCTIONS)) == [FUNCTIONS[0].address]
    with pytest.raises(DoesNotFit, match="0 PCI devices left that nic means"):
        chosen("nic:1", host(CARD))
    assert chosen("card:1", host(CARD)) == [CARD.address]


def test_the_other_functions_of_a_card_can_be_given_to_others() -> None:
    topology = host(CARD, *FUNCTIONS)
    first = Layout(places=(), devices=choose(read_requests({ALIAS: "nic:1"}, ALIASES), topology, (), None))
    assert chosen("nic:1", topology, first) == [FUNCTIONS[1].address]
    with pytest.raises(DoesNotFit, match="0 PCI devices left that card means"):
        chosen("card:1", topology, first)


def test_a_card_and_its_own_function_are_never_given_together() -> None:
    second = msgspec.structs.replace(CARD, address="0000:81:00.1")
    other = msgspec.structs.replace(FUNCTIONS[1], parent=second.address)
    assert chosen("card:1,nic:1", host(CARD, second, FUNCTIONS[0], other)) == [CARD.address, other.address]
    with pytest.raises(DoesNotFit):
        chosen("card:1,nic:1", host(CARD, *FUNCTIONS))


@pytest.mark.parametrize(("policy", "cells", "expected"), [
    ("required", {0}, [0]), ("required", {1}, [1]), ("legacy", {0}, [0, 3]), ("legacy", {1}, [1, 3]),
    ("preferred", {0}, [0, 3, 1]), ("preferred", {1}, [1, 3, 0]), ("socket", {0}, [0, 1]),
    ("required", None, [0, 1, 3]),
])
def test_policies_of_numa_affinity(policy: NumaPolicy, cells: set[int] | None, expected: list[int]) -> None:
    """By the cell of each device; 3 stands for one that is near to none."""
    devices = [*GPUS[:2], msgspec.structs.replace(GPUS[2], numa_cell=None)]
    topology = HostTopology(SOCKETS, offered(devices, SPECS))
    alias = PciAlias(name="gpu", vendor_id="10de", numa_policy=policy)
    cell_of = {device.address: 3 if device.numa_cell is None else device.numa_cell for device in devices}

    def given(count: int) -> list[int]:
        found = choose(read_requests({ALIAS: f"gpu:{count}"}, [alias]), topology, (), cells)
        return [cell_of[device.address] for device in found]

    assert given(len(expected)) == expected
    assert given(1) == expected[:1]
    if len(expected) < len(devices):
        with pytest.raises(DoesNotFit, match="near its NUMA cells"):
            given(len(expected) + 1)


def flavor(**extra_specs: str) -> Flavor:
    specs = {ALIAS: "gpu:1", **extra_specs}
    return Flavor(flavor_id="1", name="f", vcpus=1, memory_mib=512, root_gib=1, extra_specs=specs,
                  pci_requests=read_requests(specs, ALIASES))


def test_flavor_and_image_have_a_say_on_affinity_before_the_alias() -> None:
    assert shape_of(flavor(), None).pci_requests[0].numa_policy == "legacy"
    asked = flavor(**{"hw:pci_numa_affinity_policy": "required"})
    assert shape_of(asked, None).pci_requests[0].numa_policy == "required"
    image = Image(id="i", properties={"hw_pci_numa_affinity_policy": "preferred"})
    assert shape_of(flavor(), image).pci_requests[0].numa_policy == "preferred"
    with pytest.raises(InvalidInput, match="hw_pci_numa_affinity_policy"):
        shape_of(asked, image)


def test_the_cells_of_the_guest_go_where_its_devices_are() -> None:
    cells = {"hw:numa_nodes": "1", "hw:pci_numa_affinity_policy": "preferred"}
    for device in GPUS[:2]:
        layout = fit(shape_of(flavor(**cells), None), host(device), ())
        assert layout is not None
        assert [place.host_cell for place in layout.places] == [device.numa_cell]
    other = HostTopology((TWO_CELLS.cells[0],), host(GPUS[1]).devices)
    layout = fit(shape_of(flavor(**cells), None), other, ())
    assert layout is not None
    assert [device.address for device in layout.devices] == [GPUS[1].address]
    with pytest.raises(DoesNotFit, match="near its NUMA cells"):
        fit(shape_of(flavor(**cells | {"hw:pci_numa_affinity_policy": "required"}), None), other, ())


def test_a_device_that_vanished_from_its_host_still_keeps_its_card() -> None:
    held = choose(read_requests({ALIAS: "nic:1"}, ALIASES), host(CARD, *FUNCTIONS), (), None)
    taken = Layout(places=(), devices=held)
    with pytest.raises(DoesNotFit):
        chosen("card:1", host(CARD), taken)
