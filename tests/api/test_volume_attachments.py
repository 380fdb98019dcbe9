"""Attachments of volumes to servers in all microversions, with a volume service that is real."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import msgspec
import pytest
from compute_cloud import CIRROS, HOST, ComputeCloud, compute_cloud
from volume_cloud import VolumeCloud

from kilonova.db import block_devices
from kilonova.domain.block_device import AttachState, BlockDevice
from kilonova.domain.clock import SystemClock
from kilonova.domain.image import Image
from kilonova.domain.instance import Instance
from kilonova.domain.states import TaskState, VmState
from kilonova.embedded.volume import schema
from kilonova.embedded.volume.client import VolumeClient
from kilonova.operations.attach_volume import AttachVolume
from kilonova.operations.detach_volume import DetachVolume
from kilonova.roles.volumes import Servers

NOWHERE = "77777777-7777-4777-8777-777777777777"
FIRST = "11111111-7777-4777-8777-777777777777"


@pytest.fixture
async def cloud(storage: VolumeCloud) -> AsyncIterator[ComputeCloud]:
    async with compute_cloud(volumes=VolumeClient(storage.volumes)) as running:
        yield running


async def give(cloud: ComputeCloud, server: Instance, **fields: Any) -> BlockDevice:
    """Let a server have a volume, as far as its record tells."""
    device = BlockDevice(**{
        "uuid": str(uuid.uuid4()), "source_type": "volume", "destination_type": "volume", "device_name": "/dev/vdb",
        "volume_id": str(uuid.uuid4()), "attachment_id": str(uuid.uuid4()), **fields,
    })
    await cloud.cell.database.write(lambda conn: block_devices.insert(conn, server.uuid, device, now=1.0))
    return device


async def stored(cloud: ComputeCloud, server: Instance) -> list[BlockDevice]:
    return await cloud.cell.database.read(lambda conn: block_devices.of_server(conn, server.uuid))


def path(server: Instance, volume: str | None = None) -> str:
    return f"/servers/{server.uuid}/os-volume_attachments" + (f"/{volume}" if volume else "")


async def attach(
    cloud: ComputeCloud, server: Instance, volume: str, *, version: int = 1, as_: str = "member", **asked: Any
) -> httpx.Response:
    body = {"volumeAttachment": {"volumeId": volume, **asked}}
    return await cloud.post(path(server), body, version=f"2.{version}", as_=as_)


def shown(server: Instance, device: BlockDevice, version: int) -> dict[str, Any]:
    """An attachment in lists and by itself."""
    expected: dict[str, Any] = {
        "volumeId": device.volume_id, "serverId": server.uuid, "device": device.device_name,
    }
    if version < 89:
        expected["id"] = device.volume_id
    if version >= 70:
        expected["tag"] = device.tag
    if version >= 79:
        expected["delete_on_termination"] = device.delete_on_termination
    if version >= 89:
        expected |= {"attachment_id": device.attachment_id, "bdm_uuid": device.uuid}
    return expected


@pytest.mark.spec("API-176", "API-178", "API-458", "API-579", "API-589")
async def test_attachments_are_listed_and_shown(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    one = await give(cloud, server, tag="data", delete_on_termination=True)
    other = await give(cloud, server, device_name="/dev/vdc")
    await give(cloud, await cloud.boot())
    for version in (1, 2, 69, 70, 78, 79, 88, 89, 104):
        expected = [shown(server, device, version) for device in (one, other)]
        answer = await cloud.get(path(server), version=f"2.{version}", as_="reader")
        assert (answer.status_code, answer.json()) == (200, {"volumeAttachments": expected})
        answer = await cloud.get(path(server, one.volume_id), version=f"2.{version}", as_="reader")
        assert (answer.status_code, answer.json()) == (200, {"volumeAttachment": expected[0]})
    for query, expected in (("limit=1", [one]), ("offset=1", [other]), ("offset=5", []), ("limit=0", [])):
        answer = await cloud.get(f"{path(server)}?{query}", version="2.1")
        assert [entry["id"] for entry in answer.json()["volumeAttachments"]] == [one_.volume_id for one_ in expected]
    assert (await cloud.get(path(server, NOWHERE))).status_code == 404
    for where in (path(server), path(server, one.volume_id)):
        assert (await cloud.get(where, as_="stranger")).status_code == 404
        assert (await cloud.get(where, as_="nobody")).status_code == 403


@pytest.mark.spec("API-176", "API-178", "API-589", "API-458")
async def test_what_is_not_attached_yet(cloud: ComputeCloud) -> None:
    """A volume that waits for its attachment is shown up to 2.88; one that is not made yet at no version. A name that
    is not known is left out."""
    server = await cloud.boot()
    waits = await give(cloud, server, attachment_id=None, device_name=None)
    await give(cloud, server, volume_id=None, attachment_id=None, source_type="blank", device_name="/dev/vdc")
    for version, count in (("2.88", 1), ("2.89", 0)):
        entries = (await cloud.get(path(server), version=version)).json()["volumeAttachments"]
        assert len(entries) == count
        assert all("device" not in entry for entry in entries)
        answer = await cloud.get(path(server, waits.volume_id), version=version)
        assert answer.status_code == (200 if count else 404)


@pytest.mark.spec("API-177", "API-458", "API-549", "API-570", "API-579", "API-601")
async def test_attach(cloud: ComputeCloud, storage: VolumeCloud) -> None:
    volume = await storage.make()
    for version in (1, 48, 49, 69, 70, 78, 79, 89, 100, 101, 104):
        server = await cloud.boot()
        asked: dict[str, Any] = {"device": "/dev/vdf"}
        asked |= {"tag": "data"} if version >= 49 else {}
        asked |= {"delete_on_termination": True} if version >= 79 else {}
        answer = await attach(cloud, server, volume, version=version, **asked)
        assert cloud.compute.asked[-1] == ("attach-volume", server.uuid, AttachVolume(
            volume_id=volume, device_name="/dev/vdf", tag=asked.get("tag"), delete_on_termination=version >= 79,
        ))
        if version >= 101:
            assert (answer.status_code, answer.content) == (202, b"")
            continue
        expected = {"id": volume, "volumeId": volume, "serverId": server.uuid, "device": "/dev/vdf"}
        expected |= {"tag": "data"} if version >= 70 else {}
        expected |= {"delete_on_termination": True} if version >= 79 else {}
        assert (answer.status_code, answer.json()) == (200, {"volumeAttachment": expected})
    bare = await attach(cloud, await cloud.boot(image=Image(id=CIRROS)), volume, version=79, device=None)
    assert {name: bare.json()["volumeAttachment"][name] for name in ("device", "tag", "delete_on_termination")} == {
        "device": "/dev/vdb", "tag": None, "delete_on_termination": False}


@pytest.mark.spec("API-177", "API-560", "RBN-08")
async def test_attach_refused(cloud: ComputeCloud, storage: VolumeCloud) -> None:
    server = await cloud.boot(image=Image(id=CIRROS))
    volume, used = await storage.make(), await storage.make()
    await storage.attach(used)
    mine = await give(cloud, server, volume_id=volume)
    foreign = await storage.make()
    await storage.database.write(lambda conn: conn.execute(
        schema.volumes.update().where(schema.volumes.c.id == foreign).values(project_id="b" * 32)))
    free = await storage.make()
    for wanted, asked, code, text in (
        (NOWHERE, {}, 404, "could not be found"), (foreign, {}, 404, "could not be found"),
        (used, {}, 400, "must be available"), (volume, {}, 400, "attached to instance"),
        (free, {"device": "/dev/vdb"}, 409, "/dev/vdb"), (free, {"device": "/dev/vda"}, 409, "/dev/vda"),
        (free, {"device": "vdb"}, 400, ""), (free, {"device": ""}, 400, ""), ("x", {}, 400, ""),
        (free, {"tag": "a,b"}, 400, ""), (free, {"color": 1}, 400, ""),
        (free, {"delete_on_termination": None}, 400, ""),
    ):
        answer = await attach(cloud, server, wanted, version=104, **asked)
        assert (answer.status_code, text in answer.text) == (code, True), (wanted, asked, answer.text)
    assert (await attach(cloud, server, free, as_="reader")).status_code == 403
    assert (await attach(cloud, server, free, as_="stranger")).status_code == 404
    assert [one.uuid for one in await stored(cloud, server)] == [mine.uuid]
    shared = await storage.make()
    await storage.database.write(lambda conn: conn.execute(
        schema.volumes.update().where(schema.volumes.c.id == shared).values(multiattach=True)))
    answer = await attach(cloud, server, shared, version=59)
    assert (answer.status_code, "2.60" in answer.text) == (400, True)
    await storage.attach(shared)
    assert (await attach(cloud, server, shared, version=60)).status_code == 200
    assert cloud.compute.asked[-1][2] == AttachVolume(volume_id=shared, multiattach=True)


@pytest.mark.spec("API-177", "API-181", "API-520", "BDM-32")
async def test_states(cloud: ComputeCloud, storage: VolumeCloud) -> None:
    """Lock and state are looked at first. Offloaded servers take no tags and no volumes that several may have."""
    volume = await storage.make()
    allowed = {
        VmState.ACTIVE, VmState.PAUSED, VmState.STOPPED, VmState.RESIZED, VmState.SOFT_DELETED, VmState.SHELVED,
        VmState.SHELVED_OFFLOADED,
    }
    for state in set(VmState) - {VmState.DELETED, VmState.BUILDING}:
        offloaded = state is VmState.SHELVED_OFFLOADED
        server = await cloud.boot(vm_state=state, host=None if offloaded else HOST)
        since = 20 if state in (VmState.SHELVED, VmState.SHELVED_OFFLOADED) else 1
        for version in (19, 20, 100):
            expected = 200 if state in allowed and version >= since else 409
            assert (await attach(cloud, server, volume, version=version)).status_code == expected, (state, version)
            for device in await stored(cloud, server):
                await cloud.forget_operations()
                answer = await cloud.delete(path(server, device.volume_id), version=f"2.{version}")
                assert answer.status_code == 202
                await cloud.cell.database.write(lambda conn, d=device: block_devices.remove(conn, d.uuid))
            await cloud.forget_operations()
            assert (await cloud.delete(path(server, volume), version=f"2.{version}")).status_code == (
                404 if expected == 200 else 409)
    offloaded_ = await cloud.boot(vm_state=VmState.SHELVED_OFFLOADED, host=None)
    assert (await attach(cloud, offloaded_, volume, version=79, tag="data")).status_code == 400
    busy, locked = await cloud.boot(task_state=TaskState.REBOOTING), await cloud.boot(locked_by="owner")
    for server in (busy, locked):
        assert (await attach(cloud, server, volume)).status_code == 409
        assert (await attach(cloud, server, NOWHERE)).status_code == (409 if server is locked else 404)
        await give(cloud, server, volume_id=volume)
        assert (await cloud.delete(path(server, volume))).status_code == 409
    assert (await cloud.delete(path(locked, volume), as_="admin")).status_code == 202


@pytest.mark.spec("API-177")
async def test_an_attach_that_fails_while_its_answer_is_written(cloud: ComputeCloud, storage: VolumeCloud) -> None:
    server, volume = await cloud.boot(), await storage.make()
    wait = cloud.compute.ask_and_wait_for

    async def fails(*asked: Any) -> Any:
        record = await wait(*asked)
        await cloud.cell.database.write(lambda conn: block_devices.remove(conn, record.id))
        return record

    cloud.compute.ask_and_wait_for = fails  # type: ignore[method-assign]
    answer = await attach(cloud, server, volume)
    assert (answer.status_code, volume in answer.text) == (409, True)


@pytest.mark.spec("API-181")
async def test_detach(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    root = await give(cloud, server, device_name="/dev/vda", boot_index=0)
    device = await give(cloud, server)
    assert (await cloud.delete(path(server, device.volume_id), as_="reader")).status_code == 403
    assert (await cloud.delete(path(server, device.volume_id), as_="stranger")).status_code == 404
    answer = await cloud.delete(path(server, root.volume_id))
    assert (answer.status_code, answer.json()["badRequest"]["message"]) == (400, "Cannot detach a root device volume")
    cloud.hosts.known[HOST] = "DOWN"
    answer = await cloud.delete(path(server, device.volume_id))
    assert (answer.status_code, "Service is unavailable" in answer.text) == (409, True)
    cloud.hosts.known[HOST] = "UP"
    answer = await cloud.delete(path(server, device.volume_id))
    assert (answer.status_code, answer.content) == (202, b"")
    assert cloud.compute.asked == [("detach-volume", server.uuid, DetachVolume(device.volume_id or ""))]
    offloaded = await cloud.boot(vm_state=VmState.SHELVED_OFFLOADED, host=None)
    mine = await give(cloud, offloaded, state=AttachState.RESERVED)
    boots = await give(cloud, offloaded, device_name="/dev/vda", boot_index=0, state=AttachState.RESERVED)
    assert (await cloud.delete(path(offloaded, mine.volume_id), version="2.20")).status_code == 202
    await cloud.forget_operations()
    assert (await cloud.delete(path(offloaded, boots.volume_id), version="2.20")).status_code == 400


@pytest.mark.spec("API-180", "API-585")
async def test_whether_a_volume_is_deleted_with_its_server(cloud: ComputeCloud) -> None:
    """At once, whatever the server does."""
    server = await cloud.boot(vm_state=VmState.ERROR, task_state=TaskState.MIGRATING, locked_by="admin")
    device = await give(cloud, server, volume_id=FIRST, tag="data")
    where = path(server, FIRST)

    async def put(version: int = 85, as_: str = "member", volume: str = FIRST, **asked: Any) -> httpx.Response:
        body = {"volumeAttachment": {"volumeId": volume, **asked}}
        return await cloud.put(where, body, version=f"2.{version}", as_=as_)

    for value in (True, False, True):
        answer = await put(delete_on_termination=value)
        assert (answer.status_code, answer.content) == (202, b"")
        assert await stored(cloud, server) == [msgspec.structs.replace(device, delete_on_termination=value)]
    whole = {"id": FIRST, "serverId": server.uuid, "device": "/dev/vdb", "tag": "data"}
    assert (await put(**whole, delete_on_termination=False)).status_code == 202
    assert (await put()).status_code == 202
    assert await stored(cloud, server) == [device]
    for name, other in (
        ("id", NOWHERE), ("serverId", NOWHERE), ("device", "/dev/vdc"), ("device", None), ("tag", "other"),
    ):
        answer = await put(**{**whole, name: other, "delete_on_termination": True})
        assert (answer.status_code, answer.json()["badRequest"]["message"]) == (
            400, f"The {name} property is not mutable")
    assert await stored(cloud, server) == [device]
    for name, value in (("delete_on_termination", "x"), ("delete_on_termination", None), ("color", 1)):
        assert (await put(**{name: value})).status_code == 400
    assert (await put(84, "admin", delete_on_termination=True)).status_code == 400
    assert (await put(as_="reader")).status_code == 403
    assert (await put(as_="stranger")).status_code == 404
    assert (await put(volume=NOWHERE, delete_on_termination=True)).status_code == 403
    assert await stored(cloud, server) == [device]
    body = {"volumeAttachment": {"volumeId": NOWHERE}}
    assert (await cloud.put(path(server, NOWHERE), body, version="2.85")).status_code == 404


@pytest.mark.spec("EMV-22", "EMV-23")
async def test_which_attachment_a_server_uses(cloud: ComputeCloud) -> None:
    """What the volume service of the installation asks before a user may take one away."""
    async def deliver(*_event: str, **_more: str) -> None:
        raise AssertionError("nobody tells anything")

    def wake(_cell: str) -> None:
        raise AssertionError("nothing is asked for")

    servers, server = Servers(cloud.cells, SystemClock(), wake, deliver), await cloud.boot()
    device = await give(cloud, server)
    volume, attachment = device.volume_id or "", device.attachment_id or ""
    assert await servers.holds(server.uuid, volume, attachment)
    for asked in ((server.uuid, volume, NOWHERE), (server.uuid, NOWHERE, attachment), (NOWHERE, volume, attachment)):
        assert not await servers.holds(*asked)
    await cloud.cell.database.write(lambda conn: block_devices.remove_all(conn, server.uuid))
    assert not await servers.holds(server.uuid, volume, attachment)
