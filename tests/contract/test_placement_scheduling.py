"""The scheduler over a real database: it follows changes, and what it chooses can be claimed."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
import sqlalchemy as sa
from placement_databases import placement_db

from kilonova.db import placement
from kilonova.db.database import Database
from kilonova.domain.errors import NoValidHost, TryElsewhere
from kilonova.domain.flavor import Flavor
from kilonova.domain.grouping import Aggregate, GroupPolicy, ServerGroup
from kilonova.domain.image import Image
from kilonova.domain.instance import RequestSpec
from kilonova.hypervisor.guest import HostInventory
from kilonova.scheduler.placing import Placing
from kilonova.scheduler.scheduler import FIRST_REPORTS, Scheduler
from kilonova.services.placement import Target

__all__ = ["placement_db"]


class StillClock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds


class SomeGroupings:
    """Aggregates and groups as a test sets them."""

    def __init__(self) -> None:
        self.known: list[Aggregate] = []
        self.groups: dict[str, ServerGroup] = {}

    def aggregates(self, connection: sa.Connection) -> Sequence[Aggregate]:
        return self.known

    def server_group(self, connection: sa.Connection, uuid: str) -> ServerGroup | None:
        return self.groups.get(uuid)


async def report(db: Database, host: str, memory: int = 8704, now: float = 1000.0) -> str:
    inventory = HostInventory(
        hostname=host, hypervisor_type="QEMU", hypervisor_version=7002022, vcpus=8, memory_mib=memory, local_gib=100,
        disk_available_gib=90, memory_free_mib=memory,
    )
    return await db.write(lambda c: placement.report(c, host, host, inventory, now=now))


def request(memory: int = 512, **changes: Any) -> RequestSpec:
    return RequestSpec(
        instance_uuid=changes.pop("instance_uuid", str(uuid.uuid4())), project_id="p", user_id="u",
        flavor=Flavor(flavor_id="1", name="m", vcpus=1, memory_mib=memory, root_gib=1), image=Image(id="i"), **changes,
    )


def a_scheduler(db: Database, clock: StillClock | None = None, groupings: SomeGroupings | None = None) -> Scheduler:
    return Scheduler(db, clock or StillClock(), Random(7), groupings=groupings)


async def take(db: Database, spec: RequestSpec, provider: str, resources: dict[str, int]) -> bool:
    return bool(await db.write(lambda c: placement.claim(c, spec.instance_uuid, provider, resources, "p", "u")))


async def place(db: Database, scheduler: Scheduler, spec: RequestSpec) -> str:
    (chosen,) = await scheduler.select(spec)
    assert await take(db, spec, chosen.provider, chosen.resources)
    return chosen.host


async def test_it_follows_what_happens(db: Database) -> None:
    clock, groupings = StillClock(), SomeGroupings()
    scheduler = a_scheduler(db, clock, groupings)
    with pytest.raises(NoValidHost):
        await scheduler.select(request())
    await report(db, "h1")
    assert await place(db, scheduler, request(memory=5000)) == "h1"
    with pytest.raises(NoValidHost):
        await scheduler.select(request(memory=5000))
    await report(db, "h2")
    assert await place(db, scheduler, request(memory=5000)) == "h2"
    await db.write(lambda c: placement.publish_status(c, "h1", disabled=True))
    assert {await place(db, scheduler, request(memory=100)) for _ in range(3)} == {"h2"}
    clock.time += 61
    with pytest.raises(NoValidHost):
        await scheduler.select(request())
    await db.write(lambda c: placement.heartbeat(c, "h2", clock.time))
    assert await place(db, scheduler, request()) == "h2"
    await db.write(lambda c: placement.mark_down(c, "h2"))
    with pytest.raises(NoValidHost):
        await scheduler.select(request())


class Counted:
    """Keeps what a scheduler tells of its work, but for how long it took."""

    def __init__(self) -> None:
        self.decisions: list[tuple[int, int, str]] = []
        self.claims: list[str] = []

    def decided(self, seconds: float, considered: int, candidates: int, refused_by: str) -> None:
        assert seconds >= 0
        self.decisions.append((considered, candidates, refused_by))

    def claimed(self, outcome: str) -> None:
        self.claims.append(outcome)


async def test_decisions_and_conflicts_are_told(db: Database) -> None:
    counted = Counted()
    scheduler = Scheduler(db, StillClock(), Random(7), observer=counted)
    placing = Placing(db, scheduler, observer=counted)
    with pytest.raises(NoValidHost):
        await placing.place(request(), alternates=0)
    providers = {host: await report(db, host, memory=9000) for host in ("h1", "h2", "h3")}
    await db.write(lambda c: placement.publish_status(c, "h3", disabled=True))
    await placing.place(request(memory=5000), alternates=0)
    with pytest.raises(NoValidHost):
        await placing.place(request(memory=50_000), alternates=0)
    refused_by = [name for _, _, name in counted.decisions]
    assert [(considered, candidates) for considered, candidates, _ in counted.decisions] == [(0, 0), (3, 2), (3, 0)]
    assert refused_by[0] == "start" and refused_by[1] == "" and refused_by[2] not in ("", "start")
    assert counted.claims == ["held"]
    target = Target(host="h1", node="h1", provider=providers["h1"])
    with pytest.raises(TryElsewhere):
        await placing.claim(request(memory=50_000), target)
    assert counted.claims == ["held", "full"]


async def test_after_an_outage_it_waits_for_hosts_to_report(db: Database) -> None:
    class Waking(StillClock):
        """A host reports while somebody sleeps."""

        async def sleep(self, seconds: float) -> None:
            await super().sleep(seconds)
            await db.write(lambda c: placement.heartbeat(c, "h1", self.time))

    await report(db, "h1", now=1000.0 - 86400.0)
    assert (await a_scheduler(db, Waking()).select(request()))[0].host == "h1"
    patient = StillClock()
    patient.time += 86400.0
    with pytest.raises(NoValidHost):
        await a_scheduler(db, patient).select(request())
    assert 1000.0 + 86400.0 + FIRST_REPORTS <= patient.time < 1000.0 + 86400.0 + FIRST_REPORTS + 2.0


async def test_zones_come_from_aggregates(db: Database) -> None:
    groupings = SomeGroupings()
    scheduler, east = a_scheduler(db, groupings=groupings), str(uuid.uuid4())
    await report(db, "h1")
    await report(db, "h2")
    groupings.known.append(Aggregate(uuid=east, name="e", metadata={"availability_zone": "east"}))
    with pytest.raises(NoValidHost):
        await scheduler.select(request(availability_zone="east"))
    await db.write(lambda c: placement.join_aggregate(c, "h2", east))
    assert (await scheduler.select(request(availability_zone="east")))[0].host == "h2"
    assert (await scheduler.select(request(availability_zone="nova")))[0].host == "h1"


async def test_groups_and_hints_look_at_where_servers_are(db: Database) -> None:
    groupings = SomeGroupings()
    scheduler = a_scheduler(db, groupings=groupings)
    for host in ("h1", "h2", "h3"):
        await report(db, host)
    first, second = request(server_group="g"), request(server_group="g")
    members = (first.instance_uuid, second.instance_uuid)
    groupings.groups["g"] = ServerGroup(uuid="g", policy=GroupPolicy.ANTI_AFFINITY, members=members)
    here = await place(db, scheduler, first)
    there = await place(db, scheduler, second)
    assert there != here
    same = request(scheduler_hints={"same_host": [first.instance_uuid]})
    different = request(scheduler_hints={"different_host": list(members)})
    assert await place(db, scheduler, same) == here
    assert await place(db, scheduler, different) not in (here, there)


@pytest.mark.spec("BLD-20")
async def test_a_group_that_no_longer_exists_is_no_constraint(db: Database) -> None:
    await report(db, "h1")
    assert (await a_scheduler(db).select(request(server_group=str(uuid.uuid4()))))[0].host == "h1"


async def test_decisions_at_once_spread_before_anything_is_claimed(db: Database) -> None:
    scheduler = a_scheduler(db)
    for number in range(8):
        await report(db, f"h{number}")
    chosen = await asyncio.gather(*(scheduler.select(request()) for _ in range(8)))
    assert len({selection.host for (selection,) in chosen}) == 8


async def test_a_promise_that_is_not_claimed_refuses_nobody(db: Database) -> None:
    scheduler = a_scheduler(db)
    await report(db, "h1")
    for _ in range(3):
        assert (await scheduler.select(request(memory=5000)))[0].host == "h1"


async def test_schedulers_beside_each_other_fill_the_hosts_and_no_more(db: Database) -> None:
    """8 hosts of 8192 MiB take 16 servers of 4000 MiB; 20 are asked of two schedulers at once."""
    for number in range(8):
        await report(db, f"h{number}")
    schedulers = [a_scheduler(db), a_scheduler(db)]

    async def build(number: int) -> bool:
        spec = request(memory=4000)
        for _ in range(30):
            try:
                (chosen,) = await schedulers[number % 2].select(spec, alternates=2)
            except NoValidHost:
                return False
            for choice in (chosen, *chosen.alternates):
                if await take(db, spec, choice.provider, choice.resources):
                    return True
        return False

    assert sum(await asyncio.gather(*(build(number) for number in range(20)))) == 16
