"""Fetching images to the hosts of an aggregate."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from resource_cloud import ResourceCloud, resource_cloud

ONE, TWO = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"


@pytest.fixture
async def cloud() -> AsyncIterator[ResourceCloud]:
    async with resource_cloud(second_cell=True) as running:
        await running.report("h1")
        await running.report("h2", cell=1)
        await running.report("h3")
        await running.report("h4")
        yield running


async def make(cloud: ResourceCloud, *hosts: str) -> tuple[int, str]:
    created = await cloud.post("/os-aggregates", {"aggregate": {"name": "a"}}, version="2.41", as_="admin")
    found = created.json()["aggregate"]
    for host in hosts:
        body = {"add_host": {"host": host}}
        answer = await cloud.post(f"/os-aggregates/{found['id']}/action", body, as_="admin")
        assert answer.status_code == 200, answer.text
    return found["id"], found["uuid"]


async def ask(cloud: ResourceCloud, number: int | str, body: Any, *, version: str = "2.81", as_: str = "admin") -> int:
    answer = await cloud.post(f"/os-aggregates/{number}/images", body, version=version, as_=as_)
    if answer.status_code == 202:
        assert answer.content == b""
    return answer.status_code


def images(*ids: str) -> dict[str, Any]:
    return {"cache": [{"id": one} for one in ids]}


@pytest.mark.spec("API-230", "API-581")
async def test_every_host_of_the_aggregate_is_asked_in_its_cell(cloud: ResourceCloud) -> None:
    number, aggregate = await make(cloud, "h1", "h2", "h3")
    assert await ask(cloud, number, images(ONE, TWO)) == 202
    assert cloud.compute.calls == [
        (f"cache {ONE},{TWO} in cell1 on h1,h3", aggregate), (f"cache {ONE},{TWO} in cell2 on h2", aggregate),
    ]


@pytest.mark.spec("API-230")
async def test_an_aggregate_without_hosts_asks_nobody(cloud: ResourceCloud) -> None:
    number, _ = await make(cloud)
    assert await ask(cloud, number, images(ONE)) == 202
    assert cloud.compute.calls == []


@pytest.mark.spec("API-230")
@pytest.mark.parametrize("body", [
    {}, {"cache": []}, {"cache": [{}]}, {"cache": [{"id": "x"}]}, {"cache": [{"id": ONE, "more": 1}]},
    images(ONE, TWO, ONE), {"cache": ONE}, {**images(ONE), "more": 1},
])
async def test_bodies_that_are_refused(cloud: ResourceCloud, body: Any) -> None:
    number, _ = await make(cloud, "h1")
    assert await ask(cloud, number, body) == 400
    assert cloud.compute.calls == []


@pytest.mark.spec("API-230", "API-581")
async def test_who_may_and_since_when(cloud: ResourceCloud) -> None:
    number, _ = await make(cloud, "h1")
    assert await ask(cloud, number, images(ONE), version="2.80") == 404
    assert await ask(cloud, 99, images(ONE)) == 404
    assert await ask(cloud, "x", images(ONE)) == 400
    for who in ("member", "manager", "reader"):
        assert await ask(cloud, number, images(ONE), as_=who) == 403
    assert cloud.compute.calls == []
