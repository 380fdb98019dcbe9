"""Claims of groups of resources on the providers below a host, on both databases."""

from __future__ import annotations

import uuid

import msgspec
import pytest
import sqlalchemy as sa
from placement_databases import placement_db

from kilonova.db import placement
from kilonova.db.database import Database
from kilonova.db.placement import Claim, Inventory, tables
from kilonova.db.placement.changes import HostRow, read_changes
from kilonova.db.placement.guarantees import provider_of_network
from kilonova.db.placement.port_claims import add_group, drop_group
from kilonova.db.placement.providers import inventories_of, traits_of
from kilonova.db.placement.replacement import ConsumerWrite, replace_allocations
from kilonova.db.placement.trees import groups_held
from kilonova.domain.network import BANDWIDTH_CLASSES, PACKET_RATE_CLASSES, PACKET_RATE_TRAITS, bandwidth_traits
from kilonova.hypervisor.guest import HostInventory, NetworkBandwidth, PacketRate
from kilonova.shapes.trees import ResourceGroup

__all__ = ["placement_db"]

EGRESS, INGRESS = BANDWIDTH_CLASSES["egress"], BANDWIDTH_CLASSES["ingress"]
BW = EGRESS
INVENTORY = HostInventory(
    hostname="h1", hypervisor_type="QEMU", hypervisor_version=7002022, vcpus=8, memory_mib=8704, local_gib=100,
    disk_available_gib=90, memory_free_mib=8000,
)


def an_id() -> str:
    return str(uuid.uuid4())


def group(suffix: str, amount: int) -> ResourceGroup:
    return ResourceGroup(suffix=suffix, resources={BW: amount}, required=frozenset({"CUSTOM_NET"}))


async def a_host(db: Database, *below: int) -> tuple[str, list[str]]:
    """A host with that much bandwidth on each of its interfaces."""
    children = [an_id() for _ in below]

    def unit(conn: sa.Connection) -> str:
        root = placement.report(conn, "h1", "h1", INVENTORY, now=1.0)
        for child, amount in zip(children, below, strict=True):
            placement.create_provider(conn, child, f"h1:{child}", parent=root, now=1.0)
            placement.set_inventories(conn, child, {BW: Inventory(total=amount)})
            placement.set_traits(conn, child, {"CUSTOM_NET"})
        return root

    return await db.write(unit), children


async def claim(
    db: Database, consumer: str, root: str, *groups: ResourceGroup, isolate: bool = False, vcpus: int = 1
) -> Claim:
    return await db.write(lambda conn: placement.claim(
        conn, consumer, root, {"VCPU": vcpus}, "p", "u", groups=groups, isolate=isolate
    ))


async def held(db: Database, consumer: str) -> dict[str, dict[str, int]]:
    found = await db.read(lambda conn: placement.holdings(conn, consumer))
    return {holding.provider: holding.resources for holding in found}


async def served(db: Database, consumer: str) -> dict[str, tuple[str, dict[str, int]]]:
    found = await db.read(lambda conn: groups_held(conn, consumer))
    return {suffix: (one.provider, one.resources) for suffix, one in found.items()}


async def used(db: Database, provider: str) -> dict[str, int]:
    def read(conn: sa.Connection) -> dict[str, int]:
        id_ = placement.find_provider(conn, provider).id
        query = sa.select(tables.inventories).where(tables.inventories.c.provider_id == id_)
        return {row.resource_class: row.used for row in conn.execute(query) if row.used}

    return await db.read(read)


async def test_a_claim_takes_of_the_host_and_of_those_below_it(db: Database) -> None:
    root, (one, two) = await a_host(db, 500, 800)
    server = an_id()
    for _ in range(2):
        assert await claim(db, server, root, group("a", 600), group("b", 400))
        assert await held(db, server) == {root: {"VCPU": 1}, two: {BW: 600}, one: {BW: 400}}
        assert await served(db, server) == {"a": (two, {BW: 600}), "b": (one, {BW: 400})}
        assert (await used(db, one), await used(db, two)) == ({BW: 400}, {BW: 600})
    assert await db.write(lambda conn: placement.release(conn, server, root))
    assert (await held(db, server), await served(db, server)) == ({}, {})
    assert (await used(db, one), await used(db, two), await used(db, root)) == ({}, {}, {})


@pytest.mark.parametrize(("groups", "isolate"), [
    ((group("a", 900),), False), ((group("a", 500), group("b", 500), group("c", 400)), False),
    ((group("a", 1), group("b", 1), group("c", 1)), True),
    ((ResourceGroup(suffix="a", resources={BW: 1}, required=frozenset({"CUSTOM_OTHER"})),), False),
])
async def test_a_claim_that_does_not_fit_leaves_no_trace(
    db: Database, groups: tuple[ResourceGroup, ...], isolate: bool
) -> None:
    root, children = await a_host(db, 500, 800)
    server = an_id()
    assert await claim(db, server, root, *groups, isolate=isolate) is Claim.FULL
    assert await claim(db, server, root, group("a", 1), vcpus=1000) is Claim.FULL
    assert (await held(db, server), await served(db, server)) == ({}, {})
    assert [await used(db, provider) for provider in (root, *children)] == [{}, {}, {}]


async def test_who_serves_a_group_goes_on_serving_it(db: Database) -> None:
    root, (one, two) = await a_host(db, 500, 500)
    first, second = an_id(), an_id()
    assert await claim(db, first, root, group("a", 300))
    assert await claim(db, second, root, group("a", 300))
    assert (await served(db, second))["a"][0] == two
    assert await db.write(lambda conn: placement.release(conn, first))
    assert await claim(db, second, root, group("a", 300), group("b", 100))
    assert await served(db, second) == {"a": (two, {BW: 300}), "b": (one, {BW: 100})}
    assert await claim(db, second, root, group("b", 100))
    assert await held(db, second) == {root: {"VCPU": 1}, one: {BW: 100}}
    assert (await used(db, one), await used(db, two)) == ({BW: 100}, {})


async def test_a_class_that_only_a_provider_below_has_comes_of_that(db: Database) -> None:
    root, (one,) = await a_host(db, 500)
    server = an_id()
    wanted = {"VCPU": 1, BW: 5}
    assert await db.write(lambda conn: placement.claim(conn, server, root, wanted, "p", "u"))
    assert await held(db, server) == {root: {"VCPU": 1}, one: {BW: 5}}


async def test_a_migration_holds_the_groups_that_it_was_given(db: Database) -> None:
    root, (one, two) = await a_host(db, 500, 500)
    server, migration = an_id(), an_id()
    assert await claim(db, server, root, group("a", 300))
    assert await db.write(lambda conn: placement.move(conn, server, migration, target_type=placement.MIGRATION))
    assert await claim(db, server, root, group("a", 300))
    assert (await served(db, migration), await served(db, server)) == (
        {"a": (one, {BW: 300})}, {"a": (two, {BW: 300})})
    assert await db.write(lambda conn: placement.move(conn, migration, server))
    assert await served(db, server) == {"a": (one, {BW: 300})}
    assert (await used(db, one), await used(db, two)) == ({BW: 300}, {})


async def test_allocations_that_are_replaced_forget_who_served_them(db: Database) -> None:
    root, _ = await a_host(db, 500)
    server = an_id()
    assert await claim(db, server, root, group("a", 300))
    write = ConsumerWrite(uuid=server, project_id="p", user_id="u", type="INSTANCE", holds={root: {"VCPU": 2}})
    await db.write(lambda conn: replace_allocations(conn, [write]))
    assert await served(db, server) == {}


async def test_readers_of_changes_see_what_happens_below_a_host(db: Database) -> None:
    root, (one,) = await a_host(db, 500)
    since = 0

    async def changed() -> list[HostRow]:
        nonlocal since
        found = await db.read(lambda conn: read_changes(conn, since))
        since = found.before
        return found.hosts

    (row,) = await changed()
    assert [(b.provider, dict(b.offers), b.traits) for b in row.below] == [
        (one, {BW: (500, 0, 1, 2**31 - 1, 1)}, frozenset({"CUSTOM_NET"}))]
    assert BW not in row.offers
    assert await changed() == []
    await db.write(lambda conn: placement.set_inventories(conn, one, {BW: Inventory(total=7)}))
    (row,) = await changed()
    assert row.below[0].offers[BW][0] == 7
    await db.write(lambda conn: placement.delete_provider(conn, one))
    (row,) = await changed()
    assert row.below == ()
    assert await changed() == []
    assert row.provider == root


async def test_a_group_is_added_to_what_is_held_and_taken_from_it_again(db: Database) -> None:
    root, (one, two) = await a_host(db, 500, 500)
    server = an_id()
    assert await db.write(lambda conn: add_group(conn, server, "h1", group("p", 300))) is None
    assert await claim(db, server, root, group("a", 300))
    for _ in range(2):
        assert await db.write(lambda conn: add_group(conn, server, "h1", group("p", 300))) == two
    assert await db.write(lambda conn: add_group(conn, server, "h1", group("q", 200))) == one
    assert await db.write(lambda conn: add_group(conn, server, "h1", group("r", 300))) is None
    assert await db.write(lambda conn: add_group(conn, server, "nowhere", group("r", 1))) is None
    assert await held(db, server) == {root: {"VCPU": 1}, one: {BW: 500}, two: {BW: 300}}
    for _ in range(2):
        await db.write(lambda conn: drop_group(conn, server, "p"))
        await db.write(lambda conn: drop_group(conn, server, "q"))
        assert await held(db, server) == {root: {"VCPU": 1}, one: {BW: 300}}
    assert (await used(db, one), await used(db, two)) == ({BW: 300}, {})
    assert await served(db, server) == {"a": (one, {BW: 300})}


@pytest.mark.spec("EMP-05", "EMP-08")
async def test_what_a_hosts_network_carries_is_a_provider_below_it(db: Database) -> None:
    async def report(egress: int, ingress: int) -> dict[str, int]:
        carries = NetworkBandwidth(egress_kbps=egress, ingress_kbps=ingress)
        inventory = msgspec.structs.replace(INVENTORY, bandwidths=(carries,))

        def unit(conn: sa.Connection) -> dict[str, int]:
            below = provider_of_network(placement.report(conn, "h1", "h1", inventory, now=1.0))
            known = conn.execute(sa.select(tables.providers.c.id).where(tables.providers.c.uuid == below)).scalar()
            return {} if known is None else {n: one.total for n, one in inventories_of(conn, known).items()}

        return await db.write(unit)

    root, _ = await a_host(db)
    assert await report(0, 0) == {}
    for _ in range(2):
        assert await report(1000, 2000) == {EGRESS: 1000, INGRESS: 2000}
    server = an_id()
    wanted = ResourceGroup(suffix="p", resources={EGRESS: 300}, required=frozenset({"CUSTOM_VNIC_TYPE_NORMAL"}))
    assert await claim(db, server, root, wanted)
    assert await report(0, 0) == {EGRESS: 1000, INGRESS: 2000}  # a port holds something of it
    assert await report(0, 500) == {EGRESS: 300, INGRESS: 500}
    assert await db.write(lambda conn: placement.release(conn, server))
    assert await report(0, 0) == {}
    assert await report(700, 0) == {EGRESS: 700}
    await db.write(lambda conn: placement.forget_host(conn, "h1"))
    assert await db.read(lambda conn: conn.execute(sa.select(tables.providers)).all()) == []


@pytest.mark.spec("EMP-05")
async def test_each_physical_network_of_a_host_is_a_provider_of_its_own(db: Database) -> None:
    async def report(**kbps: int) -> dict[str, tuple[dict[str, int], set[str]]]:
        inventory = msgspec.structs.replace(INVENTORY, bandwidths=tuple(
            NetworkBandwidth(physical_network=name.removeprefix("local"), egress_kbps=amount, ingress_kbps=0)
            for name, amount in kbps.items()
        ))

        def unit(conn: sa.Connection) -> dict[str, tuple[dict[str, int], set[str]]]:
            placement.report(conn, "h1", "h1", inventory, now=1.0)
            rows = conn.execute(sa.select(tables.providers).where(tables.providers.c.parent_id.is_not(None))).all()
            return {row.name: ({n: one.total for n, one in inventories_of(conn, row.id).items()},
                               set(traits_of(conn, row.id))) for row in rows}

        return await db.write(unit)

    root, _ = await a_host(db)
    normal, one, other = "CUSTOM_VNIC_TYPE_NORMAL", "CUSTOM_PHYSNET_PHYSNET0", "CUSTOM_PHYSNET_PHYSNET_1"
    assert await report(**{"local": 10, "physnet0": 1000, "physnet-1": 2000}) == {
        "h1:network": ({EGRESS: 10}, {normal, "CUSTOM_NETWORK_LOCAL_PROVIDER"}),
        "h1:network:physnet0": ({EGRESS: 1000}, {normal, one}),
        "h1:network:physnet-1": ({EGRESS: 2000}, {normal, other}),
    }
    servers = [an_id() for _ in range(3)]

    def wanted(name: str, kbps: int) -> ResourceGroup:
        return ResourceGroup(suffix="p", resources={EGRESS: kbps}, required=frozenset(bandwidth_traits(name)))

    assert await claim(db, servers[0], root, wanted("physnet0", 900))
    assert await held(db, servers[0]) == {
        root: {"VCPU": 1}, provider_of_network(root, "physnet0"): {EGRESS: 900}
    }
    # Another network has it, these have not.
    for full in (wanted("physnet0", 200), wanted("", 200)):
        assert await claim(db, servers[1], root, full) is Claim.FULL
    assert await claim(db, servers[1], root, wanted("physnet-1", 200))
    assert set(await report(local=10)) == {"h1:network", "h1:network:physnet0", "h1:network:physnet-1"}
    for server in servers:
        await db.write(lambda conn, server=server: placement.release(conn, server))
    assert set(await report(local=10)) == {"h1:network"}
    await report(physnet0=5)
    await db.write(lambda conn: placement.forget_host(conn, "h1"))
    assert await db.read(lambda conn: conn.execute(sa.select(tables.providers)).all()) == []


@pytest.mark.spec("EMP-05", "EMP-08")
async def test_the_packet_rate_of_a_host_is_above_its_physical_networks(db: Database) -> None:
    """So what serves a port is one subtree."""
    async def report(rate: PacketRate, **kbps: int) -> dict[str, tuple[str, dict[str, int]]]:
        inventory = msgspec.structs.replace(INVENTORY, packet_rate=rate, bandwidths=tuple(
            NetworkBandwidth(physical_network=name, egress_kbps=amount, ingress_kbps=0)
            for name, amount in kbps.items()
        ))

        def unit(conn: sa.Connection) -> dict[str, tuple[str, dict[str, int]]]:
            placement.report(conn, "h1", "h1", inventory, now=1.0)
            rows = {row.id: row for row in conn.execute(sa.select(tables.providers))}
            return {row.name: (rows[row.parent_id].name, {n: i.total for n, i in inventories_of(conn, row.id).items()})
                    for row in rows.values() if row.parent_id is not None}

        return await db.write(unit)

    root, _ = await a_host(db)
    any_, egress, ingress = (PACKET_RATE_CLASSES[way] for way in ("any", "egress", "ingress"))
    for _ in range(2):
        assert await report(PacketRate(kpps=50), physnet0=1000) == {
            "h1:network": ("h1", {any_: 50}), "h1:network:physnet0": ("h1:network", {EGRESS: 1000})}
    server = an_id()
    groups = (
        ResourceGroup(suffix="b", resources={EGRESS: 9}, required=frozenset(bandwidth_traits("physnet0"))),
        ResourceGroup(suffix="p", resources={any_: 30}, required=frozenset(PACKET_RATE_TRAITS)),
    )
    assert await claim(db, server, root, *groups)
    assert await held(db, server) == {
        root: {"VCPU": 1}, provider_of_network(root): {any_: 30}, provider_of_network(root, "physnet0"): {EGRESS: 9}}
    assert await claim(db, an_id(), root, *groups) is Claim.FULL
    assert await report(PacketRate(egress_kpps=7, ingress_kpps=8)) == {  # ports hold something of the others
        "h1:network": ("h1", {any_: 30, egress: 7, ingress: 8}),
        "h1:network:physnet0": ("h1:network", {EGRESS: 1000})}
    assert set(await report(PacketRate())) == {"h1:network", "h1:network:physnet0"}
    assert await db.write(lambda conn: placement.release(conn, server))
    assert await report(PacketRate(), physnet0=5) == {
        "h1:network": ("h1", {}), "h1:network:physnet0": ("h1:network", {EGRESS: 5})}
    assert await report(PacketRate()) == {}
