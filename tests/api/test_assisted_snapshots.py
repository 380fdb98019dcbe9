"""Snapshots of volumes in use that a volume service has the hypervisor take."""

from __future__ import annotations

import json
import uuid
from typing import Any

import httpx
import pytest
from compute_cloud import ComputeCloud

from kilonova.db import block_devices
from kilonova.domain.block_device import AttachState, BlockDevice
from kilonova.domain.instance import Instance
from kilonova.domain.states import TaskState, VmState
from kilonova.hypervisor.volumes import FileMerge
from kilonova.operations.delete_volume_snapshot import DeleteVolumeSnapshot
from kilonova.operations.take_volume_snapshot import TakeVolumeSnapshot

PATH = "/os-assisted-volume-snapshots"
VOLUME = "11111111-7777-4777-8777-777777777777"
FILE = {"driver_volume_type": "local", "device_path": "/pool/base"}


async def boot(
    cloud: ComputeCloud, *, info: dict[str, Any] | None = FILE, state: AttachState = AttachState.ATTACHED, **fields: Any
) -> Instance:
    """A server with the volume, as far as its record tells."""
    server = await cloud.boot(**fields)
    device = BlockDevice(
        uuid=str(uuid.uuid4()), source_type="volume", destination_type="volume", device_name="/dev/vdb",
        volume_id=VOLUME, attachment_id=str(uuid.uuid4()), state=state,
        connection_info=None if info is None else json.dumps(info),
    )
    await cloud.cell.database.write(lambda conn: block_devices.insert(conn, server.uuid, device, now=1.0))
    return server


async def create(cloud: ComputeCloud, volume: str = VOLUME, *, as_: str = "service", **info: Any) -> httpx.Response:
    wanted = {"snapshot_id": "s", "type": "qcow2", "new_file": "new", **info}
    return await cloud.post(PATH, {"snapshot": {"volume_id": volume, "create_info": wanted}}, as_=as_)


async def delete(
    cloud: ComputeCloud, told: Any, *, as_: str = "service", version: str = "2.1", **query: str
) -> int:
    query |= {} if told is None else {"delete_info": told if isinstance(told, str) else json.dumps(told)}
    return (await cloud.delete(f"{PATH}/s", params=query, as_=as_, version=version)).status_code


@pytest.mark.spec("API-263", "API-264", "EMV-40")
async def test_they_are_taken_and_deleted_for_a_volume_service(cloud: ComputeCloud) -> None:
    """In any state of the server that has a guest. A lock is for users."""
    server = await boot(cloud, vm_state=VmState.PAUSED, locked_by="owner")
    made = await create(cloud, id="shown")
    assert (made.status_code, made.json()) == (200, {"snapshot": {"id": "shown", "volumeId": VOLUME}})
    await cloud.forget_operations()
    made = await create(cloud)
    assert (made.status_code, made.json()) == (200, {"snapshot": {"id": None, "volumeId": VOLUME}})
    await cloud.forget_operations()
    down = {"volume_id": VOLUME, "file_to_merge": "new", "merge_target_file": "base", "type": "qcow2"}
    own = {"volume_id": VOLUME, "file_to_merge": None, "merge_target_file": None, "type": "qcow2"}
    for told in (down, own, {"volume_id": VOLUME}):
        assert await delete(cloud, told) == 204
        await cloud.forget_operations()
    asked = {"volume_id": VOLUME, "snapshot_id": "s"}
    assert [request for _, uuid, request in cloud.compute.asked if uuid == server.uuid] == [
        *[TakeVolumeSnapshot(**asked, new_file="new")] * 2,
        DeleteVolumeSnapshot(**asked, merge=FileMerge(file="new", into="base")),
        DeleteVolumeSnapshot(**asked, merge=FileMerge(file=None)),
        DeleteVolumeSnapshot(**asked, merge=None),
    ]


@pytest.mark.spec("API-263", "API-264", "SNP-36")
async def test_only_of_a_volume_that_one_server_has(cloud: ComputeCloud) -> None:
    told = {"volume_id": VOLUME}
    assert ((await create(cloud)).status_code, await delete(cloud, told)) == (400, 404)
    await boot(cloud, info=FILE | {"multiattach": True})
    assert ((await create(cloud)).status_code, await delete(cloud, told)) == (400, 400)
    await boot(cloud)  # and another that has it, too
    assert ((await create(cloud)).status_code, await delete(cloud, told)) == (400, 400)
    assert (await create(cloud, str(uuid.uuid4()))).status_code == 400
    assert cloud.compute.asked == []


@pytest.mark.spec("API-263", "API-264")
@pytest.mark.parametrize("fields", [
    {"task_state": TaskState.REBUILDING}, {"host": None}, {"info": None}, {"state": AttachState.DETACHING},
])
async def test_not_while_something_else_is_done(cloud: ComputeCloud, fields: dict[str, Any]) -> None:
    await boot(cloud, **fields)
    refused = await create(cloud)
    assert refused.status_code == 400 and "badRequest" in refused.json()
    assert await delete(cloud, {"volume_id": VOLUME}) == 400


@pytest.mark.spec("API-263", "API-264")
async def test_what_makes_no_sense_is_refused(cloud: ComputeCloud) -> None:
    await boot(cloud)
    for wrong in ("../other", "a/b", ".", "..", "", "x" * 256):
        assert (await create(cloud, new_file=wrong)).status_code == 400, wrong
    assert (await create(cloud, type="raw")).status_code == 400
    assert (await create(cloud, other="x")).status_code == 400
    for told in (None, "", "x", "[]", "{}", {"volume_id": 1}, {"volume_id": VOLUME, "file_to_merge": 1}, "[" * 9999):
        assert await delete(cloud, told) == 400, told
    assert await delete(cloud, {"volume_id": VOLUME}, version="2.75", other="x") == 400
    for who in ("member", "manager"):
        assert ((await create(cloud, as_=who)).status_code, await delete(cloud, None, as_=who)) == (403, 403)
    assert cloud.compute.asked == []
    assert await delete(cloud, {"volume_id": VOLUME}, version="2.74", other="x") == 204
