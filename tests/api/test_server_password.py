"""The password of a guest's administrator."""

from __future__ import annotations

import pytest
from compute_cloud import ComputeCloud

from kilonova.db import instances
from kilonova.domain.states import VmState


@pytest.mark.spec("API-123")
async def test_change_password(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    path = f"/servers/{server.uuid}/action"
    body = {"changePassword": {"adminPass": "new one"}}
    assert (await cloud.post(path, body, as_="reader")).status_code == 403
    for bad in (None, {}, {"adminPass": None}, {"adminPass": 7}, {"adminPass": "x", "user": "y"}):
        assert (await cloud.post(path, {"changePassword": bad})).status_code == 400
    answer = await cloud.post(path, body)
    assert (answer.status_code, answer.content) == (202, b"")
    assert cloud.compute.calls == [("password new one", server.uuid)]
    shown = (await cloud.get(f"/servers/{server.uuid}")).json()["server"]
    assert shown["status"] == "PASSWORD"
    other = await cloud.boot()
    answer = await cloud.post(f"/servers/{other.uuid}/action", {"changePassword": {"adminPass": "refused"}})
    assert (answer.status_code, "refused" in answer.json()["conflictingRequest"]["message"]) == (409, True)
    stopped = await cloud.boot(vm_state=VmState.STOPPED)
    answer = await cloud.post(f"/servers/{stopped.uuid}/action", body)
    assert answer.status_code == 409
    assert answer.json()["conflictingRequest"]["message"] == (
        f"Cannot 'changePassword' instance {stopped.uuid} while it is in vm_state stopped")


@pytest.mark.spec("API-174", "API-175")
async def test_what_the_guest_has_told(cloud: ComputeCloud) -> None:
    server = await cloud.boot(system_metadata={"image_kind": "x"})
    path = f"/servers/{server.uuid}/os-server-password"
    assert (await cloud.get(path, as_="reader")).json() == {"password": ""}

    async def tell(password: str) -> bool:
        now = cloud.clock.now()
        return await cloud.cell.database.write(
            lambda conn: instances.keep_password(conn, server.uuid, password, now=now))

    assert await tell("Q2lwaGVy")
    assert not await tell("other")
    assert (await cloud.get(path, as_="reader")).json() == {"password": "Q2lwaGVy"}
    assert (await cloud.delete(path, as_="reader")).status_code == 403
    answer = await cloud.delete(path)
    assert (answer.status_code, answer.content) == (204, b"")
    assert (await cloud.get(path)).json() == {"password": ""}
    assert (await cloud.stored(server.uuid)).system_metadata == {"image_kind": "x"}
    assert await tell("again")
    assert (await cloud.get("/servers/no-such/os-server-password")).status_code == 404
    assert (await cloud.delete("/servers/no-such/os-server-password")).status_code == 404
