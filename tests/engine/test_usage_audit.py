"""The audit of usage: every server that was active in a period is told of once it has ended."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
import sqlalchemy as sa
from simulation.listeners import LISTENERS
from small_cloud import SmallCloud, in_cloud

from kilonova.conductor import usage_audit as module
from kilonova.db import instances, services, usage_audits
from kilonova.db.outbox import cell_outbox
from kilonova.db.usage_audits import UsageAudit
from kilonova.domain.notification import Notification
from kilonova.notifications.periods import last_completed

HOUR = 3600.0
PERIOD = "hour@15"
"""The first one ends 100 s after the beginning of a test."""
LEFT = LISTENERS[0]


async def until_next_period(cloud: SmallCloud) -> tuple[float, float]:
    """Returns the period that has just ended."""
    _, end = last_completed(cloud.now, PERIOD)
    await asyncio.sleep(end + HOUR + 1.0 - cloud.now)
    return end, end + HOUR


def audits(cloud: SmallCloud, period: tuple[float, float]) -> list[UsageAudit]:
    return cloud.cell(lambda conn: usage_audits.of_period(conn, *period))


async def until_audited(cloud: SmallCloud, period: tuple[float, float], hosts: int = 1) -> list[UsageAudit]:
    await cloud.until(lambda: [audit.state for audit in audits(cloud, period)] == [usage_audits.DONE] * hosts)
    return audits(cloud, period)


async def heard(cloud: SmallCloud, *, versioned: bool = True) -> list[Notification]:
    rows = sa.select(sa.func.count()).select_from(cell_outbox.rows)
    await cloud.until(lambda: cloud.cell(lambda conn: conn.execute(rows).scalar()) == 0)
    return [m for m in cloud.ears.once(LEFT) if m.event_type.endswith("instance.exists") and m.versioned is versioned]


async def change(cloud: SmallCloud, uuid: str, **changes: Any) -> None:
    now = cloud.now
    await cloud.databases.cell.write(lambda conn: instances.update(conn, uuid, now=now, deleted=True, **changes))


async def look(cloud: SmallCloud) -> None:
    """What a conductor does when its minute has come."""
    name = next(iter(cloud.conductors))
    audit = cloud.conductors[name]._audit
    assert audit is not None
    await audit.look()


@pytest.mark.spec("PER-58")
@in_cloud(told=True)
async def test_nothing_is_audited_unless_asked_for(cloud: SmallCloud) -> None:
    await cloud.build()
    period = await until_next_period(cloud)
    await asyncio.sleep(200.0)
    assert audits(cloud, period) == [] and await heard(cloud) == []


@pytest.mark.spec("PER-60", "PER-61", "PER-63")
@in_cloud(told=True, hosts=2, audit_period=PERIOD)
async def test_each_host_tells_of_its_servers_when_a_period_has_ended(cloud: SmallCloud) -> None:
    servers = [await cloud.build() for _ in range(3)]
    before = await until_next_period(cloud)
    done = await until_audited(cloud, before, hosts=2)
    told = await heard(cloud)
    assert {m.subject for m in told} == set(servers) and len(told) == 3
    for message in told:
        data = message.payload["nova_object.data"]
        host = cloud.server(message.subject).host
        assert (message.publisher_id, data["host"]) == (f"nova-compute:{host}", host)
        assert (message.priority, message.request_id, data["state"]) == ("INFO", "", "active")
        times = data["audit_period"]["nova_object.data"]
        assert times == {
            "audit_period_beginning": "2023-11-14T21:15:00Z", "audit_period_ending": "2023-11-14T22:15:00Z",
        }
        assert len(data["ip_addresses"]) == 1
    older = await heard(cloud, versioned=False)
    assert len(older) == 3
    assert all(m.payload["fixed_ips"] and m.payload["audit_period_ending"].endswith("22:15:00") for m in older)
    assert [(a.host, a.errors) for a in done] == [("host0", 0), ("host1", 0)]
    assert sum(a.instances for a in done) == 3
    for audit in done:
        assert audit.host in audit.message and f"{audit.instances} servers" in audit.message
        assert audit.message.endswith("seconds.")


@pytest.mark.spec("PER-59")
@in_cloud(told=True, conductors=2, audit_period=PERIOD)
async def test_a_period_is_told_once(cloud: SmallCloud) -> None:
    await cloud.build()
    period = await until_next_period(cloud)
    await until_audited(cloud, period)
    await asyncio.sleep(600.0)
    assert len(await heard(cloud)) == 1
    assert len(audits(cloud, period)) == 1


@pytest.mark.spec("PER-60")
@in_cloud(told=True, audit_period=PERIOD)
async def test_what_was_not_active_in_the_period_is_not_told(cloud: SmallCloud) -> None:
    lives, gone_before, gone_within, launched_after, homeless = [await cloud.build() for _ in range(5)]
    begin, end = last_completed(cloud.now + HOUR, PERIOD)
    for uuid, fields in (
        (gone_before, {"deleted_at": begin - 1.0}), (gone_within, {"deleted_at": begin + 1.0}),
        (launched_after, {"launched_at": end + 0.5}), (homeless, {"host": None}),
    ):
        await change(cloud, uuid, **fields)
    (audit,) = await until_audited(cloud, await until_next_period(cloud))
    assert {m.subject for m in await heard(cloud)} == {lives, gone_within}
    assert audit.instances == 2
    assert cloud.cell(lambda conn: conn.execute(sa.select(usage_audits.listed)).all()) == []


@pytest.mark.spec("PER-62", "PER-61")
def test_a_server_that_cannot_be_told_of_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    bad: list[str] = []
    tell = module.tell_exists

    def picky(conn: sa.Connection, of: Any, *arguments: Any, **more: Any) -> None:
        if of.uuid in bad:
            raise ValueError("a defect")
        tell(conn, of, *arguments, **more)

    @in_cloud(told=True, audit_period=PERIOD)
    async def story(cloud: SmallCloud) -> None:
        monkeypatch.setattr(module, "tell_exists", picky)
        servers = [await cloud.build() for _ in range(3)]
        bad.append(servers[1])
        period = await until_next_period(cloud)
        (audit,) = await until_audited(cloud, period)
        assert {m.subject for m in await heard(cloud)} == {servers[0], servers[2]}
        assert (audit.instances, audit.errors) == (3, 1)

    story()


@pytest.mark.spec("PER-64", "PER-60")
def test_an_audit_whose_process_died_is_taken_up_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it died; nobody is left out and nobody told of twice. Its log is there before the first message."""
    @in_cloud(told=True, conductors=2, audit_period=PERIOD)
    async def story(cloud: SmallCloud) -> None:
        monkeypatch.setattr(module, "BATCH", 1)
        servers = [await cloud.build() for _ in range(4)]
        seen: list[tuple[str, int]] = []
        tell = module.tell_exists

        def deadly(conn: sa.Connection, of: Any, *arguments: Any, **more: Any) -> None:
            running = sa.select(usage_audits.audits).where(usage_audits.audits.c.state == usage_audits.RUNNING)
            (audit,) = conn.execute(running).mappings().all()
            seen.append((audit["state"], audit["instances"]))
            if len(seen) in (2, 3):
                raise sa.exc.OperationalError("the process dies here", {}, Exception())
            tell(conn, of, *arguments, **more)

        monkeypatch.setattr(module, "tell_exists", deadly)
        period = await until_next_period(cloud)
        await cloud.until(lambda: len(seen) >= 2)
        cloud.crash("conductor0")
        await cloud.until(lambda: [a.state for a in audits(cloud, period)] == [usage_audits.DONE], within=600.0)
        assert Counter(m.subject for m in await heard(cloud)) == Counter(servers)
        assert set(seen) == {("RUNNING", 4)}

    story()


@pytest.mark.spec("PER-64")
@in_cloud(told=True, audit_period=PERIOD)
async def test_an_audit_is_finished_also_when_its_period_is_long_past(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    period = last_completed(cloud.now - 5 * HOUR, PERIOD)
    await change(cloud, uuid, launched_at=period[0])
    await cloud.databases.cell.write(lambda conn: usage_audits.begin(conn, ["host0"], period, now=cloud.now))
    (audit,) = await until_audited(cloud, period)
    assert audit.instances == 1
    assert [m.subject for m in await heard(cloud)][:1] == [uuid]


@pytest.mark.spec("PER-65")
@in_cloud(told=True, hosts=2, audit_period=PERIOD)
async def test_a_server_that_moves_when_its_period_has_ended_is_told_of_once(cloud: SmallCloud) -> None:
    """By the host that it was on when the period ended, even if that of its new host was done before it came."""
    await look(cloud)  # those of the period before
    uuid = await cloud.build()
    former = cloud.server(uuid).host
    other = {"host0": "host1", "host1": "host0"}[former or ""]
    period = last_completed(cloud.now + HOUR, PERIOD)
    now = period[1] + 1.0
    await cloud.databases.cell.write(
        lambda conn: usage_audits.begin(conn, ["host0", "host1"], period, now=now)
    )
    await change(cloud, uuid, host=other)
    await look(cloud)
    done = await until_audited(cloud, period, hosts=2)
    (message,) = await heard(cloud)
    assert {a.host: a.instances for a in done} == {former: 1, other: 0}
    data = message.payload["nova_object.data"]
    assert (data["uuid"], data["host"]) == (uuid, other)
    assert message.publisher_id == f"nova-compute:{former}"
    assert data["audit_period"]["nova_object.data"]["audit_period_ending"] == "2023-11-14T22:15:00Z"


@pytest.mark.spec("PER-65")
@in_cloud(told=True, audit_period=PERIOD)
async def test_a_host_that_is_new_has_an_audit_of_its_own(cloud: SmallCloud) -> None:
    period = await until_next_period(cloud)
    await until_audited(cloud, period)
    now = cloud.now
    uuid = await cloud.build()
    await change(cloud, uuid, host="late", launched_at=now - 2 * HOUR)
    await cloud.databases.cell.write(
        lambda conn: services.seen(conn, services.COMPUTE, "late", version="1", now=now)
    )
    await until_audited(cloud, period, hosts=2)
    assert [m.publisher_id for m in await heard(cloud)] == ["nova-compute:late"]
