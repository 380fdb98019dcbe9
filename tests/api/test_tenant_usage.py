"""What servers of projects used, and which hosts audited it."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa
from compute_cloud import OTHER_PROJECT, PROJECT, ComputeCloud, link
from resource_cloud import ResourceCloud, resource_cloud

from kilonova.db import services, usage_audits
from kilonova.domain.flavor import Flavor
from kilonova.domain.states import VmState
from kilonova.notifications.periods import last_completed

LIST = "/os-simple-tenant-usage"
BIG = Flavor(flavor_id="2", name="big", vcpus=4, memory_mib=2048, root_gib=10, ephemeral_gib=5)
HOUR = 3600.0
START, END = "2023-11-14T12:00:00", "2023-11-14T22:13:20"
"""The clock stands at 2023-11-14T22:13:20."""


@pytest.fixture
async def cells() -> AsyncIterator[ResourceCloud]:
    async with resource_cloud(second_cell=True) as running:
        yield running


async def ran(cloud: ComputeCloud, hours: float, *, ended: float | None = None, **fields: Any) -> str:
    """A server that was started some hours ago and, perhaps, deleted some hours ago."""
    now = cloud.clock.now()
    gone = None if ended is None else now - ended * HOUR
    state = VmState.ACTIVE if ended is None else VmState.DELETED
    made = {"created_at": now - hours * HOUR, "launched_at": now - hours * HOUR, "terminated_at": gone,
            "deleted_at": gone, "vm_state": state, "flavor": BIG, **fields}
    return (await cloud.boot(**made)).uuid


async def usage(cloud: ComputeCloud, path: str = "", **query: str) -> Any:
    answer = await cloud.get(f"{LIST}{path}", params=query, as_="admin")
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.spec("API-258", "API-259", "API-467")
async def test_one_project(cloud: ComputeCloud) -> None:
    uuid = await ran(cloud, 4, ended=1)
    answer = await cloud.get(f"{LIST}/{PROJECT}", params={"start": START, "end": END}, as_="reader")
    assert answer.json() == {"tenant_usage": {
        "tenant_id": PROJECT, "start": "2023-11-14T12:00:00.000000", "stop": "2023-11-14T22:13:20.000000",
        "total_hours": 3.0, "total_vcpus_usage": 12.0, "total_memory_mb_usage": 6144.0, "total_local_gb_usage": 45.0,
        "server_usages": [{
            "instance_id": uuid, "name": "vm", "tenant_id": PROJECT, "flavor": "big", "hours": 3.0,
            "memory_mb": 2048, "vcpus": 4, "local_gb": 15, "started_at": "2023-11-14T18:13:20.000000",
            "ended_at": "2023-11-14T21:13:20.000000", "state": "terminated", "uptime": 10800,
        }],
    }}


@pytest.mark.spec("API-258", "API-467")
async def test_only_the_window_counts(cloud: ComputeCloud) -> None:
    whole = await ran(cloud, 100)
    await ran(cloud, 100, ended=50)
    await ran(cloud, 1)
    await cloud.boot(launched_at=None, vm_state=VmState.ERROR)
    found = await usage(cloud, start="2023-11-14T12:00:00.500000", end="2023-11-14 20:00:00.500000", detailed="1")
    (project,) = found["tenant_usages"]
    (server,) = project["server_usages"]
    assert (server["instance_id"], server["hours"], server["state"]) == (whole, 8.0, "active")
    assert (server["ended_at"], server["uptime"]) == (None, 360000)
    assert (project["start"], project["stop"]) == ("2023-11-14T12:00:00.500000", "2023-11-14T20:00:00.500000")


@pytest.mark.spec("API-258")
async def test_the_end_is_now_at_the_latest(cloud: ComputeCloud) -> None:
    await ran(cloud, 2)
    found = await usage(cloud, start=START, end="2030-01-01T00:00:00")
    assert found["tenant_usages"][0]["stop"] == "2023-11-14T22:13:20.000000"
    assert found["tenant_usages"][0]["total_hours"] == 2.0
    assert "server_usages" not in found["tenant_usages"][0]
    assert (await usage(cloud, end="2030-01-01T00:00:00"))["tenant_usages"][0]["total_hours"] == 0


@pytest.mark.spec("API-056", "API-258")
@pytest.mark.parametrize("query", [
    {"start": END, "end": START}, {"start": START, "end": START}, {"start": "yesterday"}, {"end": "2023-11-14"},
    {"start": "2031-01-01T00:00:00"},
])
async def test_spans_that_are_refused(cloud: ComputeCloud, query: dict[str, str]) -> None:
    for path in (LIST, f"{LIST}/{PROJECT}"):
        assert (await cloud.get(path, params=query, as_="admin")).status_code == 400


@pytest.mark.spec("API-258", "API-259")
async def test_who_sees_what(cloud: ComputeCloud) -> None:
    await ran(cloud, 2)
    await ran(cloud, 2, project_id=OTHER_PROJECT)
    found = await usage(cloud, start=START)
    assert {one["tenant_id"] for one in found["tenant_usages"]} == {PROJECT, OTHER_PROJECT}
    assert (await cloud.get(LIST, as_="manager")).status_code == 403
    assert (await cloud.get(f"{LIST}/{OTHER_PROJECT}", as_="reader")).status_code == 403
    assert (await usage(cloud, f"/{OTHER_PROJECT}", start=START))["tenant_usage"]["total_hours"] == 2.0
    assert (await cloud.get(f"{LIST}/{'c' * 32}", as_="admin")).json() == {"tenant_usage": {}}


@pytest.mark.spec("API-540", "API-048", "API-049")
async def test_pages(cloud: ComputeCloud) -> None:
    uuids = [await ran(cloud, hours, project_id=project)
             for hours, project in ((9, PROJECT), (8, OTHER_PROJECT), (7, PROJECT))]
    seen = []
    url: str | None = f"{LIST}?start={START}&detailed=1&limit=2"
    while url is not None:
        found = (await cloud.get(url, as_="admin", version="2.40")).json()
        seen += [server["instance_id"] for one in found["tenant_usages"] for server in one["server_usages"]]
        more = found.get("tenant_usages_links")
        url = more[0]["href"].partition("/v2.1")[2] if more else None
    assert sorted(seen) == sorted(uuids)
    one = (await cloud.get(f"{LIST}/{PROJECT}?start={START}&limit=1", as_="reader", version="2.40")).json()
    following = link({"links": one["tenant_usage_links"]}, "next")
    assert following.endswith(f"{PROJECT}?limit=1&marker={uuids[0]}&start=2023-11-14T12%3A00%3A00")
    last = f"{LIST}/{PROJECT}?start={START}&limit=1&marker={uuids[2]}"
    assert (await cloud.get(last, as_="reader", version="2.40")).json() == {"tenant_usage": {}}


@pytest.mark.spec("API-540", "API-048", "API-029")
async def test_bad_markers_and_old_microversions(cloud: ComputeCloud) -> None:
    elsewhere = await ran(cloud, 5, project_id=OTHER_PROJECT)
    for marker in ("x", "00000000-0000-4000-8000-000000000000", elsewhere):
        query = {"start": START, "marker": marker}
        assert (await cloud.get(f"{LIST}/{PROJECT}", params=query, as_="reader", version="2.40")).status_code == 400
    old = await cloud.get(LIST, params={"start": START, "limit": "0", "marker": "x"}, as_="admin", version="2.39")
    assert len(old.json()["tenant_usages"]) == 1
    assert "tenant_usages_links" not in old.json()
    assert (await cloud.get(LIST, params={"x": "1"}, as_="admin", version="2.75")).status_code == 400


@pytest.mark.spec("API-054", "API-258")
async def test_a_cell_that_does_not_answer_is_skipped(cells: ResourceCloud) -> None:
    await ran(cells, 2)
    cells.silence(1)
    assert len((await usage(cells, start=START))["tenant_usages"]) == 1


AUDIT = "/os-instance_usage_audit_log"


@pytest.mark.spec("API-260", "API-468")
async def test_no_host_has_audited(cells: ResourceCloud) -> None:
    await cells.report("host-2")
    await cells.report("host-1")
    await cells.service("nova-conductor", "elsewhere")
    answer = await cells.get(AUDIT, as_="admin")
    assert answer.json() == {"instance_usage_audit_logs": {
        "period_beginning": "2023-10-01 00:00:00", "period_ending": "2023-11-01 00:00:00", "num_hosts": 2,
        "num_hosts_done": 0, "num_hosts_running": 0, "num_hosts_not_run": 2, "hosts_not_run": ["host-1", "host-2"],
        "total_instances": 0, "total_errors": 0, "overall_status": "0 of 2 hosts done. 0 errors.", "log": {},
    }}
    assert (await cells.get(AUDIT, as_="manager")).status_code == 403


@pytest.mark.spec("API-260", "API-468")
async def test_audits_that_run_and_those_that_are_done(cells: ResourceCloud) -> None:
    for number, host in enumerate(("host-1", "host-2", "host-3")):
        await cells.report(host, cell=number % 2)
    period = last_completed(cells.clock.now(), "month")

    def audited(conn: sa.Connection) -> None:
        hosts = [agent.host for agent in services.all_services(conn, binary=services.COMPUTE)]
        usage_audits.begin(conn, [host for host in hosts if host != "host-3"], period, now=1.0)
        if "host-2" in hosts:
            number = usage_audits.of_period(conn, *period)[0].id
            usage_audits.told(conn, number, [], errors=2)
            usage_audits.end(conn, number, "Done.")

    await ran(cells, 24.0 * 30, host="host-1")
    await ran(cells, 24.0, host="host-1")  # after the period
    for cell in cells.all_cells:
        await cell.database.write(audited)
    found = (await cells.get(AUDIT, as_="admin")).json()["instance_usage_audit_logs"]
    assert found["hosts_not_run"] == ["host-3"]
    assert [found[f"num_hosts{which}"] for which in ("", "_done", "_running", "_not_run")] == [3, 1, 1, 1]
    assert (found["total_instances"], found["total_errors"]) == (1, 2)
    assert found["overall_status"] == "1 of 3 hosts done. 2 errors."
    message = "Usage of 1 servers on host-1 is to be told."
    assert found["log"] == {
        "host-1": {"state": "RUNNING", "instances": 1, "errors": 0, "message": message},
        "host-2": {"state": "DONE", "instances": 0, "errors": 2, "message": "Done."},
    }


@pytest.mark.spec("API-261", "API-468", "API-056")
async def test_the_period_before_a_time(cells: ResourceCloud) -> None:
    for time in ("2022-01-31 10:00:00", "2022-01-31 10:00:00.5"):
        found = (await cells.get(f"{AUDIT}/{time}", as_="admin")).json()["instance_usage_audit_log"]
        assert (found["period_beginning"], found["period_ending"]) == ("2021-12-01 00:00:00", "2022-01-01 00:00:00")
        assert found["overall_status"] == "ALL hosts done. 0 errors."
    for time in ("2022-01-31", "x", "0001-01-01 00:00:00"):
        assert (await cells.get(f"{AUDIT}/{time}", as_="admin")).status_code == 400
