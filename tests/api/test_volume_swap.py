"""Moving a server to another volume: only for a volume service that migrates its volume."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from compute_cloud import ComputeCloud, compute_cloud
from known_volumes import KnownVolumes

from kilonova.db import block_devices
from kilonova.domain.block_device import AttachState, BlockDevice
from kilonova.domain.instance import Instance
from kilonova.domain.states import VmState
from kilonova.operations.swap_volume import SwapVolume
from kilonova.services.volumes import AttachedServer, Attachment, Volume

OLD, NEW = "11111111-7777-4777-8777-777777777777", "22222222-7777-4777-8777-777777777777"


class Attached(KnownVolumes):
    """Volumes with attachments. modes: of those."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: dict[str, str] = {}

    def put(self, id_: str, *modes: str, **fields: Any) -> None:
        ids = [str(uuid.uuid4()) for _ in modes]
        self.modes |= dict(zip(ids, modes, strict=True))
        self.add(Volume(**{
            "id": id_, "status": "in-use" if ids else "available", "size": 2, "project_id": "p",
            "attachments": tuple(AttachedServer(attachment_id=one) for one in ids), **fields,
        }))

    async def attachment(self, attachment_id: str) -> Attachment:
        return Attachment(id=attachment_id, volume_id=OLD, mode=self.modes[attachment_id])


@pytest.fixture
def volumes() -> Attached:
    known = Attached()
    known.put(OLD, "rw", migration_status="migrating")
    known.put(NEW, migration_status=f"target:{OLD}")
    return known


@pytest.fixture
async def cloud(volumes: Attached) -> AsyncIterator[ComputeCloud]:
    async with compute_cloud(volumes=volumes) as running:  # type: ignore[arg-type]
        yield running


async def boot(cloud: ComputeCloud, *attached: str, **fields: Any) -> Instance:
    """A server with these volumes, as far as its record tells."""
    server = await cloud.boot(**fields)
    for number, volume in enumerate(attached):
        device = BlockDevice(
            uuid=str(uuid.uuid4()), source_type="volume", destination_type="volume", device_name=f"/dev/vd{number}",
            volume_id=volume, attachment_id=str(uuid.uuid4()), connection_info="{}", state=AttachState.ATTACHED,
        )
        await cloud.cell.database.write(
            lambda conn, device=device: block_devices.insert(conn, server.uuid, device, now=1.0)
        )
    return server


async def swap(
    cloud: ComputeCloud, server: Instance, old: str = OLD, new: str = NEW, *, version: int = 85, as_: str = "service"
) -> httpx.Response:
    body = {"volumeAttachment": {"volumeId": new}}
    path = f"/servers/{server.uuid}/os-volume_attachments/{old}"
    return await cloud.put(path, body, version=f"2.{version}", as_=as_)


@pytest.mark.spec("API-179", "EMV-32")
@pytest.mark.parametrize("version", [1, 84, 85, 104])
async def test_the_volume_service_has_a_server_moved(cloud: ComputeCloud, version: int) -> None:
    server = await boot(cloud, OLD)
    answer = await swap(cloud, server, version=version)
    assert (answer.status_code, answer.content) == (202, b"")
    assert cloud.compute.asked == [("swap-volume", server.uuid, SwapVolume(OLD, NEW))]


@pytest.mark.spec("API-179", "EMV-32", "SWP-04", "SWP-06")
@pytest.mark.parametrize("status", [None, "", "none", "success", "error", "starting"])
async def test_a_volume_that_does_not_migrate_is_left_alone(
    cloud: ComputeCloud, volumes: Attached, status: str | None
) -> None:
    """The answer names the supported way."""
    volumes.put(OLD, "rw", migration_status=status)
    answer = await swap(cloud, await boot(cloud, OLD))
    assert answer.status_code == 409
    assert "openstack volume migrate" in answer.json()["conflictingRequest"]["message"]
    assert cloud.compute.asked == []


@pytest.mark.spec("API-179", "EMV-32", "SWP-34")
async def test_what_cannot_be_swapped_is_refused(cloud: ComputeCloud, volumes: Attached) -> None:
    server, unknown = await boot(cloud, OLD), str(uuid.uuid4())
    assert (await swap(cloud, server, as_="member")).status_code == 403
    assert (await swap(cloud, server, old=unknown)).status_code == 404
    assert (await swap(cloud, server, new=unknown)).status_code == 400
    assert (await swap(cloud, server, new=OLD, version=84)).status_code == 400
    for size in (1, 3):
        volumes.put(NEW, size=size)
        assert (await swap(cloud, server)).status_code == 400
    volumes.put(NEW, "rw")
    assert (await swap(cloud, server)).status_code == 400
    volumes.put(NEW)
    volumes.put(OLD, "rw", "ro", "rw", multiattach=True, migration_status="migrating")
    assert (await swap(cloud, server)).status_code == 400
    assert (await swap(cloud, await boot(cloud, OLD, NEW))).status_code == 400
    assert cloud.compute.asked == []
    volumes.put(OLD, "rw", "ro", multiattach=True, migration_status="migrating")
    assert (await swap(cloud, server)).status_code == 202


@pytest.mark.spec("API-179")
@pytest.mark.parametrize("fields", [
    {"vm_state": VmState.STOPPED}, {"vm_state": VmState.SHELVED_OFFLOADED, "host": None}, {"locked_by": "owner"},
])
async def test_states_and_locks_are_kept(cloud: ComputeCloud, fields: dict[str, Any]) -> None:
    assert (await swap(cloud, await boot(cloud, OLD, **fields))).status_code == 409
    assert cloud.compute.asked == []
