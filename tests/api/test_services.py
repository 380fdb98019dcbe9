"""Services and availability zones, and what servers learn of hosts from the records."""

import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from compute_cloud import compute_cloud
from resource_cloud import DOWN_TIME, ResourceCloud, resource_cloud

from kilonova.api.cloud import ApiOptions
from kilonova.api.compute.service_hosts import ServiceHosts
from kilonova.db import services as records
from kilonova.db.placement.hosts import STATUS_DISABLED

ALL = "/os-services"
ZONES = "/os-availability-zone"


@pytest.fixture
async def cloud() -> AsyncIterator[ResourceCloud]:
    async with resource_cloud() as running:
        await running.report("h1")
        await running.service("nova-conductor", "c1")
        yield running


async def listed(cloud: ResourceCloud, query: str = "", version: str = "2.53") -> list[dict[str, Any]]:
    answer = await cloud.get(f"{ALL}{query}", as_="admin", version=version)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["services"]
    return found


async def one(cloud: ResourceCloud, host: str, version: str = "2.53") -> dict[str, Any]:
    (found,) = await listed(cloud, f"?host={host}&binary=nova-compute", version)
    return found


async def put(cloud: ResourceCloud, what: str, version: str, **body: Any) -> httpx.Response:
    return await cloud.put(f"{ALL}/{what}", body, as_="admin", version=version)


async def zone_of(cloud: ResourceCloud, host: str, zone: str) -> None:
    """Put a host into a zone."""
    made = await cloud.post("/os-aggregates", {"aggregate": {"name": zone, "availability_zone": zone}}, as_="admin")
    number = made.json()["aggregate"]["id"]
    answer = await cloud.post(f"/os-aggregates/{number}/action", {"add_host": {"host": host}}, as_="admin")
    assert answer.status_code == 200


@pytest.mark.spec("API-455", "API-240", "API-511", "API-553", "API-055")
@pytest.mark.parametrize("version", range(1, 105))
async def test_fields(cloud: ResourceCloud, version: int) -> None:
    agent, conductor = await listed(cloud, version=f"2.{version}")
    record = await cloud.service_of("h1")
    expected: dict[str, Any] = {
        "id": record.uuid if version >= 53 else record.id, "binary": "nova-compute", "host": "h1", "zone": "nova",
        "status": "enabled", "state": "up", "updated_at": "2023-11-14T22:13:20.000000", "disabled_reason": None,
    }
    if version >= 11:
        expected["forced_down"] = False
    assert agent == expected
    assert (conductor["binary"], conductor["host"], conductor["zone"]) == ("nova-conductor", "c1", "internal")


@pytest.mark.spec("API-240", "API-455")
async def test_filters_and_states(cloud: ResourceCloud) -> None:
    await cloud.service("nova-osapi_compute", "api1")
    await cloud.service("nova-metadata", "api1")
    assert [entry["host"] for entry in await listed(cloud)] == ["h1", "c1"]
    assert [entry["host"] for entry in await listed(cloud, "?host=c1")] == ["c1"]
    assert [entry["host"] for entry in await listed(cloud, "?binary=nova-compute")] == ["h1"]
    assert await listed(cloud, "?binary=nova") == []
    assert await listed(cloud, "?binary=nova-osapi_compute") == []
    cloud.clock.time += DOWN_TIME
    assert (await one(cloud, "h1"))["state"] == "up"
    cloud.clock.time += 0.1
    found = await one(cloud, "h1")
    assert (found["state"], found["updated_at"]) == ("down", "2023-11-14T22:13:20.000000")
    await cloud.report("h1")
    assert (await one(cloud, "h1"))["state"] == "up"
    await zone_of(cloud, "h1", "mars")
    assert (await one(cloud, "h1"))["zone"] == "mars"


@pytest.mark.spec("API-029", "API-575")
async def test_unknown_parameters(cloud: ResourceCloud) -> None:
    assert (await cloud.get(f"{ALL}?x=1", as_="admin", version="2.74")).status_code == 200
    assert (await cloud.get(f"{ALL}?x=1", as_="admin", version="2.75")).status_code == 400
    assert (await cloud.get(f"{ZONES}?x=1", version="2.101")).status_code == 200
    assert (await cloud.get(f"{ZONES}?x=1", version="2.102")).status_code == 400


@pytest.mark.spec("API-569", "API-054", "API-455", "API-240")
async def test_a_cell_that_does_not_answer() -> None:
    async with resource_cloud(second_cell=True) as cloud:
        await cloud.report("h1")
        await cloud.report("h2", cell=1)
        assert [entry["host"] for entry in await listed(cloud)] == ["h1", "h2"]
        cloud.silence(1)
        assert [entry["host"] for entry in await listed(cloud, version="2.68")] == ["h1"]
        reduced = {"binary": "nova-compute", "host": "h2", "status": "UNKNOWN"}
        assert (await listed(cloud, version="2.69"))[1:] == [reduced]
        assert await listed(cloud, "?host=h2", version="2.69") == [reduced]
        assert await listed(cloud, "?binary=nova-conductor", version="2.69") == []
        assert await listed(cloud, "?host=h9", version="2.69") == []


@pytest.mark.spec("API-054")
async def test_lists_fail_when_told_to() -> None:
    options = ApiOptions(list_records_by_skipping_down_cells=False)
    async with resource_cloud(second_cell=True, options=options) as cloud:
        cloud.silence(1)
        for path in (ALL, ZONES, f"{ZONES}/detail", "/os-hypervisors", "/os-hypervisors/detail"):
            assert (await cloud.get(path, as_="admin", version="2.68")).status_code == 500
        assert (await cloud.get(ALL, as_="admin", version="2.69")).status_code == 200


@pytest.mark.spec("API-241", "API-511")
async def test_old_forms_of_update(cloud: ResourceCloud) -> None:
    agent = {"host": "h1", "binary": "nova-compute"}
    answer = await put(cloud, "disable", "2.1", **agent)
    assert (answer.status_code, answer.json()) == (200, {"service": {**agent, "status": "disabled"}})
    found = await one(cloud, "h1")
    assert (found["status"], found["disabled_reason"]) == ("disabled", None)
    answer = await put(cloud, "disable-log-reason", "2.1", **agent, disabled_reason="disk")
    assert answer.json() == {"service": {**agent, "status": "disabled", "disabled_reason": "disk"}}
    assert (await one(cloud, "h1"))["disabled_reason"] == "disk"
    answer = await put(cloud, "enable", "2.1", **agent)
    assert answer.json() == {"service": {**agent, "status": "enabled"}}
    found = await one(cloud, "h1")
    assert (found["status"], found["disabled_reason"]) == ("enabled", None)
    answer = await put(cloud, "force-down", "2.11", **agent, forced_down="True")
    assert answer.json() == {"service": {**agent, "forced_down": True}}
    found = await one(cloud, "h1")
    assert (found["forced_down"], found["state"], found["status"]) == (True, "down", "enabled")
    await put(cloud, "force-down", "2.52", **agent, forced_down=False)
    assert (await one(cloud, "h1"))["state"] == "up"


@pytest.mark.spec("API-241", "API-511", "API-553", "API-057")
@pytest.mark.parametrize(("action", "version", "changes", "status"), [
    ("freeze", "2.1", {}, 404), ("force-down", "2.10", {}, 404), ("enable", "2.1", {"host": "h9"}, 404),
    ("enable", "2.1", {"binary": "nova-conductor", "host": "c1"}, 400), ("disable-log-reason", "2.1", {}, 400),
    ("disable-log-reason", "2.1", {"disabled_reason": ""}, 400),
    ("disable-log-reason", "2.1", {"disabled_reason": "  "}, 400),
    ("disable-log-reason", "2.1", {"disabled_reason": "x" * 256}, 400), ("force-down", "2.11", {}, 400),
    ("force-down", "2.11", {"forced_down": "perhaps"}, 400), ("enable", "2.10", {"forced_down": True}, 400),
    ("enable", "2.1", {"colour": "red"}, 400), ("enable", "2.1", {"host": "a b"}, 400),
    ("enable", "2.53", {}, 400),
])
async def test_bad_old_forms(
    cloud: ResourceCloud, action: str, version: str, changes: dict[str, Any], status: int
) -> None:
    answer = await put(cloud, action, version, **{"host": "h1", "binary": "nova-compute", **changes})
    assert answer.status_code == status, answer.text


@pytest.mark.spec("API-242", "API-553", "API-455")
async def test_update_by_uuid(cloud: ResourceCloud) -> None:
    number = (await cloud.service_of("h1")).uuid
    answer = await put(cloud, number, "2.53", status="disabled", disabled_reason="disk")
    assert answer.status_code == 200
    assert answer.json()["service"] == {**await one(cloud, "h1"), "status": "disabled", "disabled_reason": "disk"}
    answer = await put(cloud, number, "2.104", status="disabled")
    assert answer.json()["service"]["disabled_reason"] is None
    answer = await put(cloud, number, "2.53", status="enabled", forced_down=True)
    found = answer.json()["service"]
    assert (found["status"], found["forced_down"], found["state"], found["id"]) == ("enabled", True, "down", number)
    answer = await put(cloud, number, "2.53", forced_down=False)
    assert answer.json()["service"]["state"] == "up"


@pytest.mark.spec("API-242")
async def test_bad_updates_by_uuid(cloud: ResourceCloud) -> None:
    number, conductor = (await cloud.service_of("h1")).uuid, await cloud.service_of("c1", binary="nova-conductor")
    for body in ({}, {"disabled_reason": "x"}, {"status": "enabled", "disabled_reason": "x"}, {"status": "on"},
                 {"forced_down": "perhaps"}, {"status": "disabled", "disabled_reason": ""}, {"host": "h1"}):
        assert (await put(cloud, number, "2.53", **body)).status_code == 400
    assert (await put(cloud, conductor.uuid, "2.53", status="disabled")).status_code == 400
    assert (await put(cloud, str(uuid.uuid4()), "2.53", status="disabled")).status_code == 404
    assert (await put(cloud, "enable", "2.53", status="disabled")).status_code == 400
    assert (await one(cloud, "h1"))["status"] == "enabled"


@pytest.mark.spec("API-241", "API-242")
async def test_disabled_hosts_are_marked_in_placement(cloud: ResourceCloud) -> None:
    node, number = (await cloud.node_of("h1")).uuid, (await cloud.service_of("h1")).uuid
    for body, marked in (
        ({"status": "disabled"}, True), ({"status": "enabled"}, False), ({"forced_down": True}, True),
        ({"status": "enabled"}, True), ({"forced_down": False}, False),
    ):
        await put(cloud, number, "2.53", **body)
        assert (STATUS_DISABLED in await cloud.traits(node)) is marked
    await put(cloud, "disable", "2.52", host="h1", binary="nova-compute")
    await cloud.report("h1")
    assert STATUS_DISABLED in await cloud.traits(node), "a report does not enable the host"


async def test_a_report_does_not_revive_a_host_that_is_forced_down(cloud: ResourceCloud) -> None:
    await put(cloud, "force-down", "2.11", host="h1", binary="nova-compute", forced_down=True)
    for name in ("h1", "h1-renamed"):
        node = await cloud.report("h1", hostname=name)
        assert STATUS_DISABLED in await cloud.traits(node)
        found = await one(cloud, "h1")
        assert (found["forced_down"], found["state"]) == (True, "down")
        assert await cloud.service_hosts.statuses(["h1"]) == {"h1": "DOWN"}
    await put(cloud, "force-down", "2.11", host="h1", binary="nova-compute", forced_down=False)
    assert STATUS_DISABLED not in await cloud.traits(node)
    assert await cloud.service_hosts.statuses(["h1"]) == {"h1": "UP"}


@pytest.mark.spec("API-242", "HST-13")
async def test_placement_ends_with_what_the_record_says(cloud: ResourceCloud) -> None:
    """Somebody enables the host between the record and placement of a request that disables it."""
    service, node = await cloud.service_of("h1"), (await cloud.node_of("h1")).uuid
    write, interfered = cloud.cells.api.write, False

    async def interfere(unit: Any) -> Any:
        nonlocal interfered
        if not interfered:
            interfered = True
            await cloud.cell.database.write(
                lambda conn: records.change_service(conn, service.uuid, now=1.0, disabled=False))
        return await write(unit)

    cloud.cells.api.write = interfere  # type: ignore[method-assign]
    assert (await put(cloud, service.uuid, "2.53", status="disabled")).json()["service"]["status"] == "enabled"
    assert interfered
    assert STATUS_DISABLED not in await cloud.traits(node)


@pytest.mark.spec("API-243", "API-553", "API-033")
async def test_delete(cloud: ResourceCloud) -> None:
    conductor = await cloud.service_of("c1", binary="nova-conductor")
    answer = await cloud.delete(f"{ALL}/{conductor.id}", as_="admin", version="2.52")
    assert (answer.status_code, answer.content) == (204, b"")
    assert [entry["host"] for entry in await listed(cloud)] == ["h1"]
    agent = await cloud.service_of("h1")
    assert (await cloud.delete(f"{ALL}/{agent.uuid}", as_="admin", version="2.52")).status_code == 400
    assert (await cloud.delete(f"{ALL}/{agent.id}", as_="admin", version="2.53")).status_code == 400
    assert (await cloud.delete(f"{ALL}/{uuid.uuid4()}", as_="admin", version="2.53")).status_code == 404
    assert (await cloud.delete(f"{ALL}/99", as_="admin", version="2.52")).status_code == 404
    assert (await cloud.delete(f"{ALL}/{agent.uuid}", as_="admin", version="2.53")).status_code == 204
    assert await listed(cloud) == []


@pytest.mark.spec("API-243")
async def test_a_deleted_agent_leaves_nothing(cloud: ResourceCloud) -> None:
    await zone_of(cloud, "h1", "mars")
    agent = await cloud.service_of("h1")
    await cloud.delete(f"{ALL}/{agent.uuid}", as_="admin", version="2.53")
    assert (await cloud.get("/os-aggregates/1", as_="admin")).json()["aggregate"]["hosts"] == []
    assert (await cloud.get("/os-hypervisors", as_="admin")).json() == {"hypervisors": []}
    await cloud.report("h1")
    node = await cloud.node_of("h1")
    assert await cloud.placement_aggregates(node.uuid) == [], "a provider of its own, not the old one"
    assert (await one(cloud, "h1"))["zone"] == "nova"


@pytest.mark.spec("API-243", "RSU-12")
async def test_an_agent_with_work_is_not_deleted(cloud: ResourceCloud) -> None:
    agent, node = await cloud.service_of("h1"), await cloud.node_of("h1")
    server = await cloud.boot(host="h1")
    path = f"{ALL}/{agent.uuid}"
    assert (await cloud.delete(path, as_="admin", version="2.53")).status_code == 409
    await cloud.delete(f"/servers/{server.uuid}")
    await cloud.claim(node.uuid, VCPU=1)
    assert (await cloud.delete(path, as_="admin", version="2.53")).status_code == 409, "a server is on its way here"
    assert (await one(cloud, "h1"))["state"] == "up"


@pytest.mark.spec("API-243")
async def test_an_id_of_two_cells() -> None:
    async with resource_cloud(second_cell=True) as cloud:
        await cloud.report("h1")
        await cloud.report("h2", cell=1)
        assert (await cloud.delete(f"{ALL}/1", as_="admin", version="2.52")).status_code == 400
        number = (await cloud.service_of("h2", cell=1)).uuid
        assert (await cloud.delete(f"{ALL}/{number}", as_="admin", version="2.53")).status_code == 204
        assert [entry["host"] for entry in await listed(cloud)] == ["h1"]


@pytest.mark.spec("API-240", "API-241", "API-242", "API-243", "API-232", "API-041")
@pytest.mark.parametrize(("method", "path", "version", "body", "rule"), [
    ("GET", ALL, "2.1", None, "os-services:list"),
    ("PUT", f"{ALL}/enable", "2.1", {"host": "h1", "binary": "nova-compute"}, "os-services:update"),
    ("PUT", f"{ALL}/{uuid.UUID(int=1)}", "2.53", {"status": "enabled"}, "os-services:update"),
    ("DELETE", f"{ALL}/1", "2.1", None, "os-services:delete"),
    ("GET", f"{ZONES}/detail", "2.1", None, "os-availability-zone:detail"),
])
async def test_only_for_admins(
    cloud: ResourceCloud, method: str, path: str, version: str, body: Any, rule: str
) -> None:
    for as_ in ("manager", "member", "reader", "service"):
        answer = await cloud.request(method, path, json=body, version=version, as_=as_)
        assert answer.status_code == 403
        assert f"os_compute_api:{rule} " in answer.text


# --- availability zones --------------------------------------------------------------------------------


@pytest.mark.spec("API-231", "API-470")
async def test_zones(cloud: ResourceCloud) -> None:
    await cloud.report("h2")
    await zone_of(cloud, "h2", "mars")
    for as_ in ("nobody", "admin"):
        assert (await cloud.get(ZONES, as_=as_)).json() == {"availabilityZoneInfo": [
            {"zoneName": "mars", "zoneState": {"available": True}, "hosts": None},
            {"zoneName": "nova", "zoneState": {"available": True}, "hosts": None},
        ]}
    await put(cloud, "disable", "2.1", host="h2", binary="nova-compute")
    entries = (await cloud.get(ZONES)).json()["availabilityZoneInfo"]
    assert [(entry["zoneName"], entry["zoneState"]["available"]) for entry in entries] == [
        ("nova", True), ("mars", False)]


@pytest.mark.spec("API-232", "API-470", "API-055")
async def test_zones_with_hosts(cloud: ResourceCloud) -> None:
    await cloud.report("h2")
    await zone_of(cloud, "h2", "mars")
    await put(cloud, "disable", "2.1", host="h2", binary="nova-compute")
    cloud.clock.time += 100
    await cloud.report("h3")
    await put(cloud, "disable", "2.1", host="h3", binary="nova-compute")
    old, new = "2023-11-14T22:13:20.000000", "2023-11-14T22:15:00.000000"
    assert (await cloud.get(f"{ZONES}/detail", as_="admin")).json() == {"availabilityZoneInfo": [
        {"zoneName": "internal", "zoneState": {"available": True}, "hosts": {
            "c1": {"nova-conductor": {"available": False, "active": True, "updated_at": old}}}},
        {"zoneName": "nova", "zoneState": {"available": True}, "hosts": {
            "h1": {"nova-compute": {"available": False, "active": True, "updated_at": old}},
            "h3": {"nova-compute": {"available": True, "active": False, "updated_at": new}}}},
        {"zoneName": "mars", "zoneState": {"available": False}, "hosts": None},
    ]}


# --- what servers learn of hosts ---------------------------------------------------------------------


@pytest.mark.spec("API-439")
async def test_status_of_hosts(cloud: ResourceCloud) -> None:
    cloud.clock.time += DOWN_TIME + 1
    for host in ("up", "down", "maintenance"):
        await cloud.report(host)
    agent = {"binary": "nova-compute"}
    await put(cloud, "force-down", "2.11", host="down", forced_down=True, **agent)
    await put(cloud, "disable", "2.11", host="down", **agent)
    await put(cloud, "disable", "2.11", host="maintenance", **agent)
    found = await cloud.service_hosts.statuses(["h1", "up", "down", "maintenance", "none", "c1"])
    assert found == {"h1": "UNKNOWN", "up": "UP", "down": "DOWN", "maintenance": "MAINTENANCE"}
    server = await cloud.boot(host="maintenance")
    shown = (await cloud.get(f"/servers/{server.uuid}", as_="admin", version="2.16")).json()["server"]
    assert shown["host_status"] == "MAINTENANCE"


@pytest.mark.spec("API-610", "API-470")
async def test_zones_and_hosts_that_exist(cloud: ResourceCloud) -> None:
    await cloud.report("h2", hostname="node-2")
    await zone_of(cloud, "h2", "mars")
    hosts: ServiceHosts = cloud.service_hosts
    assert [await hosts.zone_available(zone) for zone in ("nova", "mars", "venus", "internal")] == [
        True, True, False, False]
    await put(cloud, "disable", "2.11", host="h2", binary="nova-compute")
    assert not await hosts.zone_available("mars")
    wanted = [("h1", None), ("h2", "node-2"), (None, "node-2"), ("h9", None), ("c1", None), (None, "h2"),
              ("h1", "node-2")]
    assert [await hosts.exists(host=host, node=node) for host, node in wanted] == [
        True, True, True, False, False, False, False]
    await cloud.flavor()
    body = {"server": {"name": "x", "imageRef": "11111111-1111-4111-8111-111111111111", "flavorRef": "1",
                       "availability_zone": "mars"}}
    answer = await cloud.post("/servers", body)
    assert answer.status_code == 400
    assert "The requested availability zone is not available" in answer.text


async def test_the_records_are_read_whatever_tells_servers_of_hosts() -> None:
    async with compute_cloud() as plain:
        await plain.cell.database.write(lambda conn: records.seen(conn, "nova-compute", "h1", version="1", now=1.0))
        (found,) = (await plain.get(ALL, as_="admin")).json()["services"]
        assert (found["host"], found["state"]) == ("h1", "down")
