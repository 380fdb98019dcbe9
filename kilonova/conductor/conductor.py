"""The conductor process: one runner over a cell's journal, and the ears for its hosts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random

import msgspec
import structlog

from kilonova.bus.protocol import Bus, Subscription
from kilonova.bus.subjects import from_any_host
from kilonova.cells.heartbeat import Heartbeat
from kilonova.conductor.console_tokens import forget_expired_tokens
from kilonova.conductor.hosts import HostReports
from kilonova.conductor.interfaces import InterfaceHealing
from kilonova.conductor.leftovers import Leftovers
from kilonova.conductor.overdue import INTERVAL, OVERDUE, OverdueWork
from kilonova.conductor.usage_audit import FORGET_INTERVAL, UsageAudit, forget_old_audits
from kilonova.conductor.usage_audit import INTERVAL as AUDIT_INTERVAL
from kilonova.conductor.volume_usage import VolumeUsageRounds
from kilonova.db.database import Database
from kilonova.db.journal import cell_journal
from kilonova.domain.clock import Clock
from kilonova.domain.operation import ExternalEvent, OperationRecord
from kilonova.engine.commands import Hosts
from kilonova.engine.operation import Tx
from kilonova.engine.rounds import Round, Rounds
from kilonova.engine.runner import POLL, Runner
from kilonova.engine.workshop import Workshop
from kilonova.notifications.deliverer import Deliverer
from kilonova.notifications.options import NotificationOptions
from kilonova.operations.catalogue import CELL_OPERATIONS
from kilonova.operations.environment import Environment
from kilonova.operations.told import take

log = structlog.get_logger(__name__)

_decode_event = msgspec.msgpack.Decoder(ExternalEvent).decode


def wake_subject(cell: str) -> str:
    """Where a cell's conductors hear that there is work."""
    return f"kn.wake.{cell}"


class Conductor:
    """Drives the operations of one cell.

    Args:
        name: of this process; unique among the conductors of the cell, new at every start.
        alone: no other conductor can be alive (one-machine mode).
        ttl: seconds that a lease lasts. poll: seconds between looks at the journal when nothing wakes it.
        deliverer: of the cell's notifications, None if nobody is told. observe, checkpoint: see `Workshop`.
        audit_period: period of usage that is audited, "" for none. audit_retention: seconds for which audits are kept.
    """

    def __init__(
        self, name: str, environment: Environment, bus: Bus, reports: HostReports, random: Random, *,
        alone: bool = False, ttl: float = 10.0, poll: float = POLL, concurrency: int = 256,
        deliverer: Deliverer | None = None, observe: Callable[[OperationRecord], None] = lambda _record: None,
        checkpoint: Callable[[str], None] = lambda _place: None, audit_period: str = "",
        audit_retention: float = NotificationOptions().instance_usage_audit_retention,
    ) -> None:
        self.name = name
        self._environment = environment
        self._bus = bus
        self._reports = reports
        self._clock: Clock = environment.clock
        self._database: Database = environment.database
        self.runner = Runner(
            Workshop(
                database=environment.database, journal=cell_journal, definitions=CELL_OPERATIONS,
                environment=environment, hosts=Hosts(bus, environment.clock), clock=environment.clock, random=random,
                owner=name, ttl=ttl, wake=self.wake, observe=observe, checkpoint=checkpoint,
            ),
            concurrency=concurrency, alone=alone, poll=poll,
        )
        self._subscriptions: list[Subscription] = []
        self._audit = UsageAudit(environment.database, environment.clock, audit_period) if audit_period else None
        self._audited = (audit_period, audit_retention)
        self._rounds = Rounds(environment.clock, self._periodic_work())
        self._heartbeat = Heartbeat(environment.database, environment.clock, "nova-conductor", name)
        self._deliverer = deliverer

    def _periodic_work(self) -> tuple[Round, ...]:
        """All that this process does unasked."""
        environment, options = self._environment, self._environment.options
        leftovers = Leftovers(environment, self._bus, self._wake_for)
        ignored = options.running_deleted_instance_action == "noop"
        return (
            Round("expired console tokens", partial(forget_expired_tokens, environment.database, environment.clock),
                  options.instance_delete_interval),
            Round("guests of deleted servers", leftovers.guests,
                  -1.0 if ignored else options.running_deleted_instance_poll_interval, at_start=True),
            Round("interfaces", InterfaceHealing(environment, self._wake_for).heal,
                  options.heal_instance_info_cache_interval or -1.0),
            Round("volume usage", VolumeUsageRounds(environment, self._bus).count,
                  options.volume_usage_poll_interval or -1.0),
            Round("files of deleted servers", leftovers.files, options.instance_delete_interval),
            Round("failed migrations", leftovers.migrations, options.instance_delete_interval),
            Round("old usage audits", partial(
                forget_old_audits, environment.database, environment.clock, *self._audited), FORGET_INTERVAL),
            Round("overdue servers", OverdueWork(environment, OVERDUE, self._wake_for).look, INTERVAL),
            *([Round("usage audit", self._audit.look, AUDIT_INTERVAL)] if self._audit is not None else ()),
        )

    def wake(self) -> None:
        """There may be work in the journal."""
        self.runner.wake()

    async def _wake_for(self, cancelled: str | None) -> None:
        """There is work in the journal; whichever conductor drives the cancelled operation hears of it."""
        self.wake()
        if cancelled is not None:
            await self._bus.publish(wake_subject(self._environment.cell), cancelled.encode())

    async def start(self) -> None:
        cell = self._environment.cell
        subscribe = self._bus.subscribe
        self._subscriptions = [
            await subscribe(wake_subject(cell), self._on_wake),
            await subscribe(from_any_host("report"), self._reports.on_report, group=f"conductors.{cell}"),
            await subscribe(from_any_host("event"), self._reports.on_event, group=f"conductors.{cell}"),
        ]
        await self.runner.start()
        self._heartbeat.start()
        self._rounds.start()
        if self._deliverer is not None:
            await self._deliverer.start()

    async def _on_wake(self, _subject: str, payload: bytes) -> None:
        """Payload: empty, or the id of an operation that was asked to end."""
        if payload:
            self.runner.note_cancel(payload.decode(), "asked to end")
        self.wake()

    async def deliver(self, event: ExternalEvent) -> bool:
        """Take an external event; False if no operation may wait for it.

        Spec: EVT-04, EVT-06, EVT-08.
        """
        now = self._clock.now()
        kept, work = await self._database.write(lambda conn: take(Tx(conn, now), event))
        if kept or work:
            self.wake()
        return kept

    async def close(self) -> None:
        """Stop at once; operations go on with the next start or another conductor."""
        for subscription in self._subscriptions:
            await subscription.unsubscribe()
        if self._deliverer is not None:
            await self._deliverer.close()
        await self._rounds.close()
        await self._heartbeat.close()
        await self.runner.close()
