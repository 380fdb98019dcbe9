"""Hosts in the oldest form."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from compute_cloud import OTHER_PROJECT, PROJECT, TINY
from resource_cloud import DOWN_TIME, ResourceCloud, resource_cloud


@pytest.fixture
async def cloud() -> AsyncIterator[ResourceCloud]:
    async with resource_cloud() as running:
        await running.report("h1")
        await running.report("h2")
        await running.service("nova-conductor", "c1")
        yield running


async def get(cloud: ResourceCloud, path: str = "", *, version: int = 1, as_: str = "admin") -> tuple[int, Any]:
    answer = await cloud.get(f"/os-hosts{path}", as_=as_, version=f"2.{version}")
    return answer.status_code, answer.json()


@pytest.mark.spec("API-244", "API-246", "API-543")
async def test_hosts_are_listed_and_disabled(cloud: ResourceCloud) -> None:
    assert (await get(cloud, as_="manager"))[0] == 403
    assert (await get(cloud, version=43))[0] == 404
    rows = {"h1": {"host_name": "h1", "service": "compute", "zone": "nova"},
            "h2": {"host_name": "h2", "service": "compute", "zone": "nova"},
            "c1": {"host_name": "c1", "service": "conductor", "zone": "internal"}}
    _, found = await get(cloud, version=42)
    assert sorted(found["hosts"], key=str) == sorted(rows.values(), key=str)
    assert (await get(cloud, "?zone=internal"))[1] == {"hosts": [rows["c1"]]}
    assert (await get(cloud, "?zone="))[1] == (await get(cloud))[1]
    for word, status in (("disable", "disabled"), ("Disable", "disabled"), ("enable", "enabled")):
        answer = await cloud.put("/os-hosts/h1", {"status": word}, as_="admin")
        assert (answer.status_code, answer.json()) == (200, {"host": "h1", "status": status})
        (service,) = (await cloud.get("/os-services?host=h1", as_="admin")).json()["services"]
        assert service["status"] == status
        listed = [row["host_name"] for row in (await get(cloud, "?zone=nova"))[1]["hosts"]]
        assert ("h1" in listed) == (status == "enabled")


@pytest.mark.spec("API-246", "API-247", "API-248", "API-249")
async def test_what_no_driver_does(cloud: ResourceCloud) -> None:
    for action in ("reboot", "shutdown", "startup"):
        assert (await get(cloud, f"/h1/{action}", as_="manager"))[0] == 403
        assert (await get(cloud, f"/h1/{action}"))[0] == 501
        assert (await get(cloud, f"/nowhere/{action}"))[0] == 404
        assert (await get(cloud, f"/h1/{action}", version=43))[0] == 404

    async def put(host: str, **body: str) -> int:
        return (await cloud.put(f"/os-hosts/{host}", body, as_="admin")).status_code

    assert await put("h1", maintenance_mode="enable") == 501
    assert await put("nowhere", status="enable") == 404
    for bad in ({}, {"status": "off"}, {"status": "enable", "color": "red"}):
        assert await put("h1", **bad) == 400
    cloud.clock.time += DOWN_TIME + 1
    assert await put("h1", status="disable") == 400
    assert (await get(cloud, "/h1/reboot"))[0] == 400


@pytest.mark.spec("API-245")
async def test_what_a_host_has_and_its_servers_take(cloud: ResourceCloud) -> None:
    await cloud.boot(host="h1")
    await cloud.boot(host="h1")
    await cloud.boot(host="h1", project_id=OTHER_PROJECT)
    await cloud.boot(host="h2")
    assert (await get(cloud, "/h1", as_="manager"))[0] == 403
    status, found = await get(cloud, "/h1")
    assert status == 200
    rows = [row["resource"] for row in found["host"]]
    assert [(row["host"], row["project"]) for row in rows] == [
        ("h1", "(total)"), ("h1", "(used_now)"), ("h1", "(used_max)"), ("h1", PROJECT), ("h1", OTHER_PROJECT),
    ]
    assert all(rows[0][name] > 0 for name in ("cpu", "memory_mb", "disk_gb"))
    for row, count in zip(rows[1:], (3, 3, 2, 1), strict=True):
        assert (row["cpu"], row["memory_mb"], row["disk_gb"]) == (
            count * TINY.vcpus, count * TINY.memory_mib, count * (TINY.root_gib + TINY.ephemeral_gib))
    assert (await get(cloud, "/nowhere"))[0] == 404
