"""The audit of usage on both kinds of database, with several conductors at once."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from kilonova.conductor.usage_audit import UsageAudit, forget_old_audits
from kilonova.db import instances, services, usage_audits
from kilonova.db.cell_schema import cell_metadata
from kilonova.db.database import Database
from kilonova.db.outbox import OPTION, cell_outbox
from kilonova.domain.clock import SystemClock
from kilonova.domain.flavor import Flavor
from kilonova.domain.instance import Instance
from kilonova.domain.notification import Listeners
from kilonova.domain.states import VmState
from kilonova.notifications.periods import last_completed

FLAVOR = Flavor(flavor_id="1", name="small", vcpus=1, memory_mib=512, root_gib=1)
HOSTS = ("one", "two")
EACH = 150
"""Servers on each host: more than one transaction tells of."""


@pytest.fixture(params=["sqlite", "postgresql"])
async def cell(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    url = f"sqlite:///{tmp_path}/cell.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    database = Database.open(url, options={OPTION: Listeners(sinks=("listener",), host="here", unversioned=False)})
    await database.write(cell_metadata.create_all)
    yield database
    await database.close()


def _fill(conn: sa.Connection) -> None:
    for host in HOSTS:
        services.seen(conn, services.COMPUTE, host, version="1", now=1.0)
        for _ in range(EACH):
            instances.insert(conn, Instance(
                uuid=str(uuid.uuid4()), project_id="p", user_id="u", flavor=FLAVOR, host=host, launched_at=1.0,
                vm_state=VmState.ACTIVE, task_state=None,
            ))


@pytest.mark.spec("PER-60", "PER-64")
async def test_every_server_is_told_of_once_however_many_conductors_look(cell: Database) -> None:
    await cell.write(_fill)
    clock = SystemClock()
    audits = [UsageAudit(cell, clock, "year") for _ in range(3)]
    await asyncio.gather(*(audit.look() for audit in audits))
    period = last_completed(clock.now(), "year")
    found = await cell.read(lambda conn: usage_audits.of_period(conn, *period))
    assert [(a.host, a.state, a.instances, a.errors) for a in found] == [
        (host, usage_audits.DONE, EACH, 0) for host in HOSTS
    ]
    told = await cell.read(lambda conn: cell_outbox.pending(conn, "listener", without=(), count=1000))
    subjects = Counter(pending.message.subject for pending in told)
    assert len(subjects) == 2 * EACH and set(subjects.values()) == {1}
    assert await cell.read(lambda conn: conn.execute(sa.select(usage_audits.listed)).all()) == []


async def test_old_audits_are_forgotten_but_for_those_of_the_last_period(cell: Database) -> None:
    day = 86400.0
    clock = SystemClock()
    last = last_completed(clock.now(), "day")
    running = (last[0] - 9 * day, last[0] - 8 * day)
    done = [(last[0] - days * day, last[1] - days * day) for days in (0, 1, 2, 30)]

    def plant(conn: sa.Connection) -> None:
        for period in (*done, running):
            usage_audits.begin(conn, ["one"], period, now=1.0)
        for number in usage_audits.unfinished(conn):
            audit = usage_audits.hold(conn, number)
            if audit is not None and audit.period_end != running[1]:
                usage_audits.end(conn, number, "")

    async def kept() -> list[bool]:
        found = [await cell.read(lambda conn, p=p: usage_audits.of_period(conn, *p)) for p in (*done, running)]  # type: ignore[misc]
        return [bool(audits) for audits in found]

    await cell.write(plant)
    await forget_old_audits(cell, clock, "day", 5 * day)
    assert await kept() == [True, True, True, False, True]
    await forget_old_audits(cell, clock, "day", 0.0)
    assert await kept() == [True, False, False, False, True]
    await forget_old_audits(cell, clock, "", 0.0)
    assert await kept() == [False, False, False, False, True]
