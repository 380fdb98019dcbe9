"""createImage and createBackup."""

from typing import Any

import httpx
import pytest
from compute_cloud import PROJECT, ComputeCloud

from kilonova.api.compute.quota_check import Limits
from kilonova.domain.block_device import BlockDevice
from kilonova.domain.image import Image
from kilonova.domain.instance import Instance
from kilonova.domain.states import TaskState, VmState
from kilonova.operations.backup import BackupServer
from kilonova.operations.snapshot import SnapshotServer

BASE = Image(id="11111111-1111-4111-8111-111111111111", properties={"hw_disk_bus": "scsi"})


async def act(
    cloud: ComputeCloud, server: Instance, body: Any, version: str = "2.1", as_: str = "member"
) -> httpx.Response:
    return await cloud.post(f"/servers/{server.uuid}/action", body, version=version, as_=as_)


def asked(cloud: ComputeCloud) -> Any:
    return cloud.compute.asked[-1][2]


@pytest.mark.spec("API-124", "API-545", "API-618")
async def test_an_image_is_linked_in_a_header_and_later_in_the_body(cloud: ComputeCloud) -> None:
    for version in ("2.1", "2.44"):
        answer = await act(cloud, await cloud.boot(image=BASE), {"createImage": {"name": "snap"}}, version)
        assert (answer.status_code, answer.content) == (202, b"")
        request = asked(cloud)
        assert isinstance(request, SnapshotServer)
        assert answer.headers["Location"].rpartition("/images/")[2] == request.image.id
    server = await cloud.boot(image=BASE, locked_by="admin")
    answer = await act(cloud, server, {"createImage": {"name": "snap", "metadata": {"a": "b"}}}, "2.45")
    assert (answer.status_code, answer.json()) == (202, {"image_id": asked(cloud).image.id})
    assert "Location" not in answer.headers
    assert asked(cloud).image.properties["a"] == "b"
    assert (await cloud.stored(server.uuid)).task_state is TaskState.IMAGE_SNAPSHOT_PENDING


@pytest.mark.spec("API-124", "API-125")
async def test_servers_that_boot_from_volumes_have_images_but_no_backups(cloud: ComputeCloud) -> None:
    root = BlockDevice(uuid="1", source_type="volume", destination_type="volume", boot_index=0, volume_id="2")
    server = await cloud.boot(image=Image(id=""), block_devices=(root,))
    answer = await act(cloud, server, {"createBackup": {"name": "b", "backup_type": "daily", "rotation": "2"}})
    assert answer.status_code == 400
    assert "Backup is not supported for volume-backed instances" in answer.text
    assert (await act(cloud, server, {"createImage": {"name": "snap"}}, as_="reader")).status_code == 403
    assert (await act(cloud, server, {"createImage": {"name": "snap"}})).status_code == 202
    assert asked(cloud).image.min_disk == 0


@pytest.mark.spec("API-125", "API-545", "API-618")
async def test_a_backup_that_is_not_kept_has_no_link(cloud: ComputeCloud) -> None:
    body = {"createBackup": {"name": "b", "backup_type": "daily", "rotation": "2", "metadata": {"a": "b"}}}
    server = await cloud.boot(image=BASE, locked_by="admin")
    answer = await act(cloud, server, body)
    request = asked(cloud)
    assert isinstance(request, BackupServer)
    assert (request.backup_type, request.rotation, request.image.name) == ("daily", 2, "b")
    assert answer.headers["Location"].endswith(f"/images/{request.image.id}")
    assert (await cloud.stored(server.uuid)).task_state is TaskState.IMAGE_BACKUP
    body["createBackup"]["rotation"] = 0  # type: ignore[assignment]
    answer = await act(cloud, await cloud.boot(image=BASE), body)
    assert (answer.status_code, "Location" in answer.headers) == (202, False)
    answer = await act(cloud, await cloud.boot(image=BASE), body, "2.45")
    assert answer.json() == {"image_id": asked(cloud).image.id}


@pytest.mark.spec("API-124", "API-125")
async def test_what_is_refused(cloud: ComputeCloud) -> None:
    server = await cloud.boot(image=BASE)
    backup = {"name": "b", "backup_type": "daily", "rotation": 1}
    for bad in (
        {"createImage": {}}, {"createImage": {"name": ""}}, {"createImage": {"name": "x" * 256}},
        {"createImage": {"name": "x", "metadata": None}}, {"createImage": {"name": "x", "y": 1}},
        {"createImage": {"name": "x", "metadata": {"a": 1}}},
        *({"createBackup": {k: v for k, v in backup.items() if k != left}} for left in backup),
        {"createBackup": {**backup, "rotation": -1}}, {"createBackup": {**backup, "x": 1}},
    ):
        assert (await act(cloud, server, bad)).status_code == 400, bad
    for body in ({"createImage": {"name": "x"}}, {"createBackup": backup}):
        assert (await act(cloud, server, body, as_="reader")).status_code == 403
        assert (await act(cloud, server, body, as_="stranger")).status_code == 404
        assert (await act(cloud, await cloud.boot(image=None), body)).status_code == 400
        failed = await cloud.boot(image=BASE, vm_state=VmState.ERROR)
        assert (await act(cloud, failed, body)).status_code == 409
    assert cloud.compute.asked == []


@pytest.mark.spec("API-124")
async def test_metadata_count_against_a_quota_until_2_38(cloud: ComputeCloud) -> None:
    limit = Limits().metadata_items
    for version, items, status in (("2.38", limit + 1, 403), ("2.38", limit, 202), ("2.39", limit + 1, 202)):
        metadata = {str(number): "" for number in range(items)}
        body = {"createImage": {"name": "x", "metadata": metadata}}
        server = await cloud.boot(image=BASE)
        assert (await act(cloud, server, body, version)).status_code == status


@pytest.mark.spec("API-124", "API-198")
async def test_the_old_alias_makes_images_and_no_backups(cloud: ComputeCloud) -> None:
    server = await cloud.boot(image=BASE, project_id=PROJECT)
    path = f"/os-volumes_boot/{server.uuid}/action"
    assert (await cloud.post(path, {"createImage": {"name": "x"}})).status_code == 202
    body = {"createBackup": {"name": "b", "backup_type": "daily", "rotation": 1}}
    assert (await cloud.post(path, body)).status_code == 400
