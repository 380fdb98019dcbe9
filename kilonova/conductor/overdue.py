"""Work that nobody asks for: servers whose time has come, for each of which an operation is journaled.

Every conductor looks; the guarded save with which an operation begins lets exactly one of them have the server.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from uuid import uuid4

import msgspec
import sqlalchemy as sa
import structlog

from kilonova.db import instances
from kilonova.db.journal import cell_journal
from kilonova.domain.clock import Clock
from kilonova.domain.errors import KilonovaError
from kilonova.domain.operation import Asker
from kilonova.engine import submit
from kilonova.engine.operation import Operation, Tx
from kilonova.operations import reboot, shelve_offload, soft_delete, unrescue
from kilonova.operations.delete import DELETE, DeleteServer
from kilonova.operations.environment import Environment
from kilonova.operations.options import OperationOptions

log = structlog.get_logger(__name__)

INTERVAL = 60.0
"""Seconds between two looks, and before the first, so that hosts can report after a start."""


Wake = Callable[[str | None], Awaitable[None]]


@dataclass(frozen=True)
class Overdue:
    """A reason to act on servers by itself.

    Args:
        name: what is told in the log.
        find: UUIDs of servers whose time has come, from the connection, the options and the time in seconds since
            the epoch. It is called often: nothing to do has to be cheap.
        operation, request: what is then asked for. Its `begins` checks again, since the server may have changed.
    """

    name: str
    find: Callable[[sa.Connection, OperationOptions, float], list[str]]
    operation: Operation
    request: Callable[[OperationOptions], msgspec.Struct]


OVERDUE = (
    Overdue("reclaim soft-deleted servers", soft_delete.overdue, DELETE, lambda _options: DeleteServer(reclaim=True)),
    Overdue("unrescue", unrescue.overdue, unrescue.UNRESCUE, lambda _options: unrescue.UnrescueServer()),
    Overdue("end a soft reboot", reboot.stuck, reboot.HARD_REBOOT_SERVER, lambda _options: reboot.RebootServer()),
    Overdue("offload shelved servers", shelve_offload.overdue, shelve_offload.SHELVE_OFFLOAD,
            lambda _options: shelve_offload.OffloadServer()),
)
"""All of them. A new one is one more line here."""


class OverdueWork:
    """Looks for servers that are overdue.

    Args:
        reasons: what to look for. wake: there is work in the journal; given the operation that was asked to end for it,
            if any.
    """

    def __init__(self, environment: Environment, reasons: tuple[Overdue, ...], wake: Wake) -> None:
        self._environment = environment
        self._clock: Clock = environment.clock
        self._reasons = reasons
        self._wake = wake

    async def look(self) -> None:
        """Look once. Spec: PER-03."""
        for reason in self._reasons:
            try:
                await self._act(reason)
            except KilonovaError as error:
                log.warning("overdue servers not looked for", reason=reason.name, error=str(error))

    async def _act(self, reason: Overdue) -> None:
        options, database = self._environment.options, self._environment.database
        due = await database.read(lambda conn: reason.find(conn, options, self._clock.now()))
        for uuid in due:
            try:
                preempted = await database.write(partial(self._submit, reason, uuid))
            except KilonovaError as error:
                log.info("overdue server left alone", reason=reason.name, instance=uuid, error=str(error))
            else:
                log.info("overdue server taken up", reason=reason.name, instance=uuid)
                await self._wake(preempted)

    def _submit(self, reason: Overdue, uuid: str, conn: sa.Connection) -> str | None:
        asker = Asker(project_id=instances.get(conn, uuid).project_id, request_id=f"req-{uuid4()}")
        request = reason.request(self._environment.options)
        tx = Tx(conn, self._clock.now())
        return submit.submit(tx, cell_journal, reason.operation, uuid, request, asker).preempted
