"""Hypervisors: views at every microversion, pages, search, servers, statistics, uptime."""

import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
from resource_cloud import DOWN_TIME, ResourceCloud, resource_cloud

from kilonova.db.services import services
from kilonova.domain.states import TaskState

ALL = "/os-hypervisors"
BRIEF = {"id", "hypervisor_hostname", "state", "status"}
FULL = BRIEF | {"hypervisor_type", "hypervisor_version", "host_ip", "service"}
FIGURES = {
    "vcpus", "vcpus_used", "memory_mb", "memory_mb_used", "free_ram_mb", "local_gb", "local_gb_used", "free_disk_gb",
    "disk_available_least", "running_vms", "current_workload",
}


@pytest.fixture
async def cloud() -> AsyncIterator[ResourceCloud]:
    async with resource_cloud() as running:
        await running.report("h1")
        yield running


async def get(cloud: ResourceCloud, path: str = "", version: str = "2.53", status: int = 200) -> Any:
    answer = await cloud.get(f"{ALL}{path}", as_="admin", version=version)
    assert answer.status_code == status, answer.text
    return answer.json()


async def names(cloud: ResourceCloud, path: str = "", version: str = "2.53") -> list[str]:
    return [entry["hypervisor_hostname"] for entry in (await get(cloud, path, version))["hypervisors"]]


@pytest.mark.spec("API-454", "API-233", "API-234", "API-236", "API-528", "API-553", "API-588", "HST-03")
@pytest.mark.parametrize("version", range(1, 105))
async def test_fields(cloud: ResourceCloud, version: int) -> None:
    node, service = await cloud.node_of("h1"), await cloud.service_of("h1")
    at, number = f"2.{version}", node.uuid if version >= 53 else node.id
    expected = FULL | ({"uptime"} if version >= 88 else FIGURES | {"cpu_info"})
    (entry,) = (await get(cloud, "", at))["hypervisors"]
    assert entry == {"id": number, "hypervisor_hostname": "h1", "state": "up", "status": "enabled"}
    (entry,) = (await get(cloud, "/detail", at))["hypervisors"]
    shown = (await get(cloud, f"/{number}", at))["hypervisor"]
    assert entry == shown
    assert set(shown) == expected
    assert shown["service"] == {
        "id": service.uuid if version >= 53 else service.id, "host": "h1", "disabled_reason": None}
    if version >= 88:
        assert shown["uptime"] == "10:00:00 up 3 days"
    else:
        assert shown["cpu_info"] == ({"model": "EPYC"} if version >= 28 else '{"model": "EPYC"}')


@pytest.mark.spec("API-454", "API-234", "API-235")
async def test_figures(cloud: ResourceCloud) -> None:
    node = await cloud.node_of("h1")
    await cloud.claim(node.uuid, VCPU=3, MEMORY_MB=2048, DISK_GB=20)
    await cloud.boot(host="h1", node="h1")
    await cloud.boot(host="h1", node="h1", task_state=TaskState.REBOOTING)
    await cloud.boot(host="h1", node="another")
    figures = {
        "vcpus": 8, "vcpus_used": 3, "memory_mb": 16384, "memory_mb_used": 2048 + 512, "free_ram_mb": 13824,
        "local_gb": 100, "local_gb_used": 20, "free_disk_gb": 80, "disk_available_least": 90, "running_vms": 2,
        "current_workload": 1,
    }
    (entry,) = (await get(cloud, "/detail", "2.87"))["hypervisors"]
    assert {name: entry[name] for name in FIGURES} == figures
    assert (entry["hypervisor_type"], entry["hypervisor_version"], entry["host_ip"]) == ("QEMU", 7002000, "192.0.2.7")
    assert (await get(cloud, "/statistics", "2.87"))["hypervisor_statistics"] == {"count": 1, **figures}


@pytest.mark.spec("API-235", "API-588")
async def test_statistics_leave_out_disabled_nodes(cloud: ResourceCloud) -> None:
    await cloud.report("h2", vcpus=2)
    await cloud.report("h3", vcpus=100)
    body = {"host": "h3", "binary": "nova-compute"}
    await cloud.put("/os-services/disable", body, as_="admin")
    found = (await get(cloud, "/statistics", "2.87"))["hypervisor_statistics"]
    assert (found["count"], found["vcpus"], found["memory_mb"]) == (2, 10, 2 * 16384)
    assert set(found) == FIGURES | {"count"}
    await get(cloud, "/statistics", "2.88", status=404)


@pytest.mark.spec("API-454", "API-233")
async def test_state_and_status(cloud: ResourceCloud) -> None:
    cloud.clock.time += DOWN_TIME + 1
    body = {"host": "h1", "binary": "nova-compute", "disabled_reason": "disk"}
    await cloud.put("/os-services/disable-log-reason", body, as_="admin")
    (entry,) = (await get(cloud, "/detail", "2.88"))["hypervisors"]
    assert (entry["state"], entry["status"], entry["uptime"]) == ("down", "disabled", None)
    assert entry["service"]["disabled_reason"] == "disk"


@pytest.mark.spec("API-233", "API-234")
async def test_nodes_without_service_are_left_out(cloud: ResourceCloud) -> None:
    await cloud.cell.database.write(lambda conn: conn.execute(services.delete()))
    assert await names(cloud) == await names(cloud, "/detail") == []


@pytest.mark.spec("API-236", "API-553")
async def test_ids(cloud: ResourceCloud) -> None:
    node = await cloud.node_of("h1")
    for number, version, status in (
        ("1", "2.52", 200), ("2", "2.52", 404), ("x", "2.52", 404), (node.uuid, "2.52", 404), (node.uuid, "2.53", 200),
        (str(uuid.uuid4()), "2.53", 404), ("1", "2.53", 400), ("x", "2.53", 400),
    ):
        await get(cloud, f"/{number}", version, status)
        await get(cloud, f"/{number}/uptime", version, status)


@pytest.mark.spec("API-237", "API-238", "API-553")
async def test_search_and_servers(cloud: ResourceCloud) -> None:
    await cloud.report("h2")
    await cloud.report("other")
    server = await cloud.boot(host="h1", node="h1", display_name="web")
    assert await names(cloud, "/h/search", "2.52") == ["h1", "h2", "other"]
    assert await names(cloud, "/H2/search", "2.52") == ["h2"]
    (entry,) = (await get(cloud, "/h2/search", "2.52"))["hypervisors"]
    assert set(entry) == BRIEF
    first, second = (await get(cloud, "/h/servers", "2.52"))["hypervisors"][:2]
    assert first["servers"] == [{"name": "web", "uuid": server.uuid}]
    assert set(second) == BRIEF
    for route in ("search", "servers"):
        await get(cloud, f"/nothing/{route}", "2.52", status=404)
        await get(cloud, f"/h1/{route}", "2.53", status=404)


@pytest.mark.spec("API-239", "API-588")
async def test_uptime(cloud: ResourceCloud) -> None:
    found = (await get(cloud, "/1/uptime", "2.52"))["hypervisor"]
    assert found == {
        "id": 1, "hypervisor_hostname": "h1", "state": "up", "status": "enabled", "uptime": "10:00:00 up 3 days"}
    await cloud.report("h2", uptime=None)
    await get(cloud, "/2/uptime", "2.52", status=501)
    node = await cloud.node_of("h1")
    await get(cloud, f"/{node.uuid}/uptime", "2.88", status=404)
    cloud.clock.time += DOWN_TIME + 1
    await get(cloud, "/1/uptime", "2.52", status=400)


@pytest.mark.spec("API-233", "API-234", "API-236", "API-454", "API-553", "API-575")
async def test_with_servers(cloud: ResourceCloud) -> None:
    await cloud.report("h2")
    server = await cloud.boot(host="h1", node="h1", display_name="web")
    await cloud.delete(f"/servers/{(await cloud.boot(host='h1', node='h1')).uuid}")
    expected = [{"name": "web", "uuid": server.uuid}]
    number, empty = (await cloud.node_of("h1")).uuid, (await cloud.node_of("h2")).uuid
    for path in ("", "/detail"):
        first, second = (await get(cloud, f"{path}?with_servers=true", "2.53"))["hypervisors"]
        assert first["servers"] == expected
        assert "servers" not in second
        first, second = (await get(cloud, f"{path}?with_servers=1", "2.75"))["hypervisors"]
        assert (first["servers"], second["servers"]) == (expected, [])
        first, _ = (await get(cloud, f"{path}?with_servers=false", "2.75"))["hypervisors"]
        assert "servers" not in first
    assert (await get(cloud, f"/{number}?with_servers=true", "2.104"))["hypervisor"]["servers"] == expected
    assert (await get(cloud, f"/{empty}?with_servers=true", "2.74"))["hypervisor"].get("servers") is None
    assert (await get(cloud, f"/{empty}?with_servers=true", "2.75"))["hypervisor"]["servers"] == []
    await get(cloud, "?with_servers=perhaps", "2.53", status=400)


@pytest.mark.spec("API-233", "API-234", "API-553")
async def test_pattern(cloud: ResourceCloud) -> None:
    await cloud.report("rack-1")
    for path in ("", "/detail"):
        assert await names(cloud, f"{path}?hypervisor_hostname_pattern=ack") == ["rack-1"]
        await get(cloud, f"{path}?hypervisor_hostname_pattern=none", status=404)
        await get(cloud, f"{path}?hypervisor_hostname_pattern=h&limit=1", status=400)
        await get(cloud, f"{path}?hypervisor_hostname_pattern=h&marker={uuid.uuid4()}", status=400)


@pytest.mark.spec("API-233", "API-234", "API-533", "API-046", "API-047", "API-048", "API-049")
async def test_pages() -> None:
    async with resource_cloud(second_cell=True) as cloud:
        for host, cell in (("b", 0), ("a", 0), ("d", 1), ("c", 1)):
            await cloud.report(host, cell=cell)
        assert await names(cloud, "?limit=1", "2.32") == ["b", "a", "d", "c"]
        for path in ("", "/detail"):
            found = await get(cloud, f"{path}?limit=2", "2.53")
            assert [entry["hypervisor_hostname"] for entry in found["hypervisors"]] == ["b", "a"]
            marker = (await cloud.node_of("a")).uuid
            assert found["hypervisors_links"] == [{
                "rel": "next", "href": f"http://cloud.test/compute/v2.1{ALL}{path}?limit=2&marker={marker}"}]
            assert await names(cloud, f"{path}?limit=2&marker={marker}") == ["d", "c"]
            last = await get(cloud, f"{path}?limit=5&marker={marker}")
            assert "hypervisors_links" not in last
            assert await names(cloud, f"{path}?limit=0") == []
            for query in (f"?marker={uuid.uuid4()}", "?marker=1", "?limit=-1", "?limit=x"):
                await get(cloud, f"{path}{query}", status=400)
        assert await names(cloud, "?marker=2&limit=1", "2.33") == ["d"]


@pytest.mark.spec("API-029", "API-553")
async def test_unknown_parameters(cloud: ResourceCloud) -> None:
    number = (await cloud.node_of("h1")).uuid
    for path in ("", "/detail"):
        await get(cloud, f"{path}?x=1", "2.52")
        await get(cloud, f"{path}?x=1", "2.53", status=400)
    await get(cloud, "/1?x=1", "2.52")
    await get(cloud, f"/{number}?x=1", "2.53", status=400)
    await get(cloud, f"/{number}?limit=1", "2.53", status=400)


@pytest.mark.spec("API-233", "API-234", "API-235", "API-236", "API-237", "API-238", "API-239", "API-041")
@pytest.mark.parametrize(("path", "rule"), [
    ("", "list"), ("/detail", "list-detail"), ("/statistics", "statistics"), ("/1", "show"), ("/h/search", "search"),
    ("/h/servers", "servers"), ("/1/uptime", "uptime"),
])
async def test_only_for_admins(cloud: ResourceCloud, path: str, rule: str) -> None:
    for as_ in ("manager", "member", "reader", "service"):
        answer = await cloud.get(f"{ALL}{path}", as_=as_)
        assert answer.status_code == 403
        assert f"os_compute_api:os-hypervisors:{rule} " in answer.text


@pytest.mark.spec("API-054")
async def test_a_cell_that_does_not_answer_is_left_out() -> None:
    async with resource_cloud(second_cell=True) as cloud:
        await cloud.report("h1")
        await cloud.report("h2", cell=1)
        cloud.silence(1)
        assert await names(cloud) == ["h1"]
