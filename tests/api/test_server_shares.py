"""Shared file systems of servers."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from compute_cloud import FOREIGN_SHARE, SECOND_SHARE, SHARE, ComputeCloud

from kilonova.domain.instance import Instance
from kilonova.domain.operation import OperationRecord, OperationState
from kilonova.domain.share import ShareMapping, ShareStatus
from kilonova.domain.states import PowerState, VmState
from kilonova.operations.attach_share import AttachShare
from kilonova.operations.detach_share import DetachShare

UNKNOWN = "70000000-0000-4000-8000-000000000000"
MAPPING = ShareMapping(
    uuid="71000000-0000-4000-8000-000000000000", share_id=SHARE, tag="data", export_location="/srv/one",
    status=ShareStatus.INACTIVE,
)


async def request(cloud: ComputeCloud, method: str, path: str, body: Any = None, **more: Any) -> Any:
    given = {"json": body} if body is not None else {}
    return await cloud.request(method, path, **{"version": "2.97", **given, **more})


async def attach(cloud: ComputeCloud, server: Instance, share: str = SHARE, **more: Any) -> Any:
    asked = {"share_id": share} | ({"tag": more.pop("tag")} if "tag" in more else {})
    return await request(cloud, "POST", f"/servers/{server.uuid}/shares", {"share": asked}, **more)


async def stopped(cloud: ComputeCloud, **fields: Any) -> Instance:
    return await cloud.boot(**{"vm_state": VmState.STOPPED, "power_state": PowerState.SHUTDOWN, **fields})


def succeeds(record: OperationRecord) -> OperationRecord:
    return msgspec.structs.replace(record, state=OperationState.SUCCEEDED)


@pytest.mark.spec("API-185", "API-472")
async def test_a_share_is_attached_under_its_id_or_a_tag(cloud: ComputeCloud) -> None:
    cloud.compute.ends["attach-share"] = succeeds
    for given, tag in (({}, SHARE), ({"tag": "my-data"}, "my-data")):
        server = await stopped(cloud)
        answer = await attach(cloud, server, **given)
        assert answer.status_code == 201
        assert answer.json() == {"share": {"share_id": SHARE, "status": "inactive", "tag": tag}}
        name, uuid, asked = cloud.compute.asked[-1]
        assert (name, uuid) == ("attach-share", server.uuid)
        assert asked == AttachShare(share_id=SHARE, tag=tag, export_location="/srv/one")
    answer = (await attach(cloud, await stopped(cloud), as_="admin")).json()["share"]
    assert answer["export_location"] == "/srv/one"
    assert answer["uuid"] == (await cloud.stored(cloud.compute.asked[-1][1])).shares[0].uuid


@pytest.mark.spec("API-184", "API-186", "API-472", "API-597")
async def test_shares_are_shown(cloud: ComputeCloud) -> None:
    server = await stopped(cloud, shares=(MAPPING,))
    path, row = f"/servers/{server.uuid}/shares", {"share_id": SHARE, "status": "inactive", "tag": "data"}
    assert (await request(cloud, "GET", path, as_="reader")).json() == {"shares": [row]}
    assert (await request(cloud, "GET", f"{path}/{SHARE}", as_="reader")).json() == {"share": row}
    more = {"uuid": MAPPING.uuid, "export_location": "/srv/one"}
    assert (await request(cloud, "GET", f"{path}/{SHARE}", as_="admin")).json() == {"share": row | more}
    assert (await request(cloud, "GET", path, as_="admin")).json() == {"shares": [row]}
    assert (await request(cloud, "GET", f"{path}/{SECOND_SHARE}")).status_code == 404
    for place in (path, f"{path}/{SHARE}"):
        assert (await request(cloud, "GET", place, version="2.96")).status_code == 404
        assert (await request(cloud, "GET", place, as_="nobody")).status_code == 403


@pytest.mark.spec("API-042")
async def test_a_foreign_server_is_refused_and_an_unknown_one_not_found(cloud: ComputeCloud) -> None:
    path = f"/servers/{(await stopped(cloud, shares=(MAPPING,))).uuid}/shares"
    body = {"share": {"share_id": SHARE}}
    for method, place, sent in (
        ("GET", path, None), ("GET", f"{path}/{SHARE}", None), ("POST", path, body),
        ("DELETE", f"{path}/{SHARE}", None),
    ):
        assert (await request(cloud, method, place, sent, as_="stranger")).status_code == 403
    assert (await request(cloud, "GET", f"/servers/{UNKNOWN}/shares")).status_code == 404


@pytest.mark.parametrize(("power", "stored", "shown"), [
    (PowerState.RUNNING, ShareStatus.INACTIVE, "active"), (PowerState.PAUSED, ShareStatus.INACTIVE, "active"),
    (PowerState.SHUTDOWN, ShareStatus.INACTIVE, "inactive"), (PowerState.SHUTDOWN, ShareStatus.ERROR, "error"),
    (PowerState.SHUTDOWN, ShareStatus.ATTACHING, "attaching"), (PowerState.RUNNING, ShareStatus.ERROR, "error"),
])
@pytest.mark.spec("API-472")
async def test_a_share_is_active_while_the_guest_is_on(
    cloud: ComputeCloud, power: PowerState, stored: ShareStatus, shown: str
) -> None:
    server = await cloud.boot(power_state=power, shares=(msgspec.structs.replace(MAPPING, status=stored),))
    (row,) = (await request(cloud, "GET", f"/servers/{server.uuid}/shares")).json()["shares"]
    assert row["status"] == shown


@pytest.mark.spec("API-185")
async def test_what_cannot_be_attached_is_refused(cloud: ComputeCloud) -> None:
    server = await stopped(cloud, shares=(MAPPING,))
    assert (await attach(cloud, server)).status_code == 409
    assert (await attach(cloud, server, SECOND_SHARE, tag="data")).status_code == 409
    assert (await attach(cloud, server, FOREIGN_SHARE)).status_code == 404
    assert (await attach(cloud, server, UNKNOWN)).status_code == 404
    assert (await attach(cloud, server, SECOND_SHARE, tag="x" * 37)).status_code == 400
    assert (await attach(cloud, server, SECOND_SHARE, as_="reader")).status_code == 403
    assert cloud.compute.asked == []


@pytest.mark.parametrize("share", [{}, {"share_id": "x"}, {"share_id": SHARE, "tag": "a_b"},
                                   {"share_id": SHARE, "tag": "x" * 256}, {"share_id": SHARE, "mode": "rw"}])
async def test_bodies_are_checked(cloud: ComputeCloud, share: dict[str, str]) -> None:
    path = f"/servers/{(await stopped(cloud)).uuid}/shares"
    assert (await request(cloud, "POST", path, {"share": share})).status_code == 400


@pytest.mark.spec("API-187")
async def test_a_share_is_detached(cloud: ComputeCloud) -> None:
    cloud.compute.ends["detach-share"] = succeeds
    for state in (VmState.STOPPED, VmState.ERROR):
        server = await stopped(cloud, vm_state=state, shares=(MAPPING,))
        answer = await request(cloud, "DELETE", f"/servers/{server.uuid}/shares/{SHARE}")
        assert (answer.status_code, answer.content) == (200, b"")
        assert cloud.compute.asked[-1] == ("detach-share", server.uuid, DetachShare(SHARE))
        answer = await request(cloud, "DELETE", f"/servers/{server.uuid}/shares/{SECOND_SHARE}")
        assert answer.status_code == 404


@pytest.mark.spec("API-185", "API-187")
async def test_lock_and_states_come_first(cloud: ComputeCloud) -> None:
    for fields, attached, detached in (
        ({"vm_state": VmState.ACTIVE}, 409, 409), ({"vm_state": VmState.ERROR}, 409, 404),
        ({"vm_state": VmState.STOPPED, "locked_by": "admin"}, 409, 409),
    ):
        server = await cloud.boot(**fields)
        assert (await attach(cloud, server, UNKNOWN)).status_code == attached
        gone = await request(cloud, "DELETE", f"/servers/{server.uuid}/shares/{UNKNOWN}")
        assert gone.status_code == detached


@pytest.mark.parametrize(("action", "asked", "status"), [
    ("rebuild", {"imageRef": "11111111-1111-4111-8111-111111111111"}, 400), ("shelve", None, 409),
    ("suspend", None, 409), ("os-migrateLive", {"host": None, "block_migration": "auto"}, 409), ("evacuate", {}, 409),
])
@pytest.mark.spec("API-069")
async def test_servers_with_shares_refuse_what_would_lose_them(
    cloud: ComputeCloud, action: str, asked: Any, status: int
) -> None:
    for shares in ((MAPPING,), ()):
        server = await cloud.boot(shares=shares)
        answer = await request(cloud, "POST", f"/servers/{server.uuid}/action", {action: asked}, as_="admin")
        assert ("has shares" in answer.text) == bool(shares)
        if shares:
            assert answer.status_code == status
