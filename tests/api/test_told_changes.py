"""What others are told of changes that the API makes at once."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from compute_cloud import PROJECT
from resource_cloud import ResourceCloud, resource_cloud

from kilonova.db.outbox import api_outbox, cell_outbox
from kilonova.domain.notification import Notification

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIDtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop me@home"


@pytest.fixture
async def cloud() -> AsyncIterator[ResourceCloud]:
    async with resource_cloud() as running:
        yield running


async def told(cloud: ResourceCloud) -> list[Notification]:
    rows = await cloud.cells.api.read(lambda conn: api_outbox.pending(conn, "listener", without=(), count=100))
    return [row.message for row in rows]


async def test_key_pairs(cloud: ResourceCloud) -> None:
    body = {"keypair": {"name": "mine", "public_key": KEY}}
    assert (await cloud.post("/os-keypairs", body, version="2.10")).status_code == 201
    assert (await cloud.post("/os-keypairs", {"keypair": {"name": "made"}}, version="2.10")).status_code == 201
    assert (await cloud.delete("/os-keypairs/mine", version="2.10")).status_code == 204
    messages = await told(cloud)
    assert [m.event_type for m in messages] == [
        f"keypair.{action}.{phase}" for action in ("import", "create", "delete") for phase in ("start", "end")
    ]
    first = messages[0]
    assert (first.publisher_id, first.priority, first.payload["nova_object.name"]) == (
        "nova-api:here", "INFO", "KeypairPayload",
    )
    assert first.payload["nova_object.data"]["public_key"] == KEY
    assert first.request_id.startswith("req-") and first.user_id


async def test_a_request_that_is_refused_tells_nothing(cloud: ResourceCloud) -> None:
    for _ in range(2):
        await cloud.post("/os-keypairs", {"keypair": {"name": "mine", "public_key": KEY}}, version="2.10")
    assert (await cloud.delete("/os-keypairs/other", version="2.10")).status_code == 404
    assert len(await told(cloud)) == 2


async def test_server_groups(cloud: ResourceCloud) -> None:
    body = {"server_group": {"name": "g", "policy": "anti-affinity", "rules": {"max_server_per_host": 3}}}
    made = (await cloud.post("/os-server-groups", body, version="2.64")).json()["server_group"]
    await cloud.delete(f"/os-server-groups/{made['id']}", version="2.64")
    messages = await told(cloud)
    assert [m.event_type for m in messages] == ["server_group.create", "server_group.delete"]
    data = messages[0].payload["nova_object.data"]
    assert (data["uuid"], data["policies"], data["rules"], data["hosts"]) == (
        made["id"], ["anti-affinity"], {"max_server_per_host": "3"}, None,
    )


async def test_flavors(cloud: ResourceCloud) -> None:
    body = {"flavor": {"name": "f", "ram": 512, "vcpus": 1, "disk": 1, "id": "f1"}}
    assert (await cloud.post("/flavors", body, version="2.55", as_="admin")).status_code == 200
    change = {"flavor": {"description": "new"}}
    assert (await cloud.put("/flavors/f1", change, version="2.55", as_="admin")).status_code == 200
    assert (await cloud.delete("/flavors/f1", as_="admin")).status_code == 202
    messages = await told(cloud)
    assert [m.event_type for m in messages] == ["flavor.create", "flavor.update", "flavor.delete"]
    assert [m.payload["nova_object.data"]["description"] for m in messages] == [None, "new", "new"]


async def test_extra_specs_and_projects_of_flavors(cloud: ResourceCloud) -> None:
    body = {"flavor": {
        "name": "f", "ram": 512, "vcpus": 1, "disk": 1, "id": "f1", "os-flavor-access:is_public": False,
    }}
    assert (await cloud.post("/flavors", body, as_="admin")).status_code == 200
    path = "/flavors/f1/os-extra_specs"
    assert (await cloud.post(path, {"extra_specs": {"a": "b"}}, as_="admin")).status_code == 200
    assert (await cloud.delete(f"{path}/a", as_="admin")).status_code == 200
    for action in ("addTenantAccess", "removeTenantAccess"):
        answer = await cloud.post("/flavors/f1/action", {action: {"tenant": PROJECT}}, as_="admin")
        assert answer.status_code == 200
    messages = (await told(cloud))[1:]
    assert {m.event_type for m in messages} == {"flavor.update"}
    flavors = [m.payload["nova_object.data"] for m in messages]
    assert [f["extra_specs"] for f in flavors] == [{"a": "b"}, {}, {}, {}]
    assert [f["projects"] for f in flavors] == [[], [], [PROJECT], []]


async def in_cell(cloud: ResourceCloud) -> list[Notification]:
    rows = await cloud.cell.database.read(lambda conn: cell_outbox.pending(conn, "listener", without=(), count=100))
    return [row.message for row in rows]


async def test_tags_of_servers(cloud: ResourceCloud) -> None:
    server = await cloud.boot()
    assert (await cloud.put(f"/servers/{server.uuid}/tags/one", None, version="2.26")).status_code == 201
    assert (await cloud.put(f"/servers/{server.uuid}/tags/one", None, version="2.26")).status_code == 204
    messages = await in_cell(cloud)
    assert [(m.event_type, m.publisher_id) for m in messages] == [
        ("compute.instance.update", "api.here"), ("instance.update", "nova-api:here"),
    ]
    assert messages[1].payload["nova_object.data"]["tags"] == ["one"]


async def test_services(cloud: ResourceCloud) -> None:
    await cloud.report("one")
    found = (await cloud.get("/os-services", version="2.53", as_="admin")).json()["services"]
    path = f"/os-services/{found[0]['id']}"
    body = {"status": "disabled", "disabled_reason": "broken"}
    assert (await cloud.put(path, body, version="2.53", as_="admin")).status_code == 200
    assert (await cloud.delete(path, version="2.53", as_="admin")).status_code == 204
    messages = await in_cell(cloud)
    assert [(m.event_type, m.publisher_id) for m in messages] == [
        ("service.update", "nova-compute:one"), ("service.delete", "nova-compute:one"),
    ]
    data = messages[0].payload["nova_object.data"]
    assert (data["uuid"], data["disabled"], data["disabled_reason"]) == (found[0]["id"], True, "broken")


async def test_aggregates(cloud: ResourceCloud) -> None:
    await cloud.report("one")
    made = (await cloud.post("/os-aggregates", {"aggregate": {"name": "a"}}, as_="admin")).json()["aggregate"]
    path = f"/os-aggregates/{made['id']}"
    for body in (
        {"add_host": {"host": "one"}}, {"set_metadata": {"metadata": {"ssd": "true"}}},
        {"remove_host": {"host": "one"}},
    ):
        assert (await cloud.post(f"{path}/action", body, as_="admin")).status_code == 200
    assert (await cloud.put(path, {"aggregate": {"name": "b"}}, as_="admin")).status_code == 200
    assert (await cloud.delete(path, as_="admin")).status_code == 200
    messages = await told(cloud)
    assert [m.event_type for m in messages] == [
        f"aggregate.{action}.{phase}"
        for action in ("create", "add_host", "update_metadata", "remove_host", "update_prop", "delete")
        for phase in ("start", "end")
    ]
    hosts = [m.payload["nova_object.data"]["hosts"] for m in messages[2:8]]
    assert hosts == [[], ["one"], ["one"], ["one"], ["one"], []]
