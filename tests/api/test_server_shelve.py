"""shelve, shelveOffload and unshelve."""

from typing import Any

import pytest
import sqlalchemy as sa
from compute_cloud import HOST, ComputeCloud

from kilonova.db import build_requests
from kilonova.domain.image import Image
from kilonova.domain.instance import Instance, RequestSpec
from kilonova.domain.states import TaskState, VmState
from kilonova.operations.unshelve_offloaded import UnshelveOffloaded
from kilonova.services.placement import Pin

BASE = Image(id="11111111-1111-4111-8111-111111111111")


async def act(
    cloud: ComputeCloud, server: Instance, action: str, value: Any = None, version: int = 1, as_: str = "member"
) -> int:
    body = {action: value}
    return (await cloud.post(f"/servers/{server.uuid}/action", body, version=f"2.{version}", as_=as_)).status_code


@pytest.mark.spec("API-133")
async def test_shelve(cloud: ComputeCloud) -> None:
    server = await cloud.boot(image=BASE)
    assert await act(cloud, server, "shelve", as_="reader") == 403
    assert await act(cloud, server, "shelve") == 202
    assert cloud.compute.asked[-1][2].image.name == f"{server.display_name}-shelved"
    assert (await cloud.stored(server.uuid)).task_state is TaskState.SHELVING
    assert await act(cloud, await cloud.boot(image=BASE, locked_by="admin"), "shelve") == 409
    assert await act(cloud, await cloud.boot(image=BASE, vm_state=VmState.ERROR), "shelve") == 409
    assert await act(cloud, await cloud.boot(image=None), "shelve") == 400


async def test_unshelve_where_it_is(cloud: ComputeCloud) -> None:
    for version in (1, 76, 77, 90, 91, 102):
        server = await cloud.boot(image=BASE, vm_state=VmState.SHELVED)
        assert await act(cloud, server, "unshelve", version=version) == 202
        assert (await cloud.stored(server.uuid)).task_state is TaskState.UNSHELVING
    assert await act(cloud, await cloud.boot(vm_state=VmState.SHELVED, locked_by="admin"), "unshelve") == 409
    assert await act(cloud, await cloud.boot(), "unshelve") == 409


async def test_what_is_on_its_host_goes_nowhere_else(cloud: ComputeCloud) -> None:
    server = await cloud.boot(image=BASE, vm_state=VmState.SHELVED)
    assert await act(cloud, server, "unshelve", {"availability_zone": "nova"}, 77) == 409
    assert await act(cloud, server, "unshelve", {"availability_zone": None}, 91) == 409
    assert await act(cloud, server, "unshelve", {"host": "host-1"}, 91) == 403
    assert await act(cloud, server, "unshelve", {"host": "host-1"}, 91, as_="admin") == 409
    for version, bad in ((77, {}), (77, {"host": "x"}), (90, {"availability_zone": None}), (91, {"x": 1}), (91, "x")):
        assert await act(cloud, server, "unshelve", bad, version) == 400
    assert cloud.compute.asked == []


@pytest.mark.spec("API-134")
async def test_offload(cloud: ComputeCloud) -> None:
    server = await cloud.boot(image=BASE, vm_state=VmState.SHELVED)
    assert await act(cloud, server, "shelveOffload") == 403
    assert await act(cloud, server, "shelveOffload", as_="admin") == 202
    assert (await cloud.stored(server.uuid)).task_state is TaskState.SHELVING_OFFLOADING
    assert await act(cloud, await cloud.boot(image=BASE), "shelveOffload", as_="admin") == 409
    gone = await cloud.boot(image=BASE, vm_state=VmState.SHELVED_OFFLOADED, host=None)
    assert await act(cloud, gone, "shelveOffload", as_="admin") == 409


async def offloaded(cloud: ComputeCloud, zone: str | None = None) -> Instance:
    """A server on no host. zone: that it is tied to."""
    server = await cloud.boot(image=BASE, vm_state=VmState.SHELVED_OFFLOADED, host=None)
    spec = RequestSpec(
        instance_uuid=server.uuid, project_id=server.project_id, user_id="u", flavor=server.flavor, image=BASE,
        availability_zone=zone,
    )
    await cloud.cells.api.write(lambda conn: _specify(conn, spec))
    return server


def _specify(conn: sa.Connection, spec: RequestSpec) -> None:
    table = build_requests.request_specs
    conn.execute(sa.delete(table).where(table.c.uuid == spec.instance_uuid))
    conn.execute(sa.insert(table).values(uuid=spec.instance_uuid, body=spec))


@pytest.mark.spec("API-135", "API-577", "API-591")
async def test_unshelve_of_an_offloaded_server(cloud: ComputeCloud) -> None:
    for version, value, expected in (
        (1, None, UnshelveOffloaded()),
        (76, {"availability_zone": "ignored"}, UnshelveOffloaded()),
        (77, None, UnshelveOffloaded()),
        (77, {"availability_zone": "nova"}, UnshelveOffloaded(pin=Pin("nova"))),
        (91, {}, UnshelveOffloaded()),
        (91, {"availability_zone": None}, UnshelveOffloaded(pin=Pin(None))),
        (91, {"host": HOST}, UnshelveOffloaded(host=HOST)),
        (91, {"host": HOST, "availability_zone": "nova"}, UnshelveOffloaded(host=HOST, pin=Pin("nova"))),
        (102, {"host": HOST, "availability_zone": None}, UnshelveOffloaded(host=HOST, pin=Pin(None))),
    ):
        server = await offloaded(cloud)
        assert await act(cloud, server, "unshelve", value, version, as_="admin") == 202
        assert cloud.compute.asked[-1] == ("unshelve-offloaded", server.uuid, expected)
        assert (await cloud.stored(server.uuid)).task_state is TaskState.UNSHELVING


@pytest.mark.spec("API-135")
async def test_unshelve_to_a_place_that_does_not_do(cloud: ComputeCloud) -> None:
    server = await offloaded(cloud, zone="here")
    cloud.hosts.zones["host-2"] = "there"
    cloud.hosts.known["host-2"] = "UP"
    for value, status in (
        ({"availability_zone": "mars"}, 400), ({"host": "nowhere"}, 400), ({"host": "host-2"}, 409),
        ({"host": "host-2", "availability_zone": "here"}, 409),
    ):
        assert await act(cloud, server, "unshelve", value, 91, as_="admin") == status
    assert await act(cloud, server, "unshelve", {"host": "host-2"}, 91) == 403
    assert cloud.compute.asked == []
    assert await act(cloud, server, "unshelve", {"host": "host-2", "availability_zone": "there"}, 91, "admin") == 202


async def test_a_locked_server_stays_on_its_shelf(cloud: ComputeCloud) -> None:
    server = await cloud.boot(image=BASE, vm_state=VmState.SHELVED_OFFLOADED, host=None, locked_by="admin")
    assert await act(cloud, server, "unshelve") == 409
    shelved = await cloud.boot(image=BASE, vm_state=VmState.SHELVED, locked_by="owner")
    assert await act(cloud, shelved, "shelveOffload", as_="admin") == 202
