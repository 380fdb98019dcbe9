"""shelve and unshelve."""

from typing import Any

import pytest
from compute_cloud import ComputeCloud

from kilonova.domain.image import Image
from kilonova.domain.instance import Instance
from kilonova.domain.states import TaskState, VmState

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
