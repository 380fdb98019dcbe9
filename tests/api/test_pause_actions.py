"""Actions that make a server stand still and go on."""

from __future__ import annotations

import pytest
from compute_cloud import ComputeCloud

from kilonova.domain.states import PowerState, TaskState, VmState
from kilonova.operations.pause import PauseServer, UnpauseServer
from kilonova.operations.suspend import ResumeServer, SuspendServer


@pytest.mark.spec("API-117", "API-118")
async def test_pause_and_unpause(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    path = f"/servers/{server.uuid}/action"
    assert (await cloud.post(path, {"pause": None}, as_="reader")).status_code == 403
    answer = await cloud.post(path, {"pause": {"any": "thing"}})
    assert (answer.status_code, answer.content) == (202, b"")
    assert cloud.compute.asked == [("pause", server.uuid, PauseServer())]
    assert (await cloud.stored(server.uuid)).task_state is TaskState.PAUSING
    active = await cloud.boot()
    answer = await cloud.post(f"/servers/{active.uuid}/action", {"unpause": None})
    assert answer.status_code == 409
    assert answer.json()["conflictingRequest"]["message"] == (
        f"Cannot 'unpause' instance {active.uuid} while it is in vm_state active")
    paused = await cloud.boot(vm_state=VmState.PAUSED)
    shown = (await cloud.get(f"/servers/{paused.uuid}")).json()["server"]
    assert shown["status"] == "PAUSED"
    assert (await cloud.post(f"/servers/{paused.uuid}/action", {"unpause": None}, as_="reader")).status_code == 403
    assert (await cloud.post(f"/servers/{paused.uuid}/action", {"unpause": None})).status_code == 202
    assert cloud.compute.asked[-1] == ("unpause", paused.uuid, UnpauseServer())
    locked = await cloud.boot(locked_by="owner")
    answer = await cloud.post(f"/servers/{locked.uuid}/action", {"pause": None})
    assert (answer.status_code, answer.json()["conflictingRequest"]["message"]) == (
        409, f"Instance {locked.uuid} is locked")
    assert (await cloud.post("/servers/no-such/action", {"pause": None})).status_code == 404


@pytest.mark.spec("API-119", "API-120")
async def test_suspend_and_resume(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    path = f"/servers/{server.uuid}/action"
    assert (await cloud.post(path, {"suspend": None}, as_="reader")).status_code == 403
    answer = await cloud.post(path, {"resume": None})
    assert answer.status_code == 409
    assert answer.json()["conflictingRequest"]["message"] == (
        f"Cannot 'resume' instance {server.uuid} while it is in vm_state active")
    answer = await cloud.post(path, {"suspend": None})
    assert (answer.status_code, answer.content) == (202, b"")
    assert cloud.compute.asked == [("suspend", server.uuid, SuspendServer())]
    assert (await cloud.stored(server.uuid)).task_state is TaskState.SUSPENDING
    suspended = await cloud.boot(vm_state=VmState.SUSPENDED, power_state=PowerState.SUSPENDED)
    shown = (await cloud.get(f"/servers/{suspended.uuid}")).json()["server"]
    assert (shown["status"], shown["OS-EXT-STS:power_state"]) == ("SUSPENDED", 7)
    path = f"/servers/{suspended.uuid}/action"
    assert (await cloud.post(path, {"resume": None}, as_="reader")).status_code == 403
    assert (await cloud.post(path, {"resume": {}})).status_code == 202
    assert cloud.compute.asked[-1] == ("resume", suspended.uuid, ResumeServer())
    locked = await cloud.boot(vm_state=VmState.SUSPENDED, locked_by="owner")
    assert (await cloud.post(f"/servers/{locked.uuid}/action", {"resume": None})).status_code == 409
