"""Accepting operations on servers of cells, and waiting for their end."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import msgspec
import sqlalchemy as sa

from kilonova.cells.registry import Cell, Located
from kilonova.db import instances
from kilonova.db.journal import cell_journal
from kilonova.domain import tracing
from kilonova.domain.clock import Clock
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import (
    Conflict,
    Forbidden,
    InstanceInvalidState,
    InstanceLocked,
    InstanceNeverLaunched,
    InvalidInput,
    KilonovaError,
    NotFound,
    NotSupported,
)
from kilonova.domain.operation import TERMINAL, Asker, Entry, EntryState, OperationRecord, OperationState
from kilonova.engine import submit
from kilonova.engine.operation import Operation, Tx
from kilonova.operations.catalogue import CELL_OPERATIONS

TURN_LIMIT = 60.0
"""Seconds that a request waits for the end of an operation that no state of the server shows."""
END_LIMIT = 120.0
"""Seconds that a request waits for the end of the operation that it asked for."""
STEP_LIMIT = 30.0
"""Seconds that a request waits for a step of the operation that it asked for; then it is answered anyway."""
FIRST_LOOK, LONGEST_PAUSE = 0.01, 0.5
"""Seconds between looks at an operation whose end is waited for."""
HIDES_LOCK = ("restore", "changePassword", "abort live migration")
"""Actions that a locked server refuses with the words for an invalid state. Spec: API-064."""


class Acceptance:
    """Accepts operations.

    Args:
        wake_cell: a cell's journal has work; given the cell's name and the operation that was asked to end, if any.
    """

    def __init__(self, clock: Clock, wake_cell: Callable[[str, str | None], None]) -> None:
        self._clock = clock
        self._wake_cell = wake_cell

    def wake(self, cell: Cell) -> None:
        """The cell's journal has work."""
        self._wake_cell(cell.name, None)

    async def ask(
        self, context: RequestContext, server: Located, definition: Operation, request: msgspec.Struct
    ) -> OperationRecord:
        """Accept what the lock of the server allows."""
        respect_lock(context, server, definition.action or definition.name)
        return (await self.submit(context, server, definition, request)).record

    async def ask_and_wait(
        self, context: RequestContext, server: Located, definition: Operation, request: msgspec.Struct
    ) -> OperationRecord:
        """The operation goes on by its journal, whether or not anybody waits for it."""
        accepted = await self.ask(context, server, definition, request)
        assert server.cell is not None
        ended = await self.end_of(server.cell, accepted.id, END_LIMIT)
        if ended is None:
            raise KilonovaError(
                f"The {definition.name} of instance {server.instance.uuid} has not ended within {END_LIMIT:.0f} s.",
                hint="it goes on; the actions of the server tell how it ends",
            )
        if ended.state is not OperationState.SUCCEEDED:
            raise as_error(ended)
        return ended

    async def ask_and_wait_for(
        self, context: RequestContext, server: Located, definition: Operation, request: msgspec.Struct, step: str
    ) -> OperationRecord:
        """The same as `ask_and_wait`, but only until a step is done."""
        accepted = await self.ask(context, server, definition, request)
        assert server.cell is not None
        found = await self.end_of(server.cell, accepted.id, STEP_LIMIT, step)
        if found is not None and found.state in TERMINAL and found.state is not OperationState.SUCCEEDED:
            raise as_error(found)
        return found or accepted

    async def submit(
        self, context: RequestContext, server: Located, definition: Operation, request: msgspec.Struct, *,
        alone: bool = False,
    ) -> submit.Submission:
        """Accept an operation, when its turn has come. Spec: IFC-21, IFC-22.

        Args:
            alone: refuse it if one of its kind runs, which else does for this one, too.
        """
        instance, cell, action = server.instance, server.cell, definition.action or definition.name
        if cell is None:
            raise InstanceInvalidState(instance.uuid, action, "task_state", "scheduling")

        def accept(conn: sa.Connection) -> submit.Submission:
            tx = Tx(conn, self._clock.now())
            id_ = str(uuid.uuid4())
            accepted = submit.submit(
                tx, cell_journal, definition, instance.uuid, request, asked_by(context), operation_id=id_
            )
            if alone and accepted.record.id != id_:
                raise submit.Busy(accepted.record)
            return accepted

        give_up = self._clock.monotonic() + TURN_LIMIT
        while True:
            try:
                submission = await cell.database.write(accept)
            except submit.Busy as busy:
                left = give_up - self._clock.monotonic()
                if not _is_waited_for(busy.holder) or await self.end_of(cell, busy.holder.id, left) is None:
                    current = await cell.database.read(lambda conn: instances.get(conn, instance.uuid))
                    stored = current.task_state.value if current.task_state else "None"
                    raise InstanceInvalidState(instance.uuid, action, "task_state", stored) from None
            else:
                self._wake_cell(cell.name, submission.preempted)
                return submission

    async def end_of(
        self, cell: Cell, operation_id: str, limit: float, step: str = ""
    ) -> OperationRecord | None:
        """Wait for the end of an operation, or of one of its steps; None if it has not come within `limit` seconds, or
        needs an operator."""
        give_up, pause = self._clock.monotonic() + limit, FIRST_LOOK
        while True:
            record = await cell.database.read(lambda conn: cell_journal.get(conn, operation_id))
            if record is None or record.state is OperationState.STRANDED or self._clock.monotonic() >= give_up:
                return None
            if record.state in TERMINAL or any(entry.step == step and _is_done(entry) for entry in record.entries):
                return record
            await self._clock.sleep(pause)
            pause = min(pause * 1.5, LONGEST_PAUSE)


def _is_done(entry: Entry) -> bool:
    return entry.state is EntryState.DONE and not entry.undo


_FAILURES: dict[int, type[KilonovaError]] = {
    400: InvalidInput, 403: Forbidden, 404: NotFound, 409: Conflict, 501: NotSupported,
}


def as_error(record: OperationRecord) -> KilonovaError:
    """What an operation failed with, for who waited for it."""
    failure = record.failure
    if failure is None:
        return KilonovaError(f"Operation {record.kind} {record.id} is {record.state.value}.")
    return _FAILURES.get(failure.status, KilonovaError)(failure.message)


def _is_waited_for(holder: OperationRecord) -> bool:
    definition = CELL_OPERATIONS.find(holder.kind, holder.version)
    return definition is not None and definition.waited_for


def asked_by(context: RequestContext) -> Asker:
    return Asker(
        project_id=context.project_id or "", user_id=context.user_id, request_id=context.request_id,
        global_request_id=context.global_request_id or "", traceparent=tracing.traceparent(),
    )


def respect_lock(context: RequestContext, server: Located, action: str) -> None:
    """A locked server obeys only administrators. Spec: API-064.

    Raises:
        InstanceLocked; InstanceNeverLaunched for an action that does not tell of the lock.
    """
    if server.instance.locked_by is None or context.is_admin:
        return
    if action in HIDES_LOCK:
        raise InstanceNeverLaunched(server.instance.uuid, action)
    raise InstanceLocked(server.instance.uuid)
