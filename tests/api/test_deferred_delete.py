"""Restoring servers that were deleted softly, and deleting for good."""

import pytest
from compute_cloud import ComputeCloud, compute_cloud

from kilonova.api.compute.quota_check import Limits
from kilonova.domain.states import TaskState, VmState
from kilonova.operations.restore import RestoreServer


@pytest.mark.spec("API-136")
async def test_restore(cloud: ComputeCloud) -> None:
    server = await cloud.boot(vm_state=VmState.SOFT_DELETED)
    path = f"/servers/{server.uuid}/action"
    assert (await cloud.post(path, {"restore": None})).status_code == 202
    assert cloud.compute.asked == [("restore", server.uuid, RestoreServer())]
    assert (await cloud.stored(server.uuid)).task_state is TaskState.RESTORING
    active = await cloud.boot()
    answer = await cloud.post(f"/servers/{active.uuid}/action", {"restore": None})
    assert answer.status_code == 409
    assert answer.json()["conflictingRequest"]["message"] == (
        f"Cannot 'restore' instance {active.uuid} while it is in vm_state active")


@pytest.mark.spec("API-136", "API-061")
async def test_a_restore_needs_room_in_the_quota() -> None:
    """What is softly deleted does not count."""
    async with compute_cloud(limits=Limits(instances=1)) as cloud:
        soft = await cloud.boot(vm_state=VmState.SOFT_DELETED)
        await cloud.boot()
        answer = await cloud.post(f"/servers/{soft.uuid}/action", {"restore": None})
        assert answer.status_code == 403
        assert "already used 1 of 1 instances" in answer.json()["forbidden"]["message"]
        assert (await cloud.stored(soft.uuid)).task_state is None


@pytest.mark.spec("API-137")
@pytest.mark.parametrize("state", [VmState.ACTIVE, VmState.SOFT_DELETED, VmState.ERROR])
async def test_force_delete(cloud: ComputeCloud, state: VmState) -> None:
    server = await cloud.boot(vm_state=state)
    answer = await cloud.post(f"/servers/{server.uuid}/action", {"forceDelete": None})
    assert answer.status_code == 202
    assert ("delete for good", server.uuid) in cloud.compute.calls
