"""Host aggregates: records, hosts, metadata, zones, and what the scheduler and placement see of them."""

import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from compute_cloud import TINY
from resource_cloud import ResourceCloud, resource_cloud

from kilonova.db import build_requests
from kilonova.db.aggregates import StoredGroupings
from kilonova.domain.image import Image
from kilonova.domain.instance import RequestSpec
from kilonova.domain.states import VmState

ALL = "/os-aggregates"


@pytest.fixture
async def cloud() -> AsyncIterator[ResourceCloud]:
    async with resource_cloud() as running:
        await running.report("h1")
        await running.report("h2")
        yield running


async def make(cloud: ResourceCloud, name: str = "a", **fields: Any) -> int:
    answer = await cloud.post(ALL, {"aggregate": {"name": name, **fields}}, as_="admin")
    assert answer.status_code == 200, answer.text
    number: int = answer.json()["aggregate"]["id"]
    return number


async def act(cloud: ResourceCloud, number: int | str, action: str, *, version: str = "2.1", **fields: Any
              ) -> httpx.Response:
    return await cloud.post(f"{ALL}/{number}/action", {action: fields}, as_="admin", version=version)


async def show(cloud: ResourceCloud, number: int) -> dict[str, Any]:
    found: dict[str, Any] = (await cloud.get(f"{ALL}/{number}", as_="admin", version="2.41")).json()["aggregate"]
    return found


async def boot_pinned(cloud: ResourceCloud, host: str, zone: str | None) -> None:
    """A server on a host that asked for a zone."""
    server = await cloud.boot(host=host, node=host)
    spec = RequestSpec(instance_uuid=server.uuid, project_id="p", user_id="u", flavor=TINY,
                       image=Image(id=str(uuid.uuid4())), availability_zone=zone)
    await cloud.cells.api.write(
        lambda conn: conn.execute(sa.insert(build_requests.request_specs), {"uuid": server.uuid, "body": spec}))


@pytest.mark.spec("API-464", "API-222", "API-223", "API-224", "API-541")
@pytest.mark.parametrize("version", range(1, 105))
async def test_fields(cloud: ResourceCloud, version: int) -> None:
    at = f"2.{version}"
    brief = {"id", "name", "availability_zone", "created_at", "updated_at", "deleted_at", "deleted"}
    brief |= {"uuid"} if version >= 41 else set()
    full = brief | {"hosts", "metadata"}
    made = await cloud.post(ALL, {"aggregate": {"name": "a"}}, as_="admin", version=at)
    assert (made.status_code, set(made.json()["aggregate"])) == (200, brief)
    (entry,) = (await cloud.get(ALL, as_="admin", version=at)).json()["aggregates"]
    assert set(entry) == full
    assert set((await cloud.get(f"{ALL}/1", as_="admin", version=at)).json()["aggregate"]) == full
    for changed in (
        await cloud.put(f"{ALL}/1", {"aggregate": {"name": "b"}}, as_="admin", version=at),
        await act(cloud, 1, "add_host", host="h1", version=at),
        await act(cloud, 1, "set_metadata", metadata={"k": "v"}, version=at),
        await act(cloud, 1, "remove_host", host="h1", version=at),
    ):
        assert (changed.status_code, set(changed.json()["aggregate"])) == (200, full)


@pytest.mark.spec("API-223", "API-224", "API-464", "API-055")
async def test_values(cloud: ResourceCloud) -> None:
    number = await make(cloud, "rack", availability_zone="mars")
    found = await show(cloud, number)
    assert uuid.UUID(found.pop("uuid"))
    assert found == {
        "id": number, "name": "rack", "availability_zone": "mars", "hosts": [],
        "metadata": {"availability_zone": "mars"}, "created_at": "2023-11-14T22:13:20.000000", "updated_at": None,
        "deleted_at": None, "deleted": False,
    }
    cloud.clock.time += 5
    await act(cloud, number, "add_host", host="h1")
    assert (await show(cloud, number))["updated_at"] == "2023-11-14T22:13:25.000000"


@pytest.mark.spec("API-223", "API-225", "API-057")
@pytest.mark.parametrize("fields", [
    {"name": ""}, {"name": " x"}, {"name": "x" * 256}, {"name": None}, {"availability_zone": ""},
    {"availability_zone": "a:b"}, {"availability_zone": "x" * 256}, {"availability_zone": " z"}, {"hosts": []},
])
async def test_bad_fields(cloud: ResourceCloud, fields: dict[str, Any]) -> None:
    number = await make(cloud, "here")
    assert (await cloud.post(ALL, {"aggregate": {"name": "x", **fields}}, as_="admin")).status_code == 400
    assert (await cloud.put(f"{ALL}/{number}", {"aggregate": fields}, as_="admin")).status_code == 400


@pytest.mark.spec("API-223", "API-225")
async def test_names_are_unique(cloud: ResourceCloud) -> None:
    await make(cloud, "a")
    number = await make(cloud, "b")
    assert (await cloud.post(ALL, {"aggregate": {"name": "a"}}, as_="admin")).status_code == 409
    assert (await cloud.put(f"{ALL}/{number}", {"aggregate": {"name": "a"}}, as_="admin")).status_code == 409
    assert (await cloud.put(f"{ALL}/{number}", {"aggregate": {"name": "b"}}, as_="admin")).status_code == 200


@pytest.mark.spec("API-225")
async def test_update(cloud: ResourceCloud) -> None:
    number = await make(cloud, availability_zone="mars")
    await act(cloud, number, "add_host", host="h1")
    answer = await cloud.put(f"{ALL}/{number}", {"aggregate": {"name": "new"}}, as_="admin")
    assert (answer.json()["aggregate"]["name"], answer.json()["aggregate"]["availability_zone"]) == ("new", "mars")
    answer = await cloud.put(f"{ALL}/{number}", {"aggregate": {"availability_zone": "venus"}}, as_="admin")
    assert answer.json()["aggregate"]["metadata"] == {"availability_zone": "venus"}
    answer = await cloud.put(f"{ALL}/{number}", {"aggregate": {"availability_zone": None}}, as_="admin")
    assert (answer.json()["aggregate"]["availability_zone"], answer.json()["aggregate"]["metadata"]) == (None, {})
    assert (await cloud.put(f"{ALL}/{number}", {"aggregate": {}}, as_="admin")).status_code == 400


@pytest.mark.spec("API-225", "API-229")
async def test_the_zone_of_servers_does_not_change(cloud: ResourceCloud) -> None:
    number = await make(cloud, availability_zone="mars")
    await act(cloud, number, "add_host", host="h1")
    await cloud.boot(host="h2", vm_state=VmState.ACTIVE)
    server = await cloud.boot(host="h1")

    async def statuses(zone: str | None) -> set[int]:
        return {
            (await cloud.put(f"{ALL}/{number}", {"aggregate": {"availability_zone": zone}}, as_="admin")).status_code,
            (await act(cloud, number, "set_metadata", metadata={"availability_zone": zone})).status_code,
        }

    assert await statuses("venus") == {400}
    assert await statuses(None) == {400}
    assert await statuses("mars") == {200}
    assert (await act(cloud, number, "set_metadata", metadata={"k": "v"})).status_code == 200
    assert (await cloud.delete(f"/servers/{server.uuid}")).status_code == 204
    assert await statuses("venus") == {200}


@pytest.mark.spec("API-225", "API-229")
async def test_a_host_cannot_get_two_zones_by_metadata(cloud: ResourceCloud) -> None:
    number, other = await make(cloud, availability_zone="mars"), await make(cloud, "b")
    for one in (number, other):
        await act(cloud, one, "add_host", host="h1")
    answer = await cloud.put(f"{ALL}/{other}", {"aggregate": {"availability_zone": "venus"}}, as_="admin")
    assert answer.status_code == 400
    assert (await act(cloud, other, "set_metadata", metadata={"availability_zone": "venus"})).status_code == 400
    assert (await act(cloud, other, "set_metadata", metadata={"availability_zone": "mars"})).status_code == 200


@pytest.mark.spec("API-226")
async def test_delete(cloud: ResourceCloud) -> None:
    number = await make(cloud)
    await act(cloud, number, "add_host", host="h1")
    assert (await cloud.delete(f"{ALL}/{number}", as_="admin")).status_code == 400
    await act(cloud, number, "remove_host", host="h1")
    answer = await cloud.delete(f"{ALL}/{number}", as_="admin")
    assert (answer.status_code, answer.content) == (200, b"")
    assert (await cloud.delete(f"{ALL}/{number}", as_="admin")).status_code == 404
    assert await make(cloud)


@pytest.mark.spec("API-227", "API-228")
async def test_hosts_are_known_to_placement(cloud: ResourceCloud) -> None:
    node = (await cloud.node_of("h1")).uuid
    number = await make(cloud)
    answer = await act(cloud, number, "add_host", host="h1")
    assert answer.json()["aggregate"]["hosts"] == ["h1"]
    found = await show(cloud, number)
    assert await cloud.placement_aggregates(node) == [found["uuid"]]
    await act(cloud, number, "add_host", host="h2")
    assert (await show(cloud, number))["hosts"] == ["h1", "h2"]
    answer = await act(cloud, number, "remove_host", host="h1")
    assert answer.json()["aggregate"]["hosts"] == ["h2"]
    assert await cloud.placement_aggregates(node) == []


@pytest.mark.spec("API-227", "API-228")
async def test_hosts_that_cannot_join_or_leave(cloud: ResourceCloud) -> None:
    number = await make(cloud)
    assert (await act(cloud, number, "add_host", host="h9")).status_code == 404
    assert (await act(cloud, 99, "add_host", host="h1")).status_code == 404
    assert (await act(cloud, number, "remove_host", host="h1")).status_code == 404
    assert (await act(cloud, 99, "remove_host", host="h1")).status_code == 404
    await act(cloud, number, "add_host", host="h1")
    assert (await act(cloud, number, "add_host", host="h1")).status_code == 409
    for fields in ({}, {"host": ""}, {"host": "a b"}, {"host": 1}, {"host": "h1", "x": 1}):
        for action in ("add_host", "remove_host"):
            assert (await act(cloud, number, action, **fields)).status_code == 400


@pytest.mark.spec("API-227")
async def test_a_host_is_in_one_zone(cloud: ResourceCloud) -> None:
    mars, venus = await make(cloud, "m", availability_zone="mars"), await make(cloud, "v", availability_zone="venus")
    plain, again = await make(cloud, "p"), await make(cloud, "again", availability_zone="mars")
    assert (await act(cloud, mars, "add_host", host="h1")).status_code == 200
    assert (await act(cloud, venus, "add_host", host="h1")).status_code == 409
    assert (await act(cloud, plain, "add_host", host="h1")).status_code == 200
    assert (await act(cloud, again, "add_host", host="h1")).status_code == 200


@pytest.mark.spec("API-227", "API-228")
async def test_servers_keep_the_zone_they_asked_for(cloud: ResourceCloud) -> None:
    mars, again = await make(cloud, "m", availability_zone="mars"), await make(cloud, "n", availability_zone="mars")
    for number in (mars, again):
        await act(cloud, number, "add_host", host="h1")
    await boot_pinned(cloud, "h1", "mars")
    await boot_pinned(cloud, "h2", "nova")
    assert (await act(cloud, again, "remove_host", host="h1")).status_code == 200, "the other one keeps the zone"
    assert (await act(cloud, mars, "remove_host", host="h1")).status_code == 409
    assert (await show(cloud, mars))["hosts"] == ["h1"]
    assert (await act(cloud, mars, "add_host", host="h2")).status_code == 409


@pytest.mark.spec("API-228")
async def test_servers_that_asked_for_no_zone_may_change_it(cloud: ResourceCloud) -> None:
    mars = await make(cloud, "m", availability_zone="mars")
    await boot_pinned(cloud, "h1", None)
    assert (await act(cloud, mars, "add_host", host="h1")).status_code == 200
    assert (await act(cloud, mars, "remove_host", host="h1")).status_code == 200


@pytest.mark.spec("API-229", "API-464")
async def test_metadata_merges(cloud: ResourceCloud) -> None:
    number = await make(cloud)
    await act(cloud, number, "set_metadata", metadata={"a": "1", "b": "2"})
    answer = await act(cloud, number, "set_metadata", metadata={"a": None, "c": "3", "availability_zone": "mars"})
    assert answer.json()["aggregate"]["metadata"] == {"b": "2", "c": "3", "availability_zone": "mars"}
    assert answer.json()["aggregate"]["availability_zone"] == "mars"
    assert (await act(cloud, 99, "set_metadata", metadata={})).status_code == 404


@pytest.mark.spec("API-229", "API-057")
@pytest.mark.parametrize("metadata", [
    None, {"a": 1}, {"a": "x" * 256}, {"": "x"}, {"a/b": "x"}, {"availability_zone": ""},
    {"availability_zone": "a:b"}, ["a"],
])
async def test_bad_metadata(cloud: ResourceCloud, metadata: Any) -> None:
    number = await make(cloud)
    assert (await act(cloud, number, "set_metadata", metadata=metadata)).status_code == 400


@pytest.mark.spec("API-224", "API-225", "API-226", "API-227", "API-229")
@pytest.mark.parametrize(("number", "status"), [("x", 400), ("1.5", 400), ("-1", 404), ("1" * 40, 400), ("99", 404)])
async def test_ids(cloud: ResourceCloud, number: str, status: int) -> None:
    path = f"{ALL}/{number}"
    assert (await cloud.get(path, as_="admin")).status_code == status
    assert (await cloud.put(path, {"aggregate": {"name": "n"}}, as_="admin")).status_code == status
    assert (await cloud.delete(path, as_="admin")).status_code == status
    assert (await act(cloud, number, "add_host", host="h1")).status_code == status
    assert (await act(cloud, number, "set_metadata", metadata={})).status_code == status


@pytest.mark.spec("API-222", "API-223", "API-224", "API-225", "API-226", "API-227", "API-228", "API-229", "API-041")
@pytest.mark.parametrize(("method", "path", "body", "rule"), [
    ("GET", ALL, None, "index"), ("POST", ALL, {"aggregate": {"name": "x"}}, "create"),
    ("GET", f"{ALL}/1", None, "show"), ("PUT", f"{ALL}/1", {"aggregate": {"name": "x"}}, "update"),
    ("DELETE", f"{ALL}/1", None, "delete"), ("POST", f"{ALL}/1/action", {"add_host": {"host": "h1"}}, "add_host"),
    ("POST", f"{ALL}/1/action", {"remove_host": {"host": "h1"}}, "remove_host"),
    ("POST", f"{ALL}/1/action", {"set_metadata": {"metadata": {}}}, "set_metadata"),
])
async def test_only_for_admins(cloud: ResourceCloud, method: str, path: str, body: Any, rule: str) -> None:
    await make(cloud)
    for as_ in ("manager", "member", "reader", "service"):
        answer = await cloud.request(method, path, json=body, as_=as_)
        assert answer.status_code == 403
        assert f"os_compute_api:os-aggregates:{rule} " in answer.text


async def test_the_scheduler_learns_of_aggregates(cloud: ResourceCloud) -> None:
    number = await make(cloud, "rack", availability_zone="mars")
    await act(cloud, number, "set_metadata", metadata={"ssd": "true"})
    (found,) = await cloud.cells.api.read(lambda conn: StoredGroupings().aggregates(conn))
    assert (found.uuid, found.name) == ((await show(cloud, number))["uuid"], "rack")
    assert (found.availability_zone, found.metadata["ssd"]) == ("mars", "true")
    assert await cloud.cells.api.read(lambda conn: StoredGroupings().server_group(conn, found.uuid)) is None
