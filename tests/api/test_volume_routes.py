"""Routes about volumes in a cloud without a volume service, and other things that this cloud has none of."""

import uuid
from typing import Any

import pytest
from compute_cloud import ComputeCloud

from kilonova.domain.states import VmState

VOLUME = "77777777-7777-4777-8777-777777777777"
ATTACH = {"volumeAttachment": {"volumeId": VOLUME}}


async def status(cloud: ComputeCloud, method: str, path: str, body: Any = None, **more: Any) -> int:
    more = {"json": body, **more} if body is not None else more
    return (await cloud.request(method, path, **more)).status_code


@pytest.mark.parametrize(("path", "key"), [
    ("/os-volumes", "volumes"), ("/os-volumes/detail", "volumes"), ("/os-snapshots", "snapshots"),
    ("/os-snapshots/detail", "snapshots"),
])
async def test_nothing_is_listed(cloud: ComputeCloud, path: str, key: str) -> None:
    assert (await cloud.get(f"{path}?limit=1&offset=2", as_="reader", version="2.35")).json() == {key: []}
    assert await status(cloud, "GET", path, version="2.36") == 404
    assert await status(cloud, "GET", path, as_="nobody") == 403


async def test_nothing_is_found_and_nothing_can_be_made(cloud: ComputeCloud) -> None:
    for kind in ("volumes", "snapshots"):
        for method in ("GET", "DELETE"):
            assert await status(cloud, method, f"/os-{kind}/{VOLUME}") == 404
    assert await status(cloud, "POST", "/os-volumes", {"volume": {"size": "1"}}) == 503
    assert await status(cloud, "POST", "/os-volumes", {"volume": {"size": 0}}) == 400
    assert await status(cloud, "POST", "/os-snapshots", {"snapshot": {"volume_id": VOLUME}}) == 503
    assert await status(cloud, "POST", "/os-snapshots", {"snapshot": {}}) == 400
    assert await status(cloud, "POST", "/os-volumes", {"volume": {"size": 1}}, as_="reader") == 403


async def test_servers_have_no_volumes(cloud: ComputeCloud) -> None:
    path = f"/servers/{(await cloud.boot()).uuid}/os-volume_attachments"
    assert (await cloud.get(path, as_="reader")).json() == {"volumeAttachments": []}
    assert await status(cloud, "GET", f"{path}?x=1", version="2.75") == 400
    assert await status(cloud, "GET", f"{path}/{VOLUME}?x=1", version="2.104") == 404
    assert await status(cloud, "DELETE", f"{path}/{VOLUME}") == 404
    assert await status(cloud, "POST", path, ATTACH, version="2.104") == 503
    assert await status(cloud, "GET", f"/servers/{uuid.uuid4()}/os-volume_attachments") == 404


@pytest.mark.parametrize(("field", "value", "since"), [("tag", "disk", 49), ("delete_on_termination", True, 79)])
async def test_fields_of_an_attachment(cloud: ComputeCloud, field: str, value: Any, since: int) -> None:
    path = f"/servers/{(await cloud.boot()).uuid}/os-volume_attachments"
    body = {"volumeAttachment": {"volumeId": VOLUME, "device": "/dev/vdb", field: value}}
    assert await status(cloud, "POST", path, body, version=f"2.{since - 1}") == 400
    assert await status(cloud, "POST", path, body, version=f"2.{since}") == 503


async def test_lock_and_state_come_before_the_volume(cloud: ComputeCloud) -> None:
    locked = f"/servers/{(await cloud.boot(locked_by='admin')).uuid}/os-volume_attachments"
    suspended = f"/servers/{(await cloud.boot(vm_state=VmState.SUSPENDED)).uuid}/os-volume_attachments"
    for path in (locked, suspended):
        assert await status(cloud, "POST", path, ATTACH) == 409
        assert await status(cloud, "DELETE", f"{path}/{VOLUME}") == 409


@pytest.mark.spec("API-520")
async def test_shelved_servers_take_volumes_from_220(cloud: ComputeCloud) -> None:
    path = f"/servers/{(await cloud.boot(vm_state=VmState.SHELVED)).uuid}/os-volume_attachments"
    assert await status(cloud, "POST", path, ATTACH, version="2.19") == 409
    assert await status(cloud, "POST", path, ATTACH, version="2.20") == 503


async def test_who_may_change_an_attachment(cloud: ComputeCloud) -> None:
    """Swapping volumes is for services; from 2.85 members may change what stands beside the same volume."""
    path = f"/servers/{(await cloud.boot()).uuid}/os-volume_attachments/{VOLUME}"
    other = {"volumeAttachment": {"volumeId": str(uuid.uuid4())}}
    for version, body, member in (("2.84", ATTACH, 403), ("2.85", ATTACH, 404), ("2.85", other, 403)):
        assert await status(cloud, "PUT", path, body, version=version) == member
        assert await status(cloud, "PUT", path, body, version=version, as_="admin") == 404


@pytest.mark.spec("API-194", "API-473", "API-578")
async def test_topology(cloud: ComputeCloud) -> None:
    path = f"/servers/{(await cloud.boot()).uuid}/topology"
    assert await status(cloud, "GET", path, version="2.77") == 404
    answer = await cloud.get(path, version="2.78", as_="reader")
    assert (answer.status_code, answer.json()) == (200, {"nodes": [], "pagesize_kb": None})
    assert await status(cloud, "GET", path, version="2.78", as_="nobody") == 403
    assert await status(cloud, "GET", path, version="2.78", as_="stranger") == 404


@pytest.mark.spec("API-304", "API-305", "API-306")
async def test_no_bare_metal(cloud: ComputeCloud) -> None:
    for path in ("/os-baremetal-nodes", f"/os-baremetal-nodes/{VOLUME}"):
        assert await status(cloud, "GET", path, as_="admin") == 501
        assert await status(cloud, "GET", path, as_="manager") == 403
        assert await status(cloud, "GET", path, as_="admin", version="2.36") == 404
    assert await status(cloud, "POST", "/os-baremetal-nodes", {"node": {}}, as_="nobody") == 400
    assert await status(cloud, "DELETE", f"/os-baremetal-nodes/{VOLUME}", as_="nobody") == 400
    for action in ("add_interface", "remove_interface"):
        path = f"/os-baremetal-nodes/{VOLUME}/action"
        assert await status(cloud, "POST", path, {action: {"address": "x"}}, as_="nobody") == 400
        assert await status(cloud, "POST", path, {action: {"address": "x"}}, version="2.36") == 404
