"""Places on hosts, on both databases: decided with the claim, moved and given back with it, never given twice."""

from __future__ import annotations

import asyncio
import uuid

import msgspec
from host_devices import GPU_CLASS, GPUS, SPECS, with_devices
from placement_databases import placement_db

from kilonova.db import placement
from kilonova.db.database import Database
from kilonova.db.placement import Claim
from kilonova.db.placement.changes import read_changes
from kilonova.db.placement.layouts import layout_of, read_layouts, read_topology
from kilonova.db.placement.replacement import ConsumerWrite, replace_allocations
from kilonova.domain.flavor import Flavor
from kilonova.hypervisor.guest import HostInventory
from kilonova.shapes.host import HostCell, HostTopology, Layout
from kilonova.shapes.pci_requests import offered
from kilonova.shapes.shape import Shape, shape_of

__all__ = ["placement_db"]

TOPOLOGY = HostTopology(cells=(HostCell(id=0, memory_mib=8192, dedicated=(2, 3, 4, 5), shared=(0, 1)),))
INVENTORY = HostInventory(
    hostname="n", hypervisor_type="QEMU", hypervisor_version=7002022, vcpus=2, pcpus=4, memory_mib=8704, local_gib=100,
    disk_available_gib=90, memory_free_mib=8000, topology=TOPOLOGY,
)
PINNED = {"PCPU": 2, "MEMORY_MB": 512}


def shape(vcpus: int = 2) -> Shape:
    return shape_of(Flavor(flavor_id="1", name="f", vcpus=vcpus, memory_mib=512, root_gib=1,
                           extra_specs={"hw:cpu_policy": "dedicated"}), None)


def an_id() -> str:
    return str(uuid.uuid4())


async def a_host(db: Database, inventory: HostInventory = INVENTORY) -> str:
    return await db.write(lambda conn: placement.report(conn, "h1", "h1", inventory, now=1.0))


async def test_devices_are_claimed_once_and_counted(db: Database) -> None:
    topology = HostTopology((), offered(GPUS[:2], SPECS))
    wanted = shape_of(with_devices(Flavor(flavor_id="1", name="f", vcpus=1, memory_mib=512, root_gib=1), "gpu:1"), None)

    async def report(host: str, found: HostTopology) -> str:
        inventory = msgspec.structs.replace(INVENTORY, hostname=host, topology=found)
        return await db.write(lambda conn: placement.report(conn, host, host, inventory, now=1.0))

    provider, _ = await asyncio.gather(report("h1", topology), report("h2", topology))
    consumers = [an_id() for _ in range(3)]
    outcomes = await asyncio.gather(*(claims(db, one, provider, {"MEMORY_MB": 512}, wanted) for one in consumers))
    assert sorted(outcome.name for outcome in outcomes) == ["HELD", "HELD", "UNFIT"]
    held = dict(zip(consumers, outcomes, strict=True))
    served = [one for one in consumers if held[one]]
    places = [await layout(db, one) for one in served]
    assert len({device.address for place in places if place is not None for device in place.devices}) == 2
    assert await claims(db, served[0], provider, {"MEMORY_MB": 512}, wanted) is Claim.HELD
    assert await layout(db, served[0]) == places[0]

    async def resources(consumer: str) -> dict[str, int]:
        found = await db.read(lambda conn: placement.holdings(conn, consumer))
        return {name: amount for holding in found for name, amount in holding.resources.items()}

    assert await resources(served[0]) == {"MEMORY_MB": 512, GPU_CLASS: 1}
    await report("h1", HostTopology(()))
    assert await resources(served[1]) == {"MEMORY_MB": 512, GPU_CLASS: 1}
    for one in served:
        await db.write(lambda conn, one=one: placement.release(conn, one))
    assert await claims(db, an_id(), provider, {"MEMORY_MB": 512}, wanted) is Claim.UNFIT
    await report("h1", topology)
    assert await claims(db, an_id(), provider, {"MEMORY_MB": 512}, wanted) is Claim.HELD


async def claims(
    db: Database, consumer: str, provider: str, resources: dict[str, int] = PINNED, wanted: Shape | None = None
) -> Claim:
    return await db.write(lambda conn: placement.claim(
        conn, consumer, provider, resources, "project", "user", shape=wanted or shape()
    ))


async def layout(db: Database, consumer: str) -> Layout | None:
    return await db.read(lambda conn: layout_of(conn, consumer, "h1"))


async def cpus(db: Database, consumer: str) -> set[int]:
    found = await layout(db, consumer)
    return set(found.taken()) if found is not None else set()


async def test_claims_get_cpus_of_their_own(db: Database) -> None:
    provider, first, second, third = await a_host(db), an_id(), an_id(), an_id()
    assert await claims(db, first, provider) is Claim.HELD
    before = await layout(db, first)
    assert await claims(db, first, provider) is Claim.HELD
    assert await layout(db, first) == before
    assert await claims(db, second, provider) is Claim.HELD
    assert await cpus(db, first) | await cpus(db, second) == {2, 3, 4, 5}
    assert await claims(db, third, provider) is Claim.FULL
    await db.write(lambda conn: placement.release(conn, first))
    assert await layout(db, first) is None
    assert await claims(db, third, provider) is Claim.HELD
    assert await cpus(db, third) == {2, 3}


async def test_a_claim_without_a_place_is_refused_and_leaves_no_trace(db: Database) -> None:
    """The amounts would fit, but not the place: what counts CPUs cannot see which."""
    provider, first, second = await a_host(db), an_id(), an_id()
    assert await claims(db, first, provider) is Claim.HELD
    before = await layout(db, first)
    assert await claims(db, second, provider, {"PCPU": 1, "MEMORY_MB": 512}, shape(4)) is Claim.UNFIT
    assert await claims(db, first, provider, {"PCPU": 1, "MEMORY_MB": 512}, shape(5)) is Claim.UNFIT
    assert await layout(db, first) == before
    assert await db.read(lambda conn: placement.holdings(conn, second)) == []
    held = await db.read(lambda conn: placement.holdings(conn, first))
    assert [holding.resources for holding in held] == [PINNED]


async def test_a_place_goes_to_the_migration_and_back(db: Database) -> None:
    provider, server, migration = await a_host(db), an_id(), an_id()
    await claims(db, server, provider)
    old = await layout(db, server)
    await db.write(lambda conn: placement.move(conn, server, migration, target_type=placement.MIGRATION))
    assert (await layout(db, migration), await layout(db, server)) == (old, None)
    assert await claims(db, server, provider) is Claim.HELD
    assert not await cpus(db, server) & await cpus(db, migration)
    await db.write(lambda conn: placement.move(conn, migration, server))
    assert (await layout(db, server), await layout(db, migration)) == (old, None)


async def test_claims_at_the_same_time_never_share_a_cpu(db: Database) -> None:
    provider = await a_host(db, msgspec.structs.replace(INVENTORY, pcpus=100))
    servers = [an_id() for _ in range(6)]
    outcomes = await asyncio.gather(*(claims(db, server, provider) for server in servers))
    assert sorted(outcome.name for outcome in outcomes) == ["HELD"] * 2 + ["UNFIT"] * 4
    held = [await cpus(db, server) for server in servers]
    assert sorted(cpu for one in held for cpu in one) == [2, 3, 4, 5]


async def test_what_placement_clients_take_away_is_free_again(db: Database) -> None:
    provider, server = await a_host(db), an_id()
    await claims(db, server, provider)
    write = ConsumerWrite(uuid=server, project_id="p", user_id="u", type="INSTANCE", holds={})
    await db.write(lambda conn: replace_allocations(conn, [write]))
    assert await layout(db, server) is None


async def test_the_scheduler_reads_what_is_there(db: Database) -> None:
    provider, first, second = await a_host(db), an_id(), an_id()
    await claims(db, first, provider)
    await claims(db, second, provider)
    (row,) = (await db.read(lambda conn: read_changes(conn, 0))).hosts
    assert read_topology(row.topology) == TOPOLOGY
    taken = [found.taken() for found in read_layouts(row.layouts)]
    assert sorted(map(sorted, taken)) == [[2, 3], [4, 5]]
    assert row.offers["PCPU"] == (4, 4, 1, 4, 1)
    assert row.offers["VCPU"][0] == 8
