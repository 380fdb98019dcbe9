"""Resize, confirm and revert as requests."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
import pytest
from compute_cloud import CIRROS, HOST, TINY, ComputeCloud, compute_cloud, create

from kilonova.api.compute.quota_check import Limits
from kilonova.db import instances, migration_records
from kilonova.domain.block_device import BlockDevice
from kilonova.domain.flavor import Flavor
from kilonova.domain.image import Image
from kilonova.domain.instance import Instance
from kilonova.domain.migration import Migration, MigrationStatus, MigrationType
from kilonova.domain.states import TaskState, VmState
from kilonova.operations.resize import ResizeServer

BIG = Flavor(flavor_id="2", name="big", vcpus=4, memory_mib=4096, root_gib=10)


async def ask(cloud: ComputeCloud, server: Instance, body: Any, **more: Any) -> tuple[int, str]:
    answer = await cloud.post(f"/servers/{server.uuid}/action", body, **more)
    told = next(iter(answer.json().values()))["message"] if answer.content else ""
    return answer.status_code, told


async def finished(cloud: ComputeCloud, server: Instance) -> str:
    """The record of a migration of the server, as a resize leaves it."""
    one = str(uuid.uuid4())
    await cloud.cell.database.write(lambda conn: migration_records.insert(conn, Migration(
        uuid=one, instance_uuid=server.uuid, migration_type=MigrationType.RESIZE, status=MigrationStatus.FINISHED,
        source_compute=HOST, dest_compute=HOST, old_flavor=TINY, new_flavor=BIG, old_vm_state=VmState.ACTIVE,
    )))
    return one


@pytest.fixture
async def server(cloud: ComputeCloud) -> Instance:
    await cloud.flavor()
    await cloud.flavor(BIG)
    return await cloud.boot(image=Image(id=CIRROS))


@pytest.mark.spec("API-127", "API-486", "API-618")
@pytest.mark.parametrize(("disks", "stored"), [({}, None), ({"OS-DCF:diskConfig": "MANUAL"}, False),
                                               ({"OS-DCF:diskConfig": "AUTO"}, True)])
async def test_a_resize_is_asked_for(
    cloud: ComputeCloud, server: Instance, disks: dict[str, str], stored: bool | None
) -> None:
    assert await ask(cloud, server, {"resize": {"flavorRef": "2", **disks}}) == (202, "")
    ((kind, subject, request),) = cloud.compute.asked
    assert (kind, subject) == ("resize", server.uuid)
    assert isinstance(request, ResizeServer)
    assert (request.flavor.flavor_id, request.auto_disk_config) == ("2", stored)
    assert (await cloud.stored(server.uuid)).task_state is TaskState.RESIZE_PREP
    assert (await cloud.get(f"/servers/{server.uuid}")).json()["server"]["status"] == "RESIZE"
    again = f"Cannot 'resize' instance {server.uuid} while it is in task_state resize_prep"
    assert await ask(cloud, server, {"resize": {"flavorRef": "2"}}) == (409, again)


@pytest.mark.spec("API-127")
@pytest.mark.parametrize(
    "body", [None, {}, {"flavorRef": ""}, {"flavorRef": None}, {"flavorRef": "2", "OS-DCF:diskConfig": "auto"},
             {"flavorRef": "2", "host": "x"}],
)
async def test_bodies_that_are_refused(cloud: ComputeCloud, server: Instance, body: Any) -> None:
    assert (await ask(cloud, server, {"resize": body}))[0] == 400
    assert cloud.compute.asked == []


@pytest.mark.spec("API-127")
async def test_flavors_that_are_refused(cloud: ComputeCloud, server: Instance) -> None:
    hidden = {"disabled": True}
    for number, changes in enumerate((hidden, {"is_public": False}, {"root_gib": 0}, {"memory_mib": 64})):
        fields = {"flavor_id": f"bad{number}", "name": f"bad{number}", "vcpus": 1, "memory_mib": 512, "root_gib": 1}
        await cloud.flavor(Flavor(**(fields | changes)))
    small = await cloud.boot(image=Image(id=CIRROS, min_ram=128, min_disk=2))
    for wanted in ("1", "nobody-knows", "bad0", "bad1", "bad2"):
        assert (await ask(cloud, server, {"resize": {"flavorRef": wanted}}))[0] == 400, wanted
    assert (await ask(cloud, small, {"resize": {"flavorRef": "bad3"}}))[0] == 400
    assert "already" in (await ask(cloud, server, {"resize": {"flavorRef": "1"}}))[1]
    assert (await ask(cloud, server, {"resize": {"flavorRef": "bad1"}}, as_="admin"))[0] == 202


async def test_a_flavor_has_room_for_the_disks_that_were_asked_for(cloud: ComputeCloud) -> None:
    """Their sizes stay, and so do those that follow the flavor."""
    sizes: tuple[int | None, ...] = (2, 1)
    devices = tuple(BlockDevice(uuid=str(size), source_type="blank", destination_type="local", volume_size=size)
                    for size in sizes)
    server = await cloud.boot(image=Image(id=CIRROS), block_devices=devices)
    for size, status in ((2, 400), (3, 202)):
        await cloud.flavor(Flavor(flavor_id=f"e{size}", name=f"e{size}", vcpus=1, memory_mib=512, root_gib=1,
                                  ephemeral_gib=size))
        got, told = await ask(cloud, server, {"resize": {"flavorRef": f"e{size}"}})
        assert got == status
        assert status == 202 or "Ephemeral disks" in told


@pytest.mark.spec("API-069")
async def test_flavors_with_accelerators_are_refused(cloud: ComputeCloud, server: Instance) -> None:
    specs = {"accel:device_profile": "fpga"}
    await cloud.flavor(Flavor(flavor_id="a", name="a", vcpus=1, memory_mib=512, root_gib=1, extra_specs=specs))
    assert (await ask(cloud, server, {"resize": {"flavorRef": "a"}}))[0] == 400


@pytest.mark.spec("API-059", "API-061", "API-127")
async def test_what_is_more_than_the_project_may_have_is_refused() -> None:
    async with compute_cloud(limits=Limits(cores=5, ram=4700)) as cloud:
        await cloud.flavor()
        await cloud.flavor(BIG)
        await cloud.flavor(Flavor(flavor_id="3", name="wide", vcpus=5, memory_mib=128, root_gib=1))
        server = await cloud.boot()
        await cloud.boot()
        assert await ask(cloud, server, {"resize": {"flavorRef": "3"}}) == (
            403, "Quota exceeded for cores: Requested 4, but already used 2 of 5 cores")
        assert await ask(cloud, server, {"resize": {"flavorRef": "2"}}) == (202, "")
        other = await cloud.boot(flavor=BIG)
        assert (await ask(cloud, other, {"resize": {"flavorRef": "1"}}))[0] == 202  # smaller is always fine


@pytest.mark.spec("API-059", "API-061")
async def test_disks_count_with_swap_in_whole_gib() -> None:
    """Those of a server that waits for its cell, of one that has it, and those that are asked for."""
    wide = Flavor(flavor_id="4", name="wide", vcpus=1, memory_mib=128, root_gib=3, ephemeral_gib=1, swap_mib=1025)
    async with compute_cloud(limits=Limits(disk=11)) as cloud:
        await cloud.flavor()
        await cloud.flavor(wide)
        assert (await create(cloud, flavorRef="4")).status_code == 202
        server = await cloud.boot()
        refused = 403, "Quota exceeded for disk: Requested 5, but already used 7 of 11 disk"
        assert await ask(cloud, server, {"resize": {"flavorRef": "4"}}) == refused
        await cloud.cell.database.write(lambda conn: instances.update(conn, server.uuid, now=1.0, deleted_at=1.0))
        server = await cloud.boot(flavor=msgspec.structs.replace(TINY, root_gib=0))
        refused = 403, "Quota exceeded for disk: Requested 6, but already used 6 of 11 disk"
        assert await ask(cloud, server, {"resize": {"flavorRef": "4"}}) == refused


@pytest.mark.spec("API-064", "API-066", "API-068", "API-127")
async def test_lock_then_states_then_host(cloud: ComputeCloud) -> None:
    await cloud.flavor(BIG)
    body = {"resize": {"flavorRef": "2"}}
    cloud.hosts.known[HOST] = "DOWN"
    server = await cloud.boot(locked_by="owner", vm_state=VmState.PAUSED)
    assert await ask(cloud, server, body) == (409, f"Instance {server.uuid} is locked")
    paused = f"Cannot 'resize' instance {server.uuid} while it is in vm_state paused"
    assert await ask(cloud, server, body, as_="admin") == (409, paused)
    for state in (VmState.ACTIVE, VmState.STOPPED):
        server = await cloud.boot(vm_state=state)
        assert await ask(cloud, server, body) == (409, "Service is unavailable at this time.")
    cloud.hosts.known[HOST] = "MAINTENANCE"
    assert (await ask(cloud, server, body))[0] == 202


@pytest.mark.spec("API-127", "API-128", "API-129")
async def test_who_may_resize(cloud: ComputeCloud, server: Instance) -> None:
    for body in ({"resize": {"flavorRef": "2"}}, {"confirmResize": None}, {"revertResize": None}):
        assert (await ask(cloud, server, body, as_="reader"))[0] == 403
        assert (await ask(cloud, server, body, as_="stranger"))[0] == 404


@pytest.mark.spec("API-128", "API-129", "API-487", "API-488")
@pytest.mark.parametrize(
    ("action", "status", "shown"), [("confirmResize", 204, "VERIFY_RESIZE"), ("revertResize", 202, "REVERT_RESIZE")]
)
async def test_a_resize_is_decided_on(cloud: ComputeCloud, action: str, status: int, shown: str) -> None:
    server = await cloud.boot(vm_state=VmState.RESIZED, flavor=BIG)
    assert await ask(cloud, server, {action: None}) == (400, "Instance has not been resized.")
    await finished(cloud, server)
    assert await ask(cloud, server, {action: None}) == (status, "")
    assert (await cloud.get(f"/servers/{server.uuid}")).json()["server"]["status"] == shown
    active = await cloud.boot()
    assert await ask(cloud, active, {action: None}) == (
        409, f"Cannot '{action}' instance {active.uuid} while it is in vm_state active")
    locked = await cloud.boot(vm_state=VmState.RESIZED, locked_by="admin")
    assert (await ask(cloud, locked, {action: None}))[0] == 409


