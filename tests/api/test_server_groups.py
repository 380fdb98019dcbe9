"""Server groups: making, listing and removing them, and servers that join."""

import uuid
from typing import Any

import pytest
from compute_cloud import ComputeCloud, compute_cloud, create

from kilonova.api.compute.quota_check import Limits
from kilonova.db import build_requests, server_groups
from kilonova.domain.grouping import GroupPolicy

ABSENT = str(uuid.uuid4())


async def made(cloud: ComputeCloud, version: str = "2.64", **fields: Any) -> dict[str, Any]:
    body = {"name": "g", "policy": "anti-affinity", **fields}
    answer = await cloud.post("/os-server-groups", {"server_group": body}, version=version)
    assert answer.status_code == 200, answer.text
    group: dict[str, Any] = answer.json()["server_group"]
    return group


@pytest.mark.spec("API-219", "API-462", "API-564")
async def test_create(cloud: ComputeCloud) -> None:
    group = await made(cloud, rules={"max_server_per_host": "3"})
    assert group == {
        "id": group["id"], "name": "g", "policy": "anti-affinity", "rules": {"max_server_per_host": 3}, "members": [],
        "project_id": group["project_id"], "user_id": group["user_id"],
    }
    plain = await made(cloud)
    assert plain["rules"] == {}
    old = await cloud.post("/os-server-groups", {"server_group": {"name": "g", "policies": ["affinity"]}})
    assert old.json()["server_group"] == {
        "id": old.json()["server_group"]["id"], "name": "g", "policies": ["affinity"], "metadata": {}, "members": []
    }


@pytest.mark.spec("API-219", "API-515", "API-564")
@pytest.mark.parametrize(
    ("version", "body"),
    [
        ("2.1", {"name": "g"}), ("2.1", {"name": "g", "policies": []}), ("2.1", {"policies": ["affinity"]}),
        ("2.1", {"name": "g", "policies": ["affinity", "anti-affinity"]}),
        ("2.1", {"name": "", "policies": ["affinity"]}),
        ("2.14", {"name": "g", "policies": ["soft-affinity"]}), ("2.1", {"name": "g", "policy": "affinity"}),
        ("2.64", {"name": "g", "policies": ["affinity"]}), ("2.64", {"name": "g", "policy": "near"}),
        ("2.64", {"name": "g", "policy": "affinity", "rules": {"max_server_per_host": 2}}),
        ("2.64", {"name": "g", "policy": "anti-affinity", "rules": {"max_server_per_host": 0}}),
        ("2.64", {"name": "g", "policy": "anti-affinity", "rules": {"other": 2}}),
        ("2.64", {"name": "g" * 256, "policy": "affinity"}),
    ],
)
async def test_what_is_refused(cloud: ComputeCloud, version: str, body: dict[str, Any]) -> None:
    answer = await cloud.post("/os-server-groups", {"server_group": body}, version=version)
    assert answer.status_code == 400


@pytest.mark.spec("API-515", "API-513")
async def test_microversions(cloud: ComputeCloud) -> None:
    body = {"server_group": {"name": "g", "policies": ["soft-anti-affinity"]}}
    answer = await cloud.post("/os-server-groups", body, version="2.15")
    group = answer.json()["server_group"]
    assert group["policies"] == ["soft-anti-affinity"]
    path = f"/os-server-groups/{group['id']}"
    assert "project_id" not in (await cloud.get(path, version="2.12")).json()["server_group"]
    assert (await cloud.get(path, version="2.13")).json()["server_group"]["project_id"]


@pytest.mark.spec("API-218", "API-220", "API-050")
async def test_list_and_show(cloud: ComputeCloud) -> None:
    groups = [(await made(cloud, name=f"g{n}"))["id"] for n in range(3)]

    async def listed(query: str = "", as_: str = "member") -> list[str]:
        answer = await cloud.get(f"/os-server-groups{query}", version="2.64", as_=as_)
        assert answer.status_code == 200
        return [group["id"] for group in answer.json()["server_groups"]]

    assert await listed() == groups
    assert await listed("?offset=1&limit=1") == groups[1:2]
    assert await listed(as_="stranger") == []
    assert await listed("?all_projects", as_="stranger") == []
    assert await listed("?all_projects=False", as_="admin") == groups
    one = f"/os-server-groups/{groups[0]}"
    assert (await cloud.get(one, version="2.64")).json()["server_group"]["name"] == "g0"
    assert (await cloud.get(one, as_="stranger")).status_code == 403
    assert (await cloud.get(f"/os-server-groups/{ABSENT}")).status_code == 404
    assert (await cloud.get("/os-server-groups?other=1", version="2.75")).status_code == 400


@pytest.mark.spec("API-219", "API-060", "API-061")
async def test_quota() -> None:
    async with compute_cloud(limits=Limits(server_groups=1, server_group_members=2)) as cloud:
        group = await made(cloud)
        answer = await cloud.post("/os-server-groups", {"server_group": {"name": "g", "policies": ["affinity"]}})
        assert answer.status_code == 403
        assert answer.json()["forbidden"]["message"] == "Quota exceeded, too many server groups."
        hints = {"group": group["id"]}
        answer = await create(cloud, min_count=3, hints=hints)
        assert answer.status_code == 403
        assert answer.json()["forbidden"]["message"] == "Quota exceeded, too many servers in group"
        assert (await create(cloud, min_count=2, hints=hints)).status_code == 202
        assert (await create(cloud, hints=hints)).status_code == 403


@pytest.mark.spec("API-462", "API-443", "API-571", "API-221", "BLD-09")
async def test_a_server_joins_and_leaves(cloud: ComputeCloud) -> None:
    group = (await made(cloud))["id"]
    answer = await create(cloud, hints={"group": group})
    assert answer.status_code == 202
    server = answer.json()["server"]["id"]
    assert cloud.compute.created[-1].spec.server_group == group
    members = (await cloud.get(f"/os-server-groups/{group}")).json()["server_group"]["members"]
    assert members == [server]
    shown = (await cloud.get(f"/servers/{server}", version="2.71")).json()["server"]
    assert shown["server_groups"] == [group]
    assert "server_groups" not in (await cloud.get(f"/servers/{server}", version="2.70")).json()["server"]
    limits = (await cloud.get("/limits")).json()["limits"]["absolute"]
    assert limits["totalServerGroupsUsed"] == 1
    await cloud.cells.api.write(lambda conn: build_requests.discard(conn, server))
    assert (await cloud.get(f"/os-server-groups/{group}")).json()["server_group"]["members"] == []
    assert (await cloud.delete(f"/os-server-groups/{group}")).status_code == 204
    assert (await cloud.delete(f"/os-server-groups/{group}")).status_code == 404


async def test_a_group_of_somebody_else_takes_nobody(cloud: ComputeCloud) -> None:
    group = server_groups.GroupRecord(
        uuid=ABSENT, name="g", policy=GroupPolicy.AFFINITY, project_id="other", user_id="other"
    )
    absent = await create(cloud, hints={"group": ABSENT})
    await cloud.cells.api.write(lambda conn: server_groups.create(conn, group))
    of_another = await create(cloud, hints={"group": ABSENT})
    for answer in (absent, of_another):
        assert answer.status_code == 400
        assert answer.json()["badRequest"]["message"] == f"Instance group {ABSENT} could not be found."
