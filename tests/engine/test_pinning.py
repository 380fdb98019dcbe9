"""Servers with CPUs of their own: chosen under the claim, kept through crashes, given back with everything else."""

from __future__ import annotations

import msgspec
from host_cells import DEDICATED, TWO_CELLS
from small_cloud import FLAVOR, SmallCloud, in_cloud
from test_resize import confirm, resize, revert

from kilonova.db.placement.layouts import layout_of
from kilonova.domain.errors import KilonovaError, TryElsewhere
from kilonova.domain.flavor import Flavor
from kilonova.domain.states import VmState
from kilonova.shapes.host import Layout

PINNED = msgspec.structs.replace(FLAVOR, vcpus=2, extra_specs=DEDICATED)
BIGGER = Flavor(flavor_id="3", name="bigger", vcpus=3, memory_mib=512, root_gib=1, extra_specs=PINNED.extra_specs)
CELLS = msgspec.structs.replace(FLAVOR, vcpus=2, extra_specs={"hw:numa_nodes": "2"})


def layout(cloud: SmallCloud, consumer: str) -> Layout | None:
    found: Layout | None = cloud.api(lambda conn: layout_of(conn, consumer))
    return found


def cpus(cloud: SmallCloud, uuid: str) -> set[int]:
    """Those that the guest was started with, which must be those that are claimed."""
    guest = cloud.guest(uuid)
    assert guest is not None
    assert guest.layout is not None
    assert guest.layout == layout(cloud, uuid)
    return set(guest.layout.taken())


@in_cloud(topology=TWO_CELLS)
async def test_pinned_guests_share_no_cpu(cloud: SmallCloud) -> None:
    servers = [await cloud.build(flavor=PINNED) for _ in range(2)]
    assert cpus(cloud, servers[0]) | cpus(cloud, servers[1]) == {1, 2, 5, 6}
    await cloud.delete(servers[0])
    await cloud.rest()
    cloud.gone(servers[0])
    assert layout(cloud, servers[0]) is None
    assert cpus(cloud, await cloud.build(flavor=PINNED)) == {1, 2}


@in_cloud(topology=TWO_CELLS)
async def test_cells_of_the_guest(cloud: SmallCloud) -> None:
    uuid = await cloud.build(flavor=CELLS)
    found = layout(cloud, uuid)
    assert found is not None
    assert [(place.host_cell, place.floating) for place in found.places] == [
        (0, (0, 8, 9, 10)), (1, (4, 11, 12, 13))
    ]
    assert cpus(cloud, uuid) == set()


@in_cloud(topology=TWO_CELLS)
async def test_no_host_can_take_it_and_the_fault_says_why(cloud: SmallCloud) -> None:
    for flavor, why in (
        (msgspec.structs.replace(PINNED, vcpus=4), "3 dedicated CPUs left, the guest needs 4"),
        (msgspec.structs.replace(CELLS, vcpus=3, memory_mib=513, extra_specs={"hw:numa_nodes": "3"}), "host has 2"),
        (msgspec.structs.replace(PINNED, extra_specs={"hw:mem_page_size": "1GB"}), "pages"),
        (msgspec.structs.replace(FLAVOR, extra_specs={"pci_passthrough:alias": "gpu:1"}), "PCI devices"),
        (msgspec.structs.replace(FLAVOR, extra_specs={"hw:pmem": "8GB"}), "persistent memory"),
        (msgspec.structs.replace(FLAVOR, extra_specs={"trait:CUSTOM_GOLD": "required"}), "CUSTOM_GOLD"),
        (msgspec.structs.replace(FLAVOR, extra_specs={"resources:CUSTOM_GOLD": "1"}), "No host offers CUSTOM_GOLD"),
        (msgspec.structs.replace(FLAVOR, extra_specs={
            "resources1:VCPU": "1", "resources2:VCPU": "1", "group_policy": "isolate"}), "group_policy"),
        (msgspec.structs.replace(FLAVOR, extra_specs={"hw:maxphysaddr_mode": "passthrough"}), "hw:maxphysaddr_mode"),
    ):
        uuid = await cloud.ask(cloud.new(flavor=flavor))
        await cloud.until(lambda uuid=uuid: cloud.server(uuid).vm_state is VmState.ERROR)
        fault = cloud.fault(uuid)
        assert fault is not None
        assert fault.message.startswith("No valid host was found.")
        assert why in fault.message
        assert cloud.claims(uuid) == []


@in_cloud()
async def test_a_host_without_dedicated_cpus_refuses(cloud: SmallCloud) -> None:
    uuid = await cloud.ask(cloud.new(flavor=PINNED))
    await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.ERROR)
    fault = cloud.fault(uuid)
    assert fault is not None
    assert "No host offers PCPU." in fault.message


@in_cloud(topology=TWO_CELLS)
async def test_a_resize_holds_both_places_until_it_is_decided(cloud: SmallCloud) -> None:
    uuid = await cloud.build(flavor=PINNED)
    old = layout(cloud, uuid)
    await resize(cloud, uuid, BIGGER)
    await cloud.rest()
    (migration,) = cloud.migrations(uuid)
    assert layout(cloud, migration.uuid) == old
    assert cpus(cloud, uuid) == {5, 6, 7}
    await revert(cloud, uuid)
    await cloud.rest()
    assert layout(cloud, uuid) == old
    assert cpus(cloud, uuid) == {1, 2}
    assert layout(cloud, migration.uuid) is None
    await resize(cloud, uuid, BIGGER)
    await cloud.rest()
    await confirm(cloud, uuid)
    await cloud.rest()
    assert cpus(cloud, uuid) == {5, 6, 7}
    assert layout(cloud, cloud.migrations(uuid)[0].uuid) is None
    assert cpus(cloud, await cloud.build(flavor=PINNED)) == {1, 2}


@in_cloud(topology=TWO_CELLS)
async def test_a_resize_that_fails_gives_the_new_place_back(cloud: SmallCloud) -> None:
    uuid = await cloud.build(flavor=PINNED)
    cloud.always_fail("resize_disks", KilonovaError("no"))
    await resize(cloud, uuid, BIGGER)
    await cloud.rest()
    cloud.heal()
    assert cloud.server(uuid).flavor == PINNED
    assert cpus(cloud, uuid) == {1, 2}
    assert cpus(cloud, await cloud.build(flavor=BIGGER)) == {5, 6, 7}


@in_cloud(topology=TWO_CELLS)
async def test_a_reboot_keeps_the_place(cloud: SmallCloud) -> None:
    uuid = await cloud.build(flavor=PINNED)
    before = layout(cloud, uuid)
    await cloud.reboot(uuid, hard=True)
    await cloud.rest()
    assert layout(cloud, uuid) == before
    assert cpus(cloud, uuid) == {1, 2}


@in_cloud(hosts=2, topology=TWO_CELLS)
async def test_a_build_that_goes_elsewhere_leaves_no_place_behind(cloud: SmallCloud) -> None:
    cloud.fail("spawn", TryElsewhere("not here"))
    uuid = await cloud.build(flavor=PINNED)
    assert len(cloud.claims(uuid)) == 1
    assert cpus(cloud, uuid) == {1, 2}
    await cloud.delete(uuid)
    await cloud.rest()
    others = [await cloud.build(flavor=BIGGER) for _ in range(4)]
    assert all(cpus(cloud, other) for other in others)


@in_cloud(topology=TWO_CELLS)
async def test_a_place_is_kept_through_a_crash(cloud: SmallCloud) -> None:
    """The claim is one row with its place: whoever goes on with the build finds both."""
    cloud.at["build:create disks"] = lambda _process: cloud.crash("conductor0")
    uuid = await cloud.ask(cloud.new(flavor=PINNED))
    await cloud.until(lambda: layout(cloud, uuid))
    before = layout(cloud, uuid)
    await cloud.restart("scheduler", "conductor0", "host0")
    await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.ACTIVE)
    assert layout(cloud, uuid) == before
    assert cpus(cloud, uuid) == {1, 2}
