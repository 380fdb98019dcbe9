"""Server groups decide where servers are, also when their members are built at the same time."""

from __future__ import annotations

import pytest
from small_cloud import SmallCloud, in_cloud

from kilonova.db import server_groups
from kilonova.db.server_groups import GroupRecord
from kilonova.domain.grouping import GroupPolicy
from kilonova.domain.states import VmState

GROUP = "77777777-7777-4777-8777-777777777777"


async def build_members(cloud: SmallCloud, policy: GroupPolicy, count: int, **rules: int) -> list[str | None]:
    """Build servers of one group at once; returns the host of each that runs."""
    group = GroupRecord(uuid=GROUP, name="g", policy=policy, project_id="project", user_id="user", **rules)
    await cloud.databases.api.write(lambda conn: server_groups.create(conn, group))
    servers = [await cloud.ask(cloud.new(server_group=GROUP)) for _ in range(count)]
    await cloud.rest()
    return [s.host for s in map(cloud.server, servers) if s.vm_state is VmState.ACTIVE]


@pytest.mark.spec("BLD-11", "BLD-17")
@in_cloud(hosts=3)
async def test_anti_affinity(cloud: SmallCloud) -> None:
    hosts = await build_members(cloud, GroupPolicy.ANTI_AFFINITY, 5)
    assert sorted(h for h in hosts if h) == ["host0", "host1", "host2"]


@pytest.mark.spec("BLD-12", "BLD-17")
@in_cloud(hosts=2)
async def test_at_most_so_many_on_a_host(cloud: SmallCloud) -> None:
    hosts = await build_members(cloud, GroupPolicy.ANTI_AFFINITY, 6, max_per_host=2)
    assert sorted(h for h in hosts if h) == ["host0", "host0", "host1", "host1"]


@pytest.mark.spec("BLD-13", "BLD-18")
@in_cloud(hosts=3)
async def test_affinity(cloud: SmallCloud) -> None:
    hosts = await build_members(cloud, GroupPolicy.AFFINITY, 4)
    assert len(hosts) == 4
    assert len(set(hosts)) == 1


@pytest.mark.spec("BLD-14")
@in_cloud(hosts=2)
async def test_soft_anti_affinity_spreads_but_refuses_nobody(cloud: SmallCloud) -> None:
    hosts = await build_members(cloud, GroupPolicy.SOFT_ANTI_AFFINITY, 4)
    assert sorted(h for h in hosts if h) == ["host0", "host0", "host1", "host1"]


@in_cloud(hosts=2)
async def test_a_deleted_member_makes_room(cloud: SmallCloud) -> None:
    hosts = await build_members(cloud, GroupPolicy.ANTI_AFFINITY, 2)
    assert len(hosts) == 2
    members = cloud.api(lambda conn: server_groups.get(conn, GROUP)).members
    await cloud.delete(members[0])
    await cloud.rest()
    assert cloud.api(lambda conn: server_groups.get(conn, GROUP)).members == members[1:]
    await cloud.build(server_group=GROUP)
