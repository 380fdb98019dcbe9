"""Hosts in placement: reports, status, aggregates, and how readers learn of changes, on both databases."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
import sqlalchemy as sa
from placement_databases import placement_db

from kilonova.db import placement
from kilonova.db.database import Database
from kilonova.db.placement import HostSettings, Inventory, hosts, search, tables
from kilonova.db.placement.changes import Changes, read_changes
from kilonova.db.placement.errors import ConcurrentUpdate, DuplicateName
from kilonova.hypervisor.guest import HostInventory

__all__ = ["placement_db"]

DISABLED = "COMPUTE_STATUS_DISABLED"


def inventory(**changes: Any) -> HostInventory:
    fields: dict[str, Any] = {
        "hostname": "n", "hypervisor_type": "QEMU", "hypervisor_version": 7002022, "vcpus": 8, "memory_mib": 8704,
        "local_gib": 100, "disk_available_gib": 90, "memory_free_mib": 8000, "traits": ("HW_A", "HW_B"),
    }
    return HostInventory(**{**fields, **changes})


async def reported(db: Database, host: str = "h1", now: float = 1.0, node: str | None = None, **changes: Any) -> str:
    settings = changes.pop("settings", HostSettings())
    return await db.write(lambda connection: placement.report(
        connection, host, node or host, inventory(**changes), now=now, settings=settings
    ))


async def offers(db: Database, uuid_: str) -> dict[str, Inventory]:
    return await db.read(lambda c: search.inventories_of(c, placement.find_provider(c, uuid_).id))


async def traits(db: Database, uuid_: str) -> set[str]:
    return await db.read(lambda c: set(search.traits_of_provider(c, placement.find_provider(c, uuid_).id)))


async def generation(db: Database, uuid_: str) -> int:
    return await db.read(lambda c: placement.find_provider(c, uuid_).generation)


@pytest.mark.spec("EMP-04")
async def test_a_report_makes_the_provider(db: Database) -> None:
    host = await reported(db, node="node-1")
    found = await db.read(lambda c: placement.find_provider(c, host))
    assert (found.name, found.parent, found.root) == ("node-1", None, host)
    assert await offers(db, host) == {
        "VCPU": Inventory(total=8, max_unit=8, allocation_ratio=4.0),
        "MEMORY_MB": Inventory(total=8704, reserved=512, max_unit=8704),
        "DISK_GB": Inventory(total=100, max_unit=100),
    }
    assert await traits(db, host) == {"HW_A", "HW_B"}
    with pytest.raises(DuplicateName):
        await reported(db, "h2", node="node-1")


async def test_a_repeated_report_changes_nothing_but_the_sign_of_life(db: Database) -> None:
    host = await reported(db)
    before = await generation(db, host)
    changes = await db.read(lambda c: read_changes(c, 0))
    assert await reported(db, now=2.0) == host
    assert await generation(db, host) == before
    after = await db.read(lambda c: read_changes(c, changes.before))
    assert [seen_at for _, seen_at in after.seen] == [2.0]


@pytest.mark.spec("EMP-05", "FND-48")
async def test_a_report_leaves_what_others_have_set(db: Database) -> None:
    host, child = await reported(db), str(uuid.uuid4())

    def others(connection: sa.Connection) -> None:
        provider = placement.find_provider(connection, host)
        mine = search.inventories_of(connection, provider.id)
        mine["CUSTOM_GOLD"] = Inventory(total=5)
        mine["VCPU"] = Inventory(total=8, max_unit=8, allocation_ratio=2.0)
        placement.set_inventories(connection, host, mine)
        placement.set_traits(connection, host, {"HW_A", "HW_B", "CUSTOM_SSD", DISABLED})
        placement.create_provider(connection, child, "eth0", parent=host, now=1.0)
        placement.set_inventories(connection, child, {"NET_BW_IGR_KILOBIT_PER_SEC": Inventory(total=9)})

    await db.write(others)
    await reported(db, vcpus=16, traits=("HW_B", "HW_C"))
    now = await offers(db, host)
    assert now["VCPU"] == Inventory(total=16, max_unit=16, allocation_ratio=2.0)
    assert now["CUSTOM_GOLD"] == Inventory(total=5)
    assert await traits(db, host) == {"HW_B", "HW_C", "CUSTOM_SSD", DISABLED}
    assert set(await offers(db, child)) == {"NET_BW_IGR_KILOBIT_PER_SEC"}


async def test_what_is_kept_back(db: Database) -> None:
    settings = HostSettings(reserved_host_cpus=1, reserved_host_memory_mb=10_000, reserved_host_disk_mb=1025,
                            initial_cpu_allocation_ratio=1.0)
    found = await offers(db, await reported(db, settings=settings))
    assert (found["VCPU"].capacity, found["MEMORY_MB"].capacity, found["DISK_GB"].capacity) == (7, 0, 98)


@pytest.mark.spec("FND-43", "FND-44", "FND-45", "FND-46", "FND-48", "HST-07")
async def test_the_status_of_a_host_is_a_trait_of_each_node(db: Database) -> None:
    nodes = [await reported(db, node="n1"), await reported(db, node="n2")]
    for disabled in (True, True, False, False):
        before = [await generation(db, node) for node in nodes]
        changes = [(DISABLED in await traits(db, node)) is not disabled for node in nodes]
        await db.write(lambda c, disabled=disabled: placement.publish_status(c, "h1", disabled=disabled))
        for node, was, change in zip(nodes, before, changes, strict=True):
            assert await traits(db, node) == {"HW_A", "HW_B"} | ({DISABLED} if disabled else set())
            assert await generation(db, node) == was + change


class Meddler:
    """Changes the provider between reading and writing its traits, so many times."""

    def __init__(self, times: int) -> None:
        self.left = times

    def __call__(self, connection: sa.Connection, uuid_: str) -> Any:
        found = placement.find_provider(connection, uuid_)
        if self.left:
            self.left -= 1
            traits_now = set(search.traits_of_provider(connection, found.id))
            placement.set_traits(connection, uuid_, traits_now | {f"CUSTOM_{self.left}"})
        return found


@pytest.mark.spec("FND-47", "FND-49")
async def test_the_status_is_written_anew_when_others_interfere(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    host = await reported(db)
    monkeypatch.setattr(hosts, "find_provider", Meddler(2))
    await db.write(lambda c: placement.publish_status(c, "h1", disabled=True))
    assert await traits(db, host) == {"HW_A", "HW_B", DISABLED, "CUSTOM_0", "CUSTOM_1"}
    monkeypatch.setattr(hosts, "find_provider", Meddler(100))
    with pytest.raises(ConcurrentUpdate):
        await db.write(lambda c: placement.publish_status(c, "h1", disabled=False))


async def test_aggregates_take_all_nodes_of_a_host(db: Database) -> None:
    nodes, aggregate = [await reported(db, node="n1"), await reported(db, node="n2")], str(uuid.uuid4())
    await reported(db, "h2")
    await db.write(lambda c: placement.join_aggregate(c, "h1", aggregate))
    query = search.ProviderQuery(member_of=[frozenset({aggregate})])
    assert [p.uuid for p in await db.read(lambda c: search.find_providers(c, query))] == nodes
    await db.write(lambda c: placement.leave_aggregate(c, "h1", aggregate))
    assert await db.read(lambda c: search.find_providers(c, query)) == []


# --- Changes ---------------------------------------------------------------------------------------


async def test_readers_see_each_change_once_and_whole(db: Database) -> None:
    one, two = await reported(db), await reported(db, "h2")
    server = str(uuid.uuid4())
    state = await db.read(lambda c: read_changes(c, 0))
    assert {row.provider for row in state.hosts} == {one, two}
    assert state.hosts[0].offers["VCPU"] == (32, 0, 1, 8, 1)
    assert state.hosts[0].traits == {"HW_A", "HW_B"}

    async def next_change() -> Changes:
        nonlocal state
        state = await db.read(lambda c: read_changes(c, state.before))
        return state

    assert (await next_change()).hosts == []
    await db.write(lambda c: placement.claim(c, server, two, {"VCPU": 2}, "p", "u"))
    (row,) = (await next_change()).hosts
    assert (row.host, row.offers["VCPU"][1], row.instances) == ("h2", 2, 1)
    steps: list[tuple[Any, Any, Any]] = [
        (lambda c: placement.release(c, server), lambda row: row.instances, 0),
        (lambda c: placement.publish_status(c, "h2", disabled=True), lambda row: DISABLED in row.traits, True),
        (lambda c: placement.join_aggregate(c, "h2", "a" * 36), lambda row: row.aggregates, {"a" * 36}),
        (lambda c: placement.count_build(c, "h2", "h2", failed=True), lambda row: row.failed_builds, 1),
        (lambda c: placement.count_build(c, "h2", "h2", failed=True), lambda row: row.failed_builds, 2),
        (lambda c: placement.count_build(c, "h2", "h2", failed=False), lambda row: row.failed_builds, 0),
        (lambda c: placement.set_io_ops(c, "h2", "h2", 3), lambda row: row.io_ops, 3),
    ]
    for step, read, expected in steps:
        await db.write(step)
        (row,) = (await next_change()).hosts
        assert (row.host, read(row)) == ("h2", expected)
        assert (await next_change()).hosts == []
    await db.write(lambda c: placement.forget_host(c, "h2"))
    assert len((await next_change()).gone) == 1
    assert (await next_change()).gone == []
    await reported(db, "h3")
    assert [row.host for row in (await next_change()).hosts] == ["h3"]


async def test_a_report_does_not_end_that_a_host_is_kept_off(db: Database) -> None:
    """Neither one that says the trait itself and later no more, nor one of another node."""
    node = await reported(db)
    await db.write(lambda c: placement.publish_status(c, "h1", disabled=True))
    for now, said in enumerate((("HW_A",), ("HW_A", DISABLED), ("HW_A",), ()), 2):
        await reported(db, now=float(now), traits=said)
        await db.write(lambda c, now=now: placement.heartbeat(c, "h1", now + 0.5))
        assert await traits(db, node) == {DISABLED, *said}
    other = await reported(db, node="another", now=9.0)
    assert await traits(db, other) == {DISABLED, "HW_A", "HW_B"}
    await db.write(lambda c: placement.publish_status(c, "h1", disabled=False))
    assert DISABLED not in await traits(db, node) | await traits(db, other)
    assert DISABLED not in await traits(db, await reported(db, "h2", traits=(DISABLED,)))


async def test_signs_of_life_and_their_end(db: Database) -> None:
    await reported(db)
    state = await db.read(lambda c: read_changes(c, 0))
    for step, expected in (
        (lambda c: placement.heartbeat(c, "h1", 5.0), [5.0]), (lambda c: placement.mark_down(c, "h1"), [0.0]),
        (lambda c: placement.heartbeat(c, "unknown", 5.0), []),
    ):
        await db.write(step)
        state = await db.read(lambda c, since=state.before: read_changes(c, since))
        assert ([seen_at for _, seen_at in state.seen], state.hosts) == (expected, [])


async def test_a_change_that_commits_late_is_not_missed(postgres_url: str) -> None:
    """Two transactions that overlap commit in the other order; a reader comes between."""
    db = Database.open(postgres_url)
    await db.write(lambda connection: tables.api_metadata.create_all(connection))
    slow_host, quick_host = await reported(db, "slow"), await reported(db, "quick")
    state = await db.read(lambda c: read_changes(c, 0))
    with db.engine.connect() as slow:
        placement.claim(slow, str(uuid.uuid4()), slow_host, {"VCPU": 1}, "p", "u")
        await db.write(lambda c: placement.claim(c, str(uuid.uuid4()), quick_host, {"VCPU": 1}, "p", "u"))
        state = await db.read(lambda c: read_changes(c, state.before))
        assert [row.host for row in state.hosts] == ["quick"]
        slow.commit()
    state = await db.read(lambda c: read_changes(c, state.before))
    assert "slow" in {row.host for row in state.hosts}
    await db.close()
