"""Claims on both databases: never too much, never twice, never left behind."""

from __future__ import annotations

import asyncio
import uuid

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from placement_databases import TABLES, placement_db

from kilonova.db import placement
from kilonova.db.api_schema import api_metadata
from kilonova.db.database import Database
from kilonova.db.placement import Claim, Holding, Inventory, tables
from kilonova.db.placement.errors import InventoryInUse, ProviderInUse
from kilonova.domain.grouping import GroupPolicy, ServerGroup
from kilonova.hypervisor.guest import HostInventory

__all__ = ["placement_db"]

INVENTORY = HostInventory(
    hostname="n", hypervisor_type="QEMU", hypervisor_version=7002022, vcpus=8, memory_mib=8704, local_gib=100,
    disk_available_gib=90, memory_free_mib=8000,
)  # 32 VCPU, 8192 MiB, 100 GiB to claim
SMALL = {"VCPU": 1, "MEMORY_MB": 512, "DISK_GB": 10}


def an_id() -> str:
    return str(uuid.uuid4())


async def a_host(db: Database, host: str = "h1", inventory: HostInventory = INVENTORY) -> str:
    return await db.write(lambda connection: placement.report(connection, host, host, inventory, now=1.0))


async def claims(db: Database, consumer: str, provider: str, resources: dict[str, int] = SMALL,
                 group: ServerGroup | None = None) -> Claim:
    return await db.write(lambda connection: placement.claim(
        connection, consumer, provider, resources, "project", "user", group=group
    ))


async def held(db: Database, consumer: str) -> list[Holding]:
    return await db.read(lambda connection: placement.holdings(connection, consumer))


async def used(db: Database, provider: str) -> dict[str, int]:
    """The counters, checked against the allocations they stand for."""

    def read(connection: sa.Connection) -> dict[str, int]:
        provider_id = placement.find_provider(connection, provider).id
        counters = dict(connection.execute(
            sa.select(tables.inventories.c.resource_class, tables.inventories.c.used)
            .where(tables.inventories.c.provider_id == provider_id)
        ).all())
        sums = dict(connection.execute(
            sa.select(tables.allocations.c.resource_class, sa.func.sum(tables.allocations.c.used))
            .where(tables.allocations.c.provider_id == provider_id)
            .group_by(tables.allocations.c.resource_class)
        ).all())
        assert {name: count for name, count in counters.items() if count} == sums
        return counters

    return await db.read(read)


async def consumers(db: Database) -> set[str]:
    return await db.read(lambda connection: set(connection.execute(sa.select(tables.consumers.c.uuid)).scalars()))


async def test_a_claim_is_held_once_however_often_it_is_made(db: Database) -> None:
    provider, server = await a_host(db), an_id()
    assert await claims(db, server, provider) is Claim.HELD
    generation = (await db.read(lambda connection: placement.find_provider(connection, provider))).generation
    assert await claims(db, server, provider) is Claim.HELD
    again = await db.read(lambda connection: placement.find_provider(connection, provider))
    assert again.generation == generation
    assert await used(db, provider) == {"VCPU": 1, "MEMORY_MB": 512, "DISK_GB": 10}
    assert await held(db, server) == [Holding(provider, dict(sorted(SMALL.items())), "h1", "h1")]


@pytest.mark.spec("API-746")
async def test_a_refused_claim_leaves_no_trace(db: Database) -> None:
    provider = await a_host(db)
    for resources in ({"VCPU": 33}, {"MEMORY_MB": 8193, "VCPU": 1}, {"CUSTOM_GOLD": 1}, {"VCPU": 9}):
        assert await claims(db, an_id(), provider, resources) is Claim.FULL
    assert await claims(db, an_id(), an_id()) is Claim.GONE
    assert await used(db, provider) == {"VCPU": 0, "MEMORY_MB": 0, "DISK_GB": 0}
    assert await consumers(db) == set()


@pytest.mark.spec("API-746")
async def test_units_and_steps_are_kept(db: Database) -> None:
    provider = await a_host(db)
    await db.write(lambda connection: placement.set_inventories(
        connection, provider, {"CUSTOM_GOLD": Inventory(total=100, min_unit=4, max_unit=20, step_size=4)}
    ))
    verdicts = {n: await claims(db, an_id(), provider, {"CUSTOM_GOLD": n}) for n in (2, 4, 6, 20, 24)}
    assert {n for n, verdict in verdicts.items() if verdict} == {4, 20}


async def test_changing_a_claim_counts_the_difference(db: Database) -> None:
    provider, server = await a_host(db), an_id()
    await claims(db, server, provider, {"VCPU": 8, "MEMORY_MB": 8000})
    assert await claims(db, server, provider, {"VCPU": 4, "MEMORY_MB": 8192, "DISK_GB": 1})
    assert await used(db, provider) == {"VCPU": 4, "MEMORY_MB": 8192, "DISK_GB": 1}
    assert await claims(db, server, provider, {"MEMORY_MB": 8193}) is Claim.FULL
    assert await used(db, provider) == {"VCPU": 4, "MEMORY_MB": 8192, "DISK_GB": 1}


@pytest.mark.spec("API-748")
async def test_a_host_that_shrank_keeps_its_servers_and_takes_no_more(db: Database) -> None:
    provider, server = await a_host(db), an_id()
    await claims(db, server, provider, {"VCPU": 8, "MEMORY_MB": 4096, "DISK_GB": 1})
    smaller = HostInventory(
        hostname="n", hypervisor_type="QEMU", hypervisor_version=1, vcpus=1, memory_mib=1024, local_gib=0,
        disk_available_gib=0, memory_free_mib=1,
    )
    await a_host(db, inventory=smaller)
    assert await used(db, provider) == {"VCPU": 8, "MEMORY_MB": 4096, "DISK_GB": 1}
    assert await claims(db, server, provider, {"VCPU": 8, "MEMORY_MB": 4096, "DISK_GB": 1})
    assert await claims(db, an_id(), provider, {"VCPU": 1}) is Claim.FULL
    with pytest.raises(InventoryInUse):
        await db.write(lambda connection: placement.set_inventories(connection, provider, {}))
    with pytest.raises(ProviderInUse):
        await db.write(lambda connection: placement.forget_host(connection, "h1"))


@pytest.mark.spec("API-751")
async def test_release_gives_all_back_and_may_be_repeated(db: Database) -> None:
    provider, server = await a_host(db), an_id()
    await claims(db, server, provider)
    assert await db.write(lambda connection: placement.release(connection, server))
    assert not await db.write(lambda connection: placement.release(connection, server))
    assert await used(db, provider) == {"VCPU": 0, "MEMORY_MB": 0, "DISK_GB": 0}
    assert await consumers(db) == set()


@pytest.mark.spec("BLD-70")
async def test_a_late_release_spares_the_claim_on_the_next_host(db: Database) -> None:
    first, second, server = await a_host(db, "h1"), await a_host(db, "h2"), an_id()
    await claims(db, server, first)
    await db.write(lambda connection: placement.release(connection, server, first))
    await claims(db, server, second)
    assert not await db.write(lambda connection: placement.release(connection, server, first))
    assert [holding.host for holding in await held(db, server)] == ["h2"]


@pytest.mark.spec("MIG-10", "MIG-16", "RSZ-28")
async def test_a_move_and_its_revert(db: Database) -> None:
    first, second, server, migration = await a_host(db, "h1"), await a_host(db, "h2"), an_id(), an_id()
    await claims(db, server, first)
    out = lambda connection: placement.move(connection, server, migration, target_type=placement.MIGRATION)  # noqa: E731
    back = lambda connection: placement.move(connection, migration, server)  # noqa: E731
    assert await db.write(out)
    assert not await db.write(out)
    assert await claims(db, server, second, {"VCPU": 2})
    assert [holding.host for holding in await held(db, migration)] == ["h1"]
    assert (await used(db, first))["VCPU"] == 1
    assert await db.write(back)
    assert [holding.host for holding in await held(db, server)] == ["h1"]
    assert await held(db, migration) == []
    assert (await used(db, second))["VCPU"] == 0
    assert not await db.write(back)
    assert [holding.host for holding in await held(db, server)] == ["h1"]
    assert await consumers(db) == {server}


async def test_parallel_claims_never_exceed_the_host(db: Database) -> None:
    provider = await a_host(db)  # 8192 MiB hold 10 of these
    verdicts = await asyncio.gather(*(claims(db, an_id(), provider, {"MEMORY_MB": 800}) for _ in range(40)))
    assert sum(map(bool, verdicts)) == 10
    assert (await used(db, provider))["MEMORY_MB"] == 8000


async def test_parallel_repeats_of_one_claim_count_once(db: Database) -> None:
    provider, server = await a_host(db), an_id()
    assert all(await asyncio.gather(*(claims(db, server, provider) for _ in range(16))))
    assert await used(db, provider) == {"VCPU": 1, "MEMORY_MB": 512, "DISK_GB": 10}


async def test_parallel_claims_releases_and_moves_leave_counters_right(db: Database) -> None:
    providers = [await a_host(db, f"h{n}") for n in range(3)]
    servers = [an_id() for _ in range(12)]

    async def live(server: str, turn: int) -> None:
        there, elsewhere = providers[turn % 3], providers[(turn + 1) % 3]
        migration = an_id()
        await claims(db, server, there)
        await db.write(lambda connection: placement.move(connection, server, migration))
        await claims(db, server, elsewhere, {"VCPU": 2, "MEMORY_MB": 100})
        if turn % 2:
            await db.write(lambda connection: placement.move(connection, migration, server))
        else:
            await db.write(lambda connection: placement.release(connection, migration))
        if turn % 3 == 0:
            await db.write(lambda connection: placement.release(connection, server))

    await asyncio.gather(*(live(server, turn) for turn, server in enumerate(servers)))
    totals = [await used(db, provider) for provider in providers]
    expected = {"VCPU": 0, "MEMORY_MB": 0}
    for turn in range(12):
        if turn % 3:
            expected["VCPU"] += 1 if turn % 2 else 2
            expected["MEMORY_MB"] += 512 if turn % 2 else 100
    assert {name: sum(total[name] for total in totals) for name in expected} == expected
    assert await consumers(db) == {server for turn, server in enumerate(servers) if turn % 3}


@pytest.mark.spec("BLD-11", "BLD-12", "BLD-15", "BLD-17")
async def test_of_parallel_members_that_must_part_as_many_stay_as_may(db: Database) -> None:
    members = tuple(an_id() for _ in range(8))
    provider = await a_host(db)
    for limit in (1, 3):
        group = ServerGroup(uuid=an_id(), policy=GroupPolicy.ANTI_AFFINITY, max_per_host=limit, members=members)
        verdicts = await asyncio.gather(*(claims(db, member, provider, group=group) for member in members))
        assert sorted(verdict.name for verdict in verdicts) == ["GROUP"] * (8 - limit) + ["HELD"] * limit
        again = [await claims(db, member, provider, group=group) for member in members]
        assert again == verdicts
        for member in members:
            await db.write(lambda connection, member=member: placement.release(connection, member))


@pytest.mark.spec("BLD-13", "BLD-18")
async def test_parallel_members_that_must_stay_together_meet_on_one_host(db: Database) -> None:
    hosts = [await a_host(db, f"h{n}") for n in range(4)]
    members = tuple(an_id() for _ in range(8))
    group = ServerGroup(uuid=an_id(), policy=GroupPolicy.AFFINITY, members=members)
    await asyncio.gather(*(
        claims(db, member, hosts[turn % 4], group=group) for turn, member in enumerate(members)
    ))
    where = [holding.host for member in members for holding in await held(db, member)]
    assert len(where) == 2
    assert len(set(where)) == 1


@pytest.mark.spec("BLD-11")
async def test_a_member_that_is_leaving_still_counts_on_its_old_host(db: Database) -> None:
    first, second = await a_host(db, "h1"), await a_host(db, "h2")
    leaving, other, migration = an_id(), an_id(), an_id()
    group = ServerGroup(uuid=an_id(), policy=GroupPolicy.ANTI_AFFINITY, members=(leaving, other))
    await claims(db, leaving, first, group=group)
    await db.write(lambda connection: placement.move(connection, leaving, migration, target_type=placement.MIGRATION))
    await claims(db, leaving, second, group=group)
    assert await claims(db, other, first, group=group) is Claim.GROUP
    assert await claims(db, leaving, first, group=group) is Claim.HELD


@pytest.mark.spec("BLD-14")
@pytest.mark.parametrize("policy", [GroupPolicy.SOFT_AFFINITY, GroupPolicy.SOFT_ANTI_AFFINITY])
async def test_soft_policies_never_refuse(db: Database, policy: GroupPolicy) -> None:
    providers = [await a_host(db, "h1"), await a_host(db, "h2")]
    members = tuple(an_id() for _ in range(4))
    group = ServerGroup(uuid=an_id(), policy=policy, members=members)
    for turn, member in enumerate(members):
        assert await claims(db, member, providers[turn // 2 % 2], group=group)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("claim"), st.integers(0, 4), st.integers(0, 2), st.integers(0, 9), st.integers(0, 5000)),
        st.tuples(st.just("release"), st.integers(0, 4), st.one_of(st.none(), st.integers(0, 2))),
        st.tuples(st.just("move"), st.integers(0, 4), st.integers(0, 4)),
        st.tuples(st.just("resize"), st.integers(0, 2), st.integers(1, 12)),
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS)
def test_any_history_agrees_with_the_ledger(steps: list[tuple]) -> None:  # type: ignore[type-arg]
    """Against a plain dictionary as the reference: same verdicts, same holdings, same counters."""
    asyncio.run(_replay(steps))


async def _replay(steps: list[tuple]) -> None:  # type: ignore[type-arg]
    db = Database.open("sqlite://")
    await db.write(lambda connection: api_metadata.create_all(connection, tables=TABLES))
    providers = [await a_host(db, f"h{n}") for n in range(3)]
    servers = [an_id() for _ in range(5)]
    capacity = {provider: {"VCPU": 32, "MEMORY_MB": 8192} for provider in providers}
    largest = dict.fromkeys(providers, 8)
    ledger: dict[str, dict[str, dict[str, int]]] = {server: {} for server in servers}
    for step in steps:
        if step[0] == "claim":
            server, provider = servers[step[1]], providers[step[2]]
            wanted = {name: n for name, n in (("VCPU", step[3]), ("MEMORY_MB", step[4])) if n}
            before = ledger[server].get(provider, {})
            others = {name: sum(held.get(provider, {}).get(name, 0) for other, held in ledger.items()
                                if other != server) for name in wanted}
            possible = wanted.get("VCPU", 0) <= largest[provider] and all(
                n <= before.get(name, 0) or others[name] + n <= capacity[provider][name]
                for name, n in wanted.items()
            )
            possible = possible or wanted == before
            assert bool(await claims(db, server, provider, wanted)) == possible, step
            if possible:
                ledger[server].pop(provider, None)
                if wanted:
                    ledger[server][provider] = wanted
        elif step[0] == "release":
            server, only = servers[step[1]], None if step[2] is None else providers[step[2]]
            anything = bool(ledger[server]) if only is None else only in ledger[server]
            assert anything == await db.write(lambda c, s=server, o=only: placement.release(c, s, o))
            ledger[server] = {} if only is None else {p: h for p, h in ledger[server].items() if p != only}
        elif step[0] == "move":
            source, target = servers[step[1]], servers[step[2]]
            moves = source != target and bool(ledger[source])
            assert moves == await db.write(lambda c, s=source, t=target: placement.move(c, s, t))
            if moves:
                ledger[target], ledger[source] = ledger[source], {}
        else:
            provider, vcpus = providers[step[1]], step[2]
            new = HostInventory(
                hostname="n", hypervisor_type="QEMU", hypervisor_version=1, vcpus=vcpus, memory_mib=8704,
                local_gib=100, disk_available_gib=1, memory_free_mib=1,
            )
            await a_host(db, f"h{step[1]}", new)
            capacity[provider]["VCPU"], largest[provider] = vcpus * 4, vcpus
        for server in servers:
            assert {h.provider: h.resources for h in await held(db, server)} == ledger[server]
        for provider in providers:
            counters = await used(db, provider)
            for name in ("VCPU", "MEMORY_MB"):
                assert counters[name] == sum(h.get(provider, {}).get(name, 0) for h in ledger.values())
    assert await consumers(db) == {server for server in servers if ledger[server]}
    await db.close()
