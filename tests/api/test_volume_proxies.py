"""Requests about volumes and snapshots that are passed on to the volume service, up to 2.35."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from compute_cloud import ComputeCloud, compute_cloud
from volume_cloud import SERVER, USER, VolumeCloud

from kilonova.embedded.volume import quotas
from kilonova.embedded.volume.client import VolumeClient

NOWHERE = "77777777-7777-4777-8777-777777777777"


@pytest.fixture
async def cloud(storage: VolumeCloud) -> AsyncIterator[ComputeCloud]:
    async with compute_cloud(volumes=VolumeClient(storage.volumes)) as running:
        yield running


async def ids(cloud: ComputeCloud, path: str, **more: Any) -> list[str]:
    (entries,) = (await cloud.get(path, **more)).json().values()
    return [entry["id"] for entry in entries]


@pytest.mark.spec("API-292", "API-293", "API-294", "API-295", "API-296")
async def test_volumes(cloud: ComputeCloud, storage: VolumeCloud) -> None:
    body = {"volume": {
        "size": "2", "display_name": "data", "display_description": "of a server", "metadata": {"color": "red"},
        "availability_zone": "nova",
    }}
    answer = await cloud.post("/os-volumes", body, version="2.35")
    assert answer.status_code == 200, answer.text
    made = answer.json()["volume"]
    assert answer.headers["Location"].endswith(f"/os-volumes/{made['id']}")
    await storage.settle()
    shown = (await cloud.get(f"/os-volumes/{made['id']}", as_="reader")).json()["volume"]
    assert shown == {
        "id": made["id"], "status": "available", "size": 2, "availabilityZone": "nova", "attachments": [{}],
        "displayName": "data", "displayDescription": "of a server", "volumeType": "__DEFAULT__", "snapshotId": None,
        "metadata": {"color": "red"}, "createdAt": made["createdAt"],
    }
    second = await storage.make()
    attached = await storage.volumes.attachments.create(
        USER, second, SERVER, connector={"host": "h1", "mountpoint": "/dev/vdb"})
    await storage.volumes.attachments.complete(USER, attached.id)
    for path in ("/os-volumes", "/os-volumes/detail"):
        entries = (await cloud.get(path, as_="reader")).json()["volumes"]
        assert [entry["id"] for entry in entries] == [second, made["id"]]
        assert entries[1] == shown
        assert entries[0]["attachments"] == [
            {"id": second, "volumeId": second, "serverId": SERVER, "device": "/dev/vdb"}]
        assert await ids(cloud, f"{path}?limit=1&offset=1") == [made["id"]]
        assert await ids(cloud, path, as_="stranger") == []
        assert (await cloud.get(path, version="2.36")).status_code == 404
        assert (await cloud.get(path, as_="nobody")).status_code == 403
    for method in ("GET", "DELETE"):
        assert (await cloud.request(method, f"/os-volumes/{NOWHERE}")).status_code == 404
        assert (await cloud.request(method, f"/os-volumes/{second}", as_="stranger")).status_code == 404
    assert (await cloud.delete(f"/os-volumes/{second}")).status_code == 400
    assert (await cloud.delete(f"/os-volumes/{made['id']}", as_="reader")).status_code == 403
    answer = await cloud.delete(f"/os-volumes/{made['id']}")
    assert (answer.status_code, answer.content) == (202, b"")
    await storage.settle()
    assert await ids(cloud, "/os-volumes") == [second]


@pytest.mark.spec("API-294")
async def test_a_volume_that_cannot_be_made(cloud: ComputeCloud, storage: VolumeCloud) -> None:
    for volume, code in (
        ({"size": 0}, 400), ({}, 400), ({"size": 1, "snapshot_id": NOWHERE}, 404),
        ({"size": 1, "volume_type": "none"}, 404), ({"size": 1, "color": 1}, 400),
    ):
        assert (await cloud.post("/os-volumes", {"volume": volume})).status_code == code, volume
    assert (await cloud.post("/os-volumes", {"volume": {"size": 1}}, as_="reader")).status_code == 403
    await storage.database.write(lambda conn: quotas.set_limits(conn, "a" * 32, {"volumes": 0}))
    assert (await cloud.post("/os-volumes", {"volume": {"size": 1}})).status_code == 403


@pytest.mark.spec("API-297", "API-298", "API-299", "API-300", "API-301")
async def test_snapshots(cloud: ComputeCloud, storage: VolumeCloud) -> None:
    volume, used = await storage.make(2), await storage.make()
    await storage.attach(used)
    body = {"snapshot": {"volume_id": volume, "display_name": "s", "display_description": "before"}}
    answer = await cloud.post("/os-snapshots", body, version="2.35")
    assert answer.status_code == 200, answer.text
    made = answer.json()["snapshot"]
    await storage.settle()
    shown = (await cloud.get(f"/os-snapshots/{made['id']}", as_="reader")).json()["snapshot"]
    assert shown == {
        "id": made["id"], "volumeId": volume, "status": "available", "size": 2, "displayName": "s",
        "displayDescription": "before", "createdAt": made["createdAt"],
    }
    for force, code in ((None, 400), (False, 400), ("true", 200)):
        wanted = {"volume_id": used} | ({} if force is None else {"force": force})
        answer = await cloud.post("/os-snapshots", {"snapshot": wanted})
        assert answer.status_code == code, answer.text
    forced = answer.json()["snapshot"]["id"]
    await storage.settle()
    for path in ("/os-snapshots", "/os-snapshots/detail"):
        assert (await cloud.get(path)).json()["snapshots"][1] == shown
        assert await ids(cloud, path, as_="reader") == [forced, made["id"]]
        assert await ids(cloud, f"{path}?limit=1") == [forced]
        assert await ids(cloud, path, as_="stranger") == []
    for wanted_, code in (({"volume_id": NOWHERE}, 404), ({"volume_id": ""}, 400), ({}, 400)):
        assert (await cloud.post("/os-snapshots", {"snapshot": wanted_})).status_code == code
    for method in ("GET", "DELETE"):
        assert (await cloud.request(method, f"/os-snapshots/{uuid.uuid4()}")).status_code == 404
        assert (await cloud.request(method, f"/os-snapshots/{forced}", as_="stranger")).status_code == 404
    assert (await cloud.delete(f"/os-snapshots/{forced}", as_="reader")).status_code == 403
    answer = await cloud.delete(f"/os-snapshots/{forced}")
    assert (answer.status_code, answer.content) == (202, b"")
    await storage.settle()
    assert await ids(cloud, "/os-snapshots") == [made["id"]]
