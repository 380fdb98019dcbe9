"""Asking for operations: the implementation of `Compute` over the journals."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
import structlog

from kilonova.agent.reports import ConsoleQuery
from kilonova.bus.protocol import Bus
from kilonova.cells.registry import Cell, Cells, Located
from kilonova.db import build_requests, instances
from kilonova.db.journal import api_journal, cell_journal
from kilonova.db.outbox import api_outbox, cell_outbox
from kilonova.domain.clock import Clock
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import InstanceNotFound, InstanceNotReady, NoValidHost
from kilonova.domain.instance import BuildRequest, Instance
from kilonova.domain.operation import ExternalEvent, OperationRecord, OperationState
from kilonova.domain.states import TaskState, VmState
from kilonova.engine import submit
from kilonova.engine.operation import Operation, Tx
from kilonova.hypervisor.diagnostics import Diagnostics, OwnDiagnostics
from kilonova.notifications.changes import tell_action, tell_discarded, tell_members
from kilonova.operations import diagnostics, told
from kilonova.operations.acceptance import Acceptance, asked_by, respect_lock
from kilonova.operations.delete import DELETE, DeleteServer
from kilonova.operations.host_query import ask_host
from kilonova.operations.image_asking import ImageAsking
from kilonova.operations.options import OperationOptions
from kilonova.operations.password_setting import PasswordSetting
from kilonova.operations.place import PLACE, PlaceServer
from kilonova.operations.precache_images import PRECACHE_IMAGES, PrecacheImages
from kilonova.operations.reboot import HARD_REBOOT_SERVER, SOFT_REBOOT_SERVER, RebootServer
from kilonova.operations.refused_moves import Move, refuse_move
from kilonova.operations.shelve import SHELVE, UNSHELVE, UnshelveServer, shelve_request
from kilonova.operations.shelve_volumes import SHELVE_VOLUMES, shelve_on_volumes
from kilonova.operations.soft_delete import SOFT_DELETE, SoftDeleteServer
from kilonova.operations.stop import STOP, StopServer, grace_of
from kilonova.operations.tidy import TIDY, after_reset
from kilonova.operations.unshelve_offloaded import UNSHELVE_OFFLOADED, UnshelveOffloaded
from kilonova.services.placement import Pin
from kilonova.shapes.resources import is_volume_backed

log = structlog.get_logger(__name__)

CONSOLE_LIMIT = 102400
"""Bytes of console output that are kept in view."""


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
        self._acceptance = Acceptance(clock, wake_cell)
        self._images = ImageAsking(self._acceptance, clock, options)
        self._passwords = PasswordSetting(self._acceptance, bus, clock)

    async def create(self, context: RequestContext, requests: list[BuildRequest]) -> None:
        """One transaction: mapping, request spec, build request, and the operation that places the server."""
        def accept(conn: sa.Connection) -> None:
            tx = Tx(conn, self._clock.now())
            build_requests.accept(conn, requests)
            tell_members(conn, requests, now=tx.now, asker=asked_by(context))
            for request in requests:
                submit.submit(
                    tx, api_journal, PLACE, request.instance.uuid, PlaceServer(request=request), asked_by(context)
                )

        await self._cells.api.write(accept)
        self._wake_api(None)

    async def delete(self, context: RequestContext, server: Located, *, force: bool = False) -> None:
        respect_lock(context, server, "delete")
        if server.cell is None:
            if await self._discard(context, server.instance, force=force):
                return
            server = await self._cells.locate(server.instance.uuid)
            if server.cell is None:
                raise InstanceNotFound(server.instance.uuid)
        instance = server.instance
        soft = self._options.reclaim_instance_interval > 0 and instance.launched_at is not None
        if soft and not force and instance.task_state is not TaskState.DELETING:
            grace = grace_of(instance, self._options)
            request = SoftDeleteServer(grace=grace, interval=self._options.shutdown_retry_interval)
            await self._acceptance.submit(context, server, SOFT_DELETE, request)
        else:
            forced = force and instance.host is None
            await self._acceptance.submit(context, server, DELETE, DeleteServer(forced=forced))

    async def _discard(self, context: RequestContext, instance: Instance, *, force: bool) -> bool:
        """Delete a server that no cell has yet: one atomic step. Spec: DEL-46, DEL-49, DEL-53."""
        uuid_ = instance.uuid

        def discard(conn: sa.Connection) -> str | None:
            if not build_requests.discard(conn, uuid_):
                return None
            tell_discarded(conn, instance, now=self._clock.now(), asker=asked_by(context), forced=force)
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
        await self._acceptance.ask(context, server, definition, request)

    async def ask_and_wait(
        self, context: RequestContext, server: Located, definition: Operation, request: msgspec.Struct
    ) -> OperationRecord:
        return await self._acceptance.ask_and_wait(context, server, definition, request)

    async def ask_and_wait_for(
        self, context: RequestContext, server: Located, definition: Operation, request: msgspec.Struct, step: str
    ) -> OperationRecord:
        return await self._acceptance.ask_and_wait_for(context, server, definition, request, step)

    async def reboot(self, context: RequestContext, server: Located, *, hard: bool) -> None:
        definition = HARD_REBOOT_SERVER if hard else SOFT_REBOOT_SERVER
        wait = 0.0 if hard else self._options.wait_soft_reboot_seconds
        await self.ask(context, server, definition, RebootServer(wait=wait))

    async def create_image(
        self, context: RequestContext, server: Located, name: str, metadata: dict[str, str]
    ) -> str:
        return await self._images.create_image(context, server, name, metadata)

    async def create_backup(
        self, context: RequestContext, server: Located, name: str, metadata: dict[str, str], *, backup_type: str,
        rotation: int | None,
    ) -> str:
        return await self._images.create_backup(
            context, server, name, metadata, backup_type=backup_type, rotation=rotation
        )

    async def shelve(self, context: RequestContext, server: Located) -> None:
        if is_volume_backed(server.instance.block_devices):
            await self.ask(context, server, SHELVE_VOLUMES, shelve_on_volumes(server.instance, self._options))
        else:
            await self.ask(context, server, SHELVE, shelve_request(context, server.instance, self._options))

    async def cache_images(
        self, context: RequestContext, cell: Cell, aggregate: str, hosts: Sequence[str], images: Sequence[str]
    ) -> None:
        """As many operations as hosts are to fetch at once, each with its share of the hosts."""
        now, lanes = self._clock.now(), max(1, self._options.precache_concurrency)

        def accept(conn: sa.Connection) -> None:
            for share in (tuple(hosts[lane::lanes]) for lane in range(lanes)):
                if share:
                    request = PrecacheImages(hosts=share, images=tuple(images))
                    submit.submit(
                        Tx(conn, now), cell_journal, PRECACHE_IMAGES, aggregate, request, asked_by(context)
                    )

        await cell.database.write(accept)
        self._acceptance.wake(cell)

    async def unshelve(
        self, context: RequestContext, server: Located, *, host: str | None = None, pin: Pin | None = None
    ) -> None:
        if server.instance.vm_state is not VmState.SHELVED_OFFLOADED:
            await self.ask(context, server, UNSHELVE, UnshelveServer())
            return
        request = UnshelveOffloaded(
            host=host, pin=pin, wiring_timeout=self._options.vif_plugging_timeout,
            wiring_is_fatal=self._options.vif_plugging_is_fatal, binding_timeout=self._options.arq_binding_timeout,
        )
        await self.ask(context, server, UNSHELVE_OFFLOADED, request)

    async def refuse_move(self, context: RequestContext, server: Located, move: Move) -> NoValidHost:
        return await refuse_move(self._clock, context, server, move)

    async def reset_state(self, context: RequestContext, server: Located, *, active: bool) -> None:
        """An operation that works on the server has lost it: it is asked to end and will leave the states alone. What
        the server then holds beside what it runs on is given back by an operation that follows. Spec: API-141."""
        if server.cell is None:
            raise InstanceNotReady(server.instance.uuid)
        now = self._clock.now()
        subject = server.instance.uuid

        def reset(conn: sa.Connection) -> None:
            tx, holder = Tx(conn, now), cell_journal.holder(conn, subject)
            follows = after_reset(tx, instances.get(conn, subject))
            state = VmState.ACTIVE if active else VmState.ERROR
            instances.update(conn, subject, now=now, vm_state=state, task_state=None)
            if holder is not None:
                cell_journal.request_cancel(conn, holder[0].id, "the state was reset", now)
            if follows is not None and cell_journal.queued(conn, subject) is None:
                take_over = submit.submit if holder is None else submit.follow
                take_over(tx, cell_journal, TIDY, subject, follows, asked_by(context), operation_id=str(uuid.uuid4()))
            done = OperationRecord(
                id=str(uuid.uuid4()), kind="reset-state", version=1, subject=subject,
                state=OperationState.SUCCEEDED, exclusive=False, created_at=now, updated_at=now, finished_at=now,
                asker=asked_by(context),
            )
            cell_journal.insert(conn, done, wake_at=None)

        await server.cell.database.write(reset)
        self._wake_cell(server.cell.name, None)

    async def lock(self, context: RequestContext, server: Located, reason: str | None) -> None:
        owner = context.project_id == server.instance.project_id
        if owner and server.instance.locked_by is not None:
            return
        await self._change(
            context, server, "lock", locked_by="owner" if owner else "admin", locked_reason=reason
        )

    async def unlock(self, context: RequestContext, server: Located) -> None:
        await self._change(context, server, "unlock", locked_by=None, locked_reason=None)

    async def _change(self, context: RequestContext, server: Located, event: str, **changes: Any) -> None:
        """Change fields of the record that no operation owns. event: what others are told."""
        uuid_, now, asker = server.instance.uuid, self._clock.now(), asked_by(context)
        if server.cell is None:
            def change_request(conn: sa.Connection) -> bool:
                request = build_requests.get(conn, uuid_)
                if request is None:
                    return False
                request.instance = msgspec.structs.replace(request.instance, **changes)
                build_requests.update(conn, uuid_, request)
                tell_action(conn, api_outbox, event, request.instance, now=now, asker=asker)
                return True

            if await self._cells.api.write(change_request):
                return
            server = await self._cells.locate(uuid_)
        if server.cell is None:
            raise InstanceNotFound(uuid_)

        def change_record(conn: sa.Connection) -> None:
            changed = instances.update(conn, uuid_, now=now, **changes)
            tell_action(conn, cell_outbox, event, changed, now=now, asker=asker)

        await server.cell.database.write(change_record)

    async def tell(self, server: Located, event: ExternalEvent) -> None:
        cell, now = server.cell, self._clock.now()
        if cell is None:
            raise InstanceNotReady(server.instance.uuid)

        kept, work = await cell.database.write(lambda conn: told.take(Tx(conn, now), event))
        if kept or work:
            self._wake_cell(cell.name, None)

    async def change_password(self, context: RequestContext, server: Located, password: str) -> None:
        await self._passwords.change(context, server, password)

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
