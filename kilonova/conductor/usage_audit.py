"""The audit of usage: when a period has ended, the usage of every server that was active in it is told.

What is told and that it was told are one transaction, so a process that dies leaves no server out and none is told
twice; whichever conductor looks next goes on. Spec: PER-58 to PER-65.
"""

from __future__ import annotations

from functools import partial

import sqlalchemy as sa
import structlog

from kilonova.db import instances, services
from kilonova.db import usage_audits as records
from kilonova.db.database import Database
from kilonova.domain.clock import Clock
from kilonova.domain.operation import Asker
from kilonova.notifications.exists import tell_exists
from kilonova.notifications.periods import last_completed

log = structlog.get_logger(__name__)

FORGET_INTERVAL = 3600.0
"""Seconds between two looks for audits that are too old."""
INTERVAL = 60.0
"""Seconds between two looks whether a period has ended."""
BATCH = 100
"""Servers that are told of in one transaction."""


class UsageAudit:
    """Audits the hosts of a cell. period: see `kilonova.notifications.periods`."""

    def __init__(self, database: Database, clock: Clock, period: str) -> None:
        self._database = database
        self._clock = clock
        self._period = period

    async def look(self) -> None:
        """Begin the audits of the last period that are missing, and go on with those that have not ended."""
        period = last_completed(self._clock.now(), self._period)
        missing = await self._database.read(lambda conn: _not_begun(conn, period))
        if missing:
            now = self._clock.now()
            await self._database.write(lambda conn: records.begin(conn, missing, period, now=now))
        for number in await self._database.read(records.unfinished):
            while await self._database.write(partial(self._go_on, number)):
                pass

    def _go_on(self, number: int, conn: sa.Connection) -> bool:
        """Tell of some more servers. Returns whether there may be others."""
        audit = records.hold(conn, number)
        if audit is None:
            return False
        found = records.untold(conn, number, BATCH)
        if not found:
            self._end(conn, audit)
            return False
        failed = [uuid for uuid in found.values() if not self._tell(conn, audit, uuid)]
        records.told(conn, number, found, errors=len(failed))
        return True

    def _tell(self, conn: sa.Connection, audit: records.UsageAudit, uuid: str) -> bool:
        """Returns whether it was told. One server that cannot be told of holds up no other. Spec: PER-62."""
        period = (audit.period_begin, audit.period_end)
        try:
            instance = instances.get(conn, uuid, deleted=True)
            tell_exists(conn, instance, period, now=self._clock.now(), host=audit.host, asker=Asker())
        except sa.exc.SQLAlchemyError:
            raise
        except Exception:
            log.exception("usage not told", instance=uuid, host=audit.host)
            return False
        return True

    def _end(self, conn: sa.Connection, audit: records.UsageAudit) -> None:
        took = self._clock.now() - audit.started_at
        message = f"Usage of {audit.instances} servers on {audit.host} was told in {took:.0f} seconds."
        records.end(conn, audit.id, message)
        log.info("usage audited", host=audit.host, instances=audit.instances, errors=audit.errors, seconds=took)


async def forget_old_audits(database: Database, clock: Clock, period: str, retention: float) -> None:
    """Remove audits of periods that ended long ago; never those of the last one, which would be audited again.

    Args:
        period: that is audited now, "" for none. retention: seconds.
    """
    now = clock.now()
    before = min(now - retention, last_completed(now, period)[0]) if period else now - retention
    removed = await database.write(lambda conn: records.forget(conn, before))
    if removed:
        log.info("old usage audits removed", audits=removed)


def _not_begun(conn: sa.Connection, period: tuple[float, float]) -> list[str]:
    """Hosts without an audit of the period."""
    begun = {audit.host for audit in records.of_period(conn, *period)}
    agents = services.all_services(conn, binary=services.COMPUTE)
    return sorted({agent.host for agent in agents} - begun)
