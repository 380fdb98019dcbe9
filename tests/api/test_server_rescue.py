"""Rescuing a server and bringing it back."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest
from compute_cloud import CIRROS, ComputeCloud, compute_cloud

from kilonova.api.cloud import ApiOptions
from kilonova.domain.instance import Instance
from kilonova.domain.states import TaskState, VmState
from kilonova.operations.rescue import RescueServer
from kilonova.operations.unrescue import UnrescueServer

MISSING = "99999999-9999-4999-8999-999999999999"


async def ask(cloud: ComputeCloud, server: Instance, value: Any = None, as_: str = "member") -> httpx.Response:
    return await cloud.post(f"/servers/{server.uuid}/action", {"rescue": value}, as_=as_)


def asked(cloud: ComputeCloud) -> RescueServer:
    name, _, request = cloud.compute.asked[-1]
    assert name == "rescue"
    assert isinstance(request, RescueServer)
    return request


async def refused(cloud: ComputeCloud, server: Instance, code: int, value: Any = None) -> str:
    answer = await ask(cloud, server, value)
    assert answer.status_code == code, answer.text
    assert cloud.compute.asked == []
    (fault,) = answer.json().values()
    message: str = fault["message"]
    return message


@pytest.mark.spec("API-121", "API-447", "RSC-04", "RSC-06")
async def test_rescue(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    answer = await ask(cloud, server)
    assert answer.status_code == 200
    assert re.fullmatch(r"[a-zA-Z0-9]{12}", answer.json()["adminPass"])
    assert asked(cloud) == RescueServer(
        image=cloud.images.images[CIRROS], admin_password=answer.json()["adminPass"])
    assert (await cloud.stored(server.uuid)).task_state is TaskState.RESCUING
    answer = await ask(cloud, await cloud.boot(), {"adminPass": "secret"})
    assert answer.json() == {"adminPass": "secret"}
    assert asked(cloud).admin_password == "secret"


@pytest.mark.spec("API-121", "API-447")
async def test_password_option_off() -> None:
    async with compute_cloud(options=ApiOptions(enable_instance_password=False)) as cloud:
        answer = await ask(cloud, await cloud.boot(), {"adminPass": "secret"})
        assert (answer.status_code, answer.json()) == (200, {})
        assert asked(cloud).admin_password == "secret"


@pytest.mark.spec("RSC-06", "API-121")
async def test_which_image_it_is_rescued_from(cloud: ComputeCloud) -> None:
    base, named = cloud.images.add(name="base"), cloud.images.add(name="rescue")
    from_base = {"image_base_image_ref": base.id}
    await ask(cloud, await cloud.boot(system_metadata=from_base), {"rescue_image_ref": named.id})
    assert asked(cloud).image == named
    await ask(cloud, await cloud.boot(system_metadata=from_base))
    assert asked(cloud).image == base
    for gone in (MISSING, cloud.images.add(status="queued").id):
        await ask(cloud, await cloud.boot(system_metadata={"image_base_image_ref": gone}))
        assert asked(cloud).image.id == CIRROS


@pytest.mark.spec("RSC-07", "API-121")
async def test_no_image_is_left(cloud: ComputeCloud) -> None:
    for server in (await cloud.boot(image_ref=MISSING), await cloud.boot(image_ref="")):
        message = await refused(cloud, server, 400)
        assert message.startswith(f"Instance {server.uuid} cannot be rescued: ")
        assert (await cloud.stored(server.uuid)).task_state is None
    await ask(cloud, server, {"rescue_image_ref": CIRROS})
    assert asked(cloud).image.id == CIRROS


@pytest.mark.spec("API-121")
async def test_bad_bodies(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    hidden = cloud.images.add(visibility="private", owner="somebody")
    bodies: tuple[Any, ...] = (
        "x", [], {"rescue_image_ref": "x"}, {"rescue_image_ref": None}, {"adminPass": 5}, {"color": "red"},
        {"rescue_image_ref": MISSING}, {"rescue_image_ref": hidden.id},
        {"rescue_image_ref": cloud.images.add(status="queued").id},
    )
    for bad in bodies:
        await refused(cloud, server, 400, bad)


@pytest.mark.spec("API-121", "API-122", "API-062", "API-064", "API-068")
async def test_states_locks_and_policy(cloud: ComputeCloud) -> None:
    for state in (VmState.ACTIVE, VmState.STOPPED, VmState.ERROR):
        assert (await ask(cloud, await cloud.boot(vm_state=state))).status_code == 200
    cloud.compute.asked.clear()
    paused = await cloud.boot(vm_state=VmState.PAUSED)
    assert await refused(cloud, paused, 409, {"rescue_image_ref": MISSING}) == (
        f"Cannot 'rescue' instance {paused.uuid} while it is in vm_state paused")
    locked = await cloud.boot(locked_by="owner", vm_state=VmState.PAUSED)
    assert await refused(cloud, locked, 409) == f"Instance {locked.uuid} is locked"
    server = await cloud.boot()
    for who, code in (("reader", 403), ("stranger", 404)):
        assert (await ask(cloud, server, as_=who)).status_code == code
        answer = await cloud.post(f"/servers/{server.uuid}/action", {"unrescue": None}, as_=who)
        assert answer.status_code == code


@pytest.mark.spec("API-122")
async def test_unrescue(cloud: ComputeCloud) -> None:
    server = await cloud.boot(vm_state=VmState.RESCUED)
    path = f"/servers/{server.uuid}"
    assert (await cloud.get(path)).json()["server"]["status"] == "RESCUE"
    answer = await cloud.post(f"{path}/action", {"unrescue": None})
    assert (answer.status_code, answer.content) == (202, b"")
    assert cloud.compute.asked == [("unrescue", server.uuid, UnrescueServer())]
    assert (await cloud.stored(server.uuid)).task_state is TaskState.UNRESCUING
    active = await cloud.boot()
    answer = await cloud.post(f"/servers/{active.uuid}/action", {"unrescue": None})
    assert answer.status_code == 409
    assert "Cannot 'unrescue' instance" in answer.text
