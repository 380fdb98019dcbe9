"""Asking for operations: the implementation of `Compute` over the journals."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import msgspec
import sqlalchemy as sa
import structlog

from kilonova.agent.reports import ConsoleQuery
from kilonova.bus.protocol import Bus
from kilonova.cells.registry import Cell, Cells, Located
from kilonova.db import build_requests, instances
from kilonova.db.journal import api_journal, cell_journal
from kilonova.domain.clock import Clock
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import (
    Conflict,
    Forbidden,
    InstanceInvalidState,
    InstanceLocked,
    InstanceNeverLaunched,
    InstanceNotFound,
    InstanceNotReady,
    InvalidInput,
    KilonovaError,
    NotFound,
    NotSupported,
)
from kilonova.domain.instance import BuildRequest
from kilonova.domain.operation import TERMINAL, Asker, ExternalEvent, OperationRecord, OperationState
from kilonova.domain.states import TaskState, VmState
from kilonova.engine import submit
from kilonova.engine.operation import Operation, Tx
from kilonova.hypervisor.diagnostics import Diagnostics, OwnDiagnostics
from kilonova.operations import diagnostics, password_setting
from kilonova.operations.backup import BACKUP, BackupServer
from kilonova.operations.catalogue import CELL_OPERATIONS
from kilonova.operations.delete import DELETE, DeleteServer
from kilonova.operations.host_query import ask_host
from kilonova.operations.options import OperationOptions
from kilonova.operations.password import CHANGE_PASSWORD, ChangePassword
from kilonova.operations.place import PLACE, PlaceServer
from kilonova.operations.reboot import HARD_REBOOT_SERVER, SOFT_REBOOT_SERVER, RebootServer
from kilonova.operations.server_images import describe_image, is_image_made
from kilonova.operations.shelve import SHELVE, shelve_request
from kilonova.operations.snapshot import SNAPSHOT, SnapshotServer
from kilonova.operations.soft_delete import SOFT_DELETE, SoftDeleteServer
from kilonova.operations.stop import STOP, StopServer, grace_of
from kilonova.services.image import NewImage

log = structlog.get_logger(__name__)

CONSOLE_LIMIT = 102400
"""Bytes of console output that are kept in view."""

TURN_LIMIT = 60.0
"""Seconds that a request waits for the end of an operation that no state of the server shows."""
HIDES_LOCK = ("restore", "changePassword")
"""Actions that a locked server refuses with the words for an invalid state. Spec: API-064."""
IMAGE_LIMIT = 10.0
"""Seconds that the record of a new image is waited for. It is made even if that takes longer."""

END_LIMIT = 120.0
"""Seconds that a request waits for the end of the operation that it asked for."""

FIRST_LOOK, LONGEST_PAUSE = 0.01, 0.5
"""Seconds between looks at an operation whose end is waited for."""


class ComputeOperations:
    """Accepts operations on servers.

    Args:
        wake_api: a server waits to be placed. wake_cell: a cell's journal has work; given the cell's name and
            the operation that was asked to end, if any.
    """

    def __init__(
        self, cells: Cells, bus: Bus, clock: Clock, options: OperationOptions, *,
        wake_api: Callable[[str | None], None], wake_cell: Callable[[str, str | None], None],
    ) -> None:
        self._cells = cells
        self._bus = bus
        self._clock = clock
        self._options = options
        self._wake_api = wake_api
        self._wake_cell = wake_cell

    async def create(self, context: RequestContext, requests: list[BuildRequest]) -> None:
        """One transaction: mapping, request spec, build request, and the operation that places the server."""
        def accept(conn: sa.Connection) -> None:
            tx = Tx(conn, self._clock.now())
            build_requests.accept(conn, requests)
            for request in requests:
                submit.submit(
                    tx, api_journal, PLACE, request.instance.uuid, PlaceServer(request=request), _asked_by(context)
                )

        await self._cells.api.write(accept)
        self._wake_api(None)

    async def delete(self, context: RequestContext, server: Located, *, force: bool = False) -> None:
        _respect_lock(context, server)
        if server.cell is None:
            if await self._discard(server.instance.uuid):
                return
            server = await self._cells.locate(server.instance.uuid)
            if server.cell is None:
                raise InstanceNotFound(server.instance.uuid)
        instance = server.instance
        soft = self._options.reclaim_instance_interval > 0 and instance.launched_at is not None
        if soft and not force and instance.task_state is not TaskState.DELETING:
            grace = grace_of(instance, self._options)
            request = SoftDeleteServer(grace=grace, interval=self._options.shutdown_retry_interval)
            await self._submit(context, server, SOFT_DELETE, request)
        else:
            await self._submit(context, server, DELETE, DeleteServer())

    async def _discard(self, uuid_: str) -> bool:
        """Delete a server that no cell has yet: one atomic step. Spec: DEL-46, DEL-49."""
        def discard(conn: sa.Connection) -> str | None:
            if not build_requests.discard(conn, uuid_):
                return None
            placing = api_journal.holder(conn, uuid_)
            if placing is None:
                return ""
            api_journal.request_cancel(conn, placing[0].id, "the server was deleted", self._clock.now())
            return placing[0].id

        placing = await self._cells.api.write(discard)
        if placing:
            self._wake_api(placing)
        return placing is not None

    async def stop(self, context: RequestContext, server: Located, *, clean: bool = True) -> None:
        grace = grace_of(server.instance, self._options) if clean else 0.0
        request = StopServer(grace=grace, interval=self._options.shutdown_retry_interval)
        await self.ask(context, server, STOP, request)

    async def ask(
        self, context: RequestContext, server: Located, definition: Operation, request: msgspec.Struct
    ) -> None:
        if definition.action in HIDES_LOCK and _is_locked(context, server):
            raise InstanceNeverLaunched(server.instance.uuid, definition.action)
        _respect_lock(context, server)
        await self._submit(context, server, definition, request)

    async def ask_and_wait(
        self, context: RequestContext, server: Located, definition: Operation, request: msgspec.Struct
    ) -> OperationRecord:
        """The operation goes on by its journal, whether or not anybody waits for it."""
        _respect_lock(context, server)
        submission = await self._submit(context, server, definition, request)
        assert server.cell is not None
        ended = await self._end_of(server.cell, submission.record.id, END_LIMIT)
        if ended is None:
            raise KilonovaError(
                f"The {definition.name} of instance {server.instance.uuid} has not ended within {END_LIMIT:.0f} s.",
                hint="it goes on; the actions of the server tell how it ends",
            )
        if ended.state is not OperationState.SUCCEEDED:
            raise _as_error(ended)
        return ended

    async def reboot(self, context: RequestContext, server: Located, *, hard: bool) -> None:
        definition = HARD_REBOOT_SERVER if hard else SOFT_REBOOT_SERVER
        wait = 0.0 if hard else self._options.wait_soft_reboot_seconds
        await self.ask(context, server, definition, RebootServer(wait=wait))

    async def create_image(
        self, context: RequestContext, server: Located, name: str, metadata: dict[str, str]
    ) -> str:
        image = self._image(context, server, name, "snapshot", metadata)
        await self._make_image(context, server, SNAPSHOT, SnapshotServer(image=image))
        return image.id

    async def create_backup(
        self, context: RequestContext, server: Located, name: str, metadata: dict[str, str], *, backup_type: str,
        rotation: int | None,
    ) -> str:
        image = self._image(context, server, name, "backup", {**metadata, "backup_type": backup_type})
        request = BackupServer(image=image, backup_type=backup_type, rotation=rotation)
        await self._make_image(context, server, BACKUP, request)
        return image.id

    async def shelve(self, context: RequestContext, server: Located) -> None:
        await self.ask(context, server, SHELVE, shelve_request(context, server.instance, self._options))

    def _image(
        self, context: RequestContext, server: Located, name: str, kind: str, metadata: dict[str, str]
    ) -> NewImage:
        return describe_image(
            context, server.instance, self._options, image_id=str(uuid.uuid4()), name=name, kind=kind,
            metadata=metadata,
        )

    async def _make_image(
        self, context: RequestContext, server: Located, definition: Operation, request: msgspec.Struct
    ) -> None:
        """Accept it (a locked server obeys, API-124), and wait until the record of the image exists or could not be
        made. Spec: SNP-01."""
        operation = (await self._submit(context, server, definition, request, alone=True)).record.id
        assert server.cell is not None
        give_up = self._clock.monotonic() + IMAGE_LIMIT
        while self._clock.monotonic() < give_up:
            record = await server.cell.database.read(lambda conn: cell_journal.get(conn, operation))
            if record is None or is_image_made(record):
                return
            if record.failure is not None:
                raise _as_error(record)
            await self._clock.sleep(FIRST_LOOK)

    async def reset_state(self, context: RequestContext, server: Located, *, active: bool) -> None:
        """An operation that works on the server has lost it: it is asked to end and will leave the states alone.

        Spec: API-141."""
        if server.cell is None:
            raise InstanceNotReady(server.instance.uuid)
        now = self._clock.now()
        subject = server.instance.uuid

        def reset(conn: sa.Connection) -> None:
            holder = cell_journal.holder(conn, subject)
            if holder is not None:
                cell_journal.request_cancel(conn, holder[0].id, "the state was reset", now)
            state = VmState.ACTIVE if active else VmState.ERROR
            instances.update(conn, subject, now=now, vm_state=state, task_state=None)
            done = OperationRecord(
                id=str(uuid.uuid4()), kind="reset-state", version=1, subject=subject,
                state=OperationState.SUCCEEDED, exclusive=False, created_at=now, updated_at=now, finished_at=now,
                asker=_asked_by(context),
            )
            cell_journal.insert(conn, done, wake_at=None)

        await server.cell.database.write(reset)

    async def lock(self, context: RequestContext, server: Located, reason: str | None) -> None:
        owner = context.project_id == server.instance.project_id
        if owner and server.instance.locked_by is not None:
            return
        await self._change(server, locked_by="owner" if owner else "admin", locked_reason=reason)

    async def unlock(self, context: RequestContext, server: Located) -> None:
        await self._change(server, locked_by=None, locked_reason=None)

    async def _change(self, server: Located, **changes: Any) -> None:
        """Change fields of the record that no operation owns."""
        uuid_, now = server.instance.uuid, self._clock.now()
        if server.cell is None:
            def change_request(conn: sa.Connection) -> bool:
                request = build_requests.get(conn, uuid_)
                if request is None:
                    return False
                request.instance = msgspec.structs.replace(request.instance, **changes)
                build_requests.update(conn, uuid_, request)
                return True

            if await self._cells.api.write(change_request):
                return
            server = await self._cells.locate(uuid_)
        if server.cell is None:
            raise InstanceNotFound(uuid_)
        await server.cell.database.write(lambda conn: instances.update(conn, uuid_, now=now, **changes))

    async def _submit(
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
                tx, cell_journal, definition, instance.uuid, request, _asked_by(context), operation_id=id_
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
                if not _is_waited_for(busy.holder) or await self._end_of(cell, busy.holder.id, left) is None:
                    current = await cell.database.read(lambda conn: instances.get(conn, instance.uuid))
                    stored = current.task_state.value if current.task_state else "None"
                    raise InstanceInvalidState(instance.uuid, action, "task_state", stored) from None
            else:
                self._wake_cell(cell.name, submission.preempted)
                return submission

    async def _end_of(self, cell: Cell, operation_id: str, limit: float) -> OperationRecord | None:
        """Wait for the end of an operation; None if it has not come within `limit` seconds, or needs an operator."""
        give_up, pause = self._clock.monotonic() + limit, FIRST_LOOK
        while True:
            record = await cell.database.read(lambda conn: cell_journal.get(conn, operation_id))
            if record is None or record.state is OperationState.STRANDED or self._clock.monotonic() >= give_up:
                return None
            if record.state in TERMINAL:
                return record
            await self._clock.sleep(pause)
            pause = min(pause * 1.5, LONGEST_PAUSE)

    async def tell(self, server: Located, event: ExternalEvent) -> None:
        cell, now = server.cell, self._clock.now()
        if cell is None:
            raise InstanceNotReady(server.instance.uuid)
        if await cell.database.write(lambda conn: cell_journal.add_event(conn, event, now)):
            self._wake_cell(cell.name, None)
        else:
            log.debug("nobody waits for an event", instance=event.subject, event_key=event.key)

    async def change_password(self, context: RequestContext, server: Located, password: str) -> None:
        """Spec: PWD-01 to PWD-14. A locked server is refused with another text than elsewhere. Spec: API-064."""
        instance, cell = server.instance, server.cell
        if instance.locked_by is not None and not context.is_admin:
            raise Conflict(f"Instance {instance.uuid} is in an invalid state for 'changePassword'")
        asked = ChangePassword(key=str(uuid.uuid4()))
        change = (await self._submit(context, server, CHANGE_PASSWORD, asked)).record
        assert cell is not None
        if msgspec.json.decode(change.request, type=ChangePassword) != asked:
            raise InstanceInvalidState(
                instance.uuid, "changePassword", "task_state", TaskState.UPDATING_PASSWORD.value
            )
        failed = await password_setting.hand_over(self._bus, server, password)
        await password_setting.tell(cell, self._clock, change, asked.key, failed)
        self._wake_cell(cell.name, None)
        await self._end_of(cell, change.id, END_LIMIT)
        if failed is not None:
            raise failed

    async def diagnostics(self, server: Located) -> Diagnostics:
        return await diagnostics.common(self._bus, server)

    async def own_diagnostics(self, server: Located) -> OwnDiagnostics:
        return await diagnostics.own(self._bus, server)

    async def console_output(self, context: RequestContext, server: Located, lines: int | None) -> str:
        instance = server.instance
        if instance.host is None:
            raise InstanceNotReady(instance.uuid)
        if lines == 0:
            return ""
        query = ConsoleQuery(uuid=instance.uuid, limit=CONSOLE_LIMIT)
        answer = await ask_host(self._bus, instance.host, query)
        text = answer.console.decode("utf-8", "replace")
        if lines is None or lines < 0:
            return text
        return "\n".join(text.split("\n")[-lines:])


_FAILURES: dict[int, type[KilonovaError]] = {
    400: InvalidInput, 403: Forbidden, 404: NotFound, 409: Conflict, 501: NotSupported,
}


def _as_error(record: OperationRecord) -> KilonovaError:
    """What an operation failed with, for who waited for it."""
    failure = record.failure
    if failure is None:
        return KilonovaError(f"Operation {record.kind} {record.id} is {record.state.value}.")
    return _FAILURES.get(failure.status, KilonovaError)(failure.message)


def _is_waited_for(holder: OperationRecord) -> bool:
    definition = CELL_OPERATIONS.find(holder.kind, holder.version)
    return definition is not None and definition.waited_for


def _asked_by(context: RequestContext) -> Asker:
    return Asker(project_id=context.project_id or "", user_id=context.user_id, request_id=context.request_id)


def _is_locked(context: RequestContext, server: Located) -> bool:
    return server.instance.locked_by is not None and not context.is_admin


def _respect_lock(context: RequestContext, server: Located) -> None:
    """A locked server obeys only administrators. Spec: API-064."""
    if _is_locked(context, server):
        raise InstanceLocked(server.instance.uuid)
