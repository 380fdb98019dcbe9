"""Settling differences whose right end is certain: removing what has no owner, finishing what was forgotten.

Every call looks again, in the transaction that changes something where there is one, and leaves alone what has
got an owner since. A server that is gone never comes back under its UUID, so that what has lost its owner stays
without one.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable

import msgspec
import sqlalchemy as sa

from kilonova.audit.accelerators import MAKERS
from kilonova.audit.differences import Difference, Kind
from kilonova.audit.look import Looker
from kilonova.audit.sources import AcceleratorLedger, ImageLedger, PortLedger
from kilonova.audit.volumes import VolumeLedger
from kilonova.cells.registry import Cells
from kilonova.db import block_devices, build_requests, console_tokens, instances, secrets
from kilonova.db.block_devices import block_device_mappings
from kilonova.db.journal import api_journal, cell_journal
from kilonova.db.outbox import api_outbox, cell_outbox
from kilonova.db.placement import claims
from kilonova.db.placement.port_devices import drop_device
from kilonova.db.placement.tables import allocations, inventories, providers, touch
from kilonova.domain.clock import Clock
from kilonova.domain.errors import Conflict, InstanceNotFound, KilonovaError
from kilonova.domain.instance import Fault, Instance
from kilonova.domain.operation import Asker, OperationRecord, OperationState
from kilonova.domain.states import TaskState, VmState
from kilonova.engine import submit
from kilonova.engine.operation import Tx
from kilonova.operations.place import PLACE, PlaceServer
from kilonova.operations.remove_leftover import REMOVE_LEFTOVER, RemoveLeftover
from kilonova.operations.tidy import TIDY, TidyServer
from kilonova.shapes.port_devices import PORT

UNFINISHED = (
    TaskState.SCHEDULING, TaskState.NETWORKING, TaskState.BLOCK_DEVICE_MAPPING, TaskState.SPAWNING,
)
"""Tasks of a server that was never ready."""


class Healed(msgspec.Struct, frozen=True, kw_only=True):
    """What was done about a difference.

    Args:
        done: whether it was settled, or is being settled by `operation`. why: if not, why not.
    """

    difference: Difference
    done: bool
    why: str = ""
    operation: str | None = None


class Healer:
    """Settles differences.

    Args:
        retention: seconds after which a notification is given up.
        wake_api, wake_cell: tell runners that there is work.
    """

    def __init__(
        self, cells: Cells, looker: Looker, clock: Clock, *, ports: PortLedger | None, images: ImageLedger | None,
        accelerators: AcceleratorLedger | None, volumes: VolumeLedger | None, retention: float,
        wake_api: Callable[[], None], wake_cell: Callable[[str], None],
    ) -> None:
        self._cells = cells
        self._looker = looker
        self._clock = clock
        self._ports = ports
        self._images = images
        self._volumes = volumes
        self._retention = retention
        self._accelerators = accelerators
        self._wake_api = wake_api
        self._wake_cell = wake_cell
        self._ways: dict[Kind, Callable[[Difference], Awaitable[str | None]]] = {
            Kind.GUEST_WITHOUT_SERVER: self._remove_from_host,
            Kind.DISKS_WITHOUT_SERVER: self._remove_from_host,
            Kind.ALLOCATION_WITHOUT_SERVER: self._give_back,
            Kind.RESCUE_LEFT: self._tidy,
            Kind.RESIZE_LEFT: self._tidy,
            Kind.DISKS_PUT_ASIDE: self._tidy,
            Kind.SNAPSHOT_LEFT: self._tidy,
            Kind.ALLOCATION_LEFT: self._end_move,
            Kind.SECRET_WITHOUT_SERVER: self._forget_secrets,
            Kind.CONSOLE_TOKEN_WITHOUT_SERVER: self._revoke_tokens,
            Kind.NOTIFICATION_WITHOUT_SINK: self._drop_notifications,
            Kind.PORT_DEVICE_LEFT: self._drop_device,
            Kind.USED_COUNTER: self._count_anew,
            Kind.PORT_WITHOUT_SERVER: self._release_ports,
            Kind.ACCELERATOR_REQUEST_LEFT: self._discard_request,
            Kind.IMAGE_DATA_WITHOUT_IMAGE: self._discard_image,
            Kind.VOLUME_EXPORT_LEFT: self._settle_volume,
            Kind.VOLUME_EXPORT_MISSING: self._settle_volume,
            Kind.VOLUME_SNAPSHOT_LEFT: self._settle_volume,
            Kind.VOLUME_DATA_LEFT: self._settle_volume,
            Kind.ATTACHMENT_WITHOUT_SERVER: self._end_attachment,
            Kind.ATTACHMENT_LEFT: self._end_attachment,
            Kind.BLOCK_DEVICE_WITHOUT_SERVER: self._forget_block_device,
            Kind.BUILD_REQUEST_FORGOTTEN: self._place,
            Kind.MAPPING_WITHOUT_SERVER: self._drop_mapping,
            Kind.REQUEST_SPEC_WITHOUT_SERVER: self._forget_spec,
            Kind.TASK_WITHOUT_OPERATION: self._clear_task,
        }

    async def heal(self, difference: Difference) -> Healed:
        """Settle one difference if that is safe."""
        way = self._ways.get(difference.kind)
        if way is None:
            return Healed(difference=difference, done=False, why=difference.advice)
        try:
            return Healed(difference=difference, done=True, operation=await way(difference))
        except KilonovaError as error:
            return Healed(difference=difference, done=False, why=str(error))

    async def _require_gone(self, server: str) -> None:
        """Raises Conflict: the server exists, or an operation works on what was its own."""
        active = await self._looker.active(server)
        if active:
            raise Conflict(f"Operation {active[0].kind} {active[0].id} works on {server} now.")
        if await self._record(server) is not None:
            raise Conflict(f"Server {server} exists.")
        if await self._cells.api.read(lambda conn: build_requests.get(conn, server)) is not None:
            raise Conflict(f"Server {server} is waiting for a host.")

    async def _record(self, server: str) -> Instance | None:
        for cell in self._cells.all:
            try:
                return await cell.database.read(lambda conn: instances.get(conn, server))
            except InstanceNotFound:
                continue
        return None

    async def _remove_from_host(self, difference: Difference) -> str:
        server = difference.subject
        record = await self._record(server)
        if record is not None and record.host is not None:
            raise Conflict(f"Server {server} is recorded on host {record.host}.")
        cell = self._cells.named(difference.cell)

        def accept(conn: sa.Connection) -> str:
            request = RemoveLeftover(host=difference.host)
            tx = Tx(conn, self._clock.now())
            return submit.submit(tx, cell_journal, REMOVE_LEFTOVER, server, request, Asker()).record.id

        operation = await cell.database.write(accept)
        self._wake_cell(cell.name)
        return operation

    async def _give_back(self, difference: Difference) -> None:
        await self._require_gone(difference.subject)
        await self._cells.api.write(lambda conn: claims.release(conn, difference.object))

    async def _tidy(self, difference: Difference) -> str:
        """The operation looks for itself, and for all that there is of the kind; so one is enough for a server."""
        cell, server = self._cells.named(difference.cell), difference.subject

        def accept(conn: sa.Connection) -> str:
            holder = cell_journal.holder(conn, server)
            if holder is not None and holder[0].kind != TIDY.name:
                raise Conflict(f"Operation {holder[0].kind} {holder[0].id} works on {server} now.")
            if holder is not None:
                return holder[0].id
            tx = Tx(conn, self._clock.now())
            return submit.submit(tx, cell_journal, TIDY, server, TidyServer(), Asker()).record.id

        operation = await cell.database.write(accept)
        self._wake_cell(cell.name)
        return operation

    async def _end_move(self, difference: Difference) -> None:
        """A move that begins now holds what it holds under another name."""
        active = await self._looker.active(difference.subject)
        if active:
            raise Conflict(f"Operation {active[0].kind} {active[0].id} works on {difference.subject} now.")
        await self._cells.api.write(lambda conn: claims.release(conn, difference.object))

    async def _forget_secrets(self, difference: Difference) -> None:
        await self._require_gone(difference.subject)
        database = self._cells.named(difference.cell).database
        await database.write(lambda conn: secrets.forget(conn, difference.object))

    async def _revoke_tokens(self, difference: Difference) -> None:
        await self._require_gone(difference.subject)
        database = self._cells.named(difference.cell).database
        await database.write(lambda conn: console_tokens.revoke(conn, difference.object))

    async def _drop_notifications(self, difference: Difference) -> None:
        name, _, sink = difference.object.partition("/")
        outbox = api_outbox if name == "api" else cell_outbox
        database = self._cells.api if name == "api" else self._cells.named(name).database
        before = self._clock.now() - self._retention
        await database.write(lambda conn: outbox.abandon(conn, sink, before))

    async def _drop_device(self, difference: Difference) -> None:
        """An attach of the port that begins now holds another, or waits for this to be over."""
        server, _, port_id = difference.object.partition("/")
        active = await self._looker.active(server)
        record = await self._record(server)
        if active or (record is not None and any(vif.id == port_id for vif in record.network_info)):
            raise Conflict(f"Server {server} is being changed, or has port {port_id} now.")
        await self._cells.api.write(lambda conn: drop_device(conn, server, PORT + port_id))

    async def _count_anew(self, difference: Difference) -> None:
        provider, _, resource_class = difference.object.partition("/")

        def count(conn: sa.Connection) -> None:
            id_ = conn.execute(sa.select(providers.c.id).where(providers.c.uuid == provider).with_for_update()).scalar()
            if id_ is None:
                return
            used = sa.select(sa.func.coalesce(sa.func.sum(allocations.c.used), 0)).where(
                allocations.c.provider_id == id_, allocations.c.resource_class == resource_class
            )
            conn.execute(
                sa.update(inventories)
                .where(inventories.c.provider_id == id_, inventories.c.resource_class == resource_class)
                .values(used=used.scalar_subquery())
            )
            touch(conn, [id_])

        await self._cells.api.write(count)

    async def _release_ports(self, difference: Difference) -> None:
        await self._require_gone(difference.subject)
        assert self._ports is not None
        await self._ports.release(difference.subject)

    async def _discard_request(self, difference: Difference) -> None:
        """What an operation makes from now on has another id."""
        for active in await self._looker.active():
            if active.subject == difference.subject or (not difference.subject and active.kind in MAKERS):
                raise Conflict(f"Operation {active.kind} {active.id} works on {active.subject} now.")
        record = await self._record(difference.subject) if difference.subject else None
        if record is not None and difference.object in record.accelerators:
            raise Conflict(f"Server {record.uuid} has the request now.")
        assert self._accelerators is not None
        await self._accelerators.discard((difference.object,))

    async def _discard_image(self, difference: Difference) -> None:
        assert self._images is not None
        if not await self._images.discard(difference.object):
            raise Conflict(f"Image {difference.object} exists, or its data is gone.")

    async def _settle_volume(self, difference: Difference) -> None:
        assert self._volumes is not None
        if not await self._volumes.settle(difference):
            raise Conflict(f"{difference.object} of {difference.host} is in order by now, or is being worked on.")

    async def _end_attachment(self, difference: Difference) -> None:
        """An operation that begins now may take it over: records are read after the operations."""
        server, attachment = difference.subject, difference.object
        named = sa.select(block_device_mappings.c.uuid).where(block_device_mappings.c.attachment_id == attachment)
        active = await self._looker.active(server)
        records = [await cell.database.read(lambda conn: conn.execute(named).first()) for cell in self._cells.all]
        if active or any(records):
            raise Conflict(f"Server {server} is being changed, or has attachment {attachment} now.")
        assert self._volumes is not None
        await self._volumes.end(attachment)

    async def _forget_block_device(self, difference: Difference) -> None:
        """Its attachment, if there is one, is found by itself."""
        await self._require_gone(difference.subject)
        database = self._cells.named(difference.cell).database
        await database.write(lambda conn: block_devices.remove(conn, difference.object))

    async def _place(self, difference: Difference) -> str | None:
        def accept(conn: sa.Connection) -> str | None:
            request = build_requests.get(conn, difference.subject)
            if request is None:
                return None
            tx = Tx(conn, self._clock.now())
            asker = Asker(project_id=request.instance.project_id, user_id=request.instance.user_id)
            return submit.submit(
                tx, api_journal, PLACE, difference.subject, PlaceServer(request=request), asker
            ).record.id

        operation = await self._cells.api.write(accept)
        self._wake_api()
        return operation

    async def _drop_mapping(self, difference: Difference) -> None:
        mappings, requests = build_requests.instance_mappings, build_requests.build_requests
        drop = sa.delete(mappings).where(
            mappings.c.uuid == difference.object, mappings.c.cell.is_(None),
            ~sa.exists().where(requests.c.uuid == mappings.c.uuid),
        )
        await self._cells.api.write(lambda conn: conn.execute(drop).rowcount)

    async def _forget_spec(self, difference: Difference) -> None:
        await self._require_gone(difference.subject)
        await self._cells.api.write(lambda conn: build_requests.forget(conn, difference.object))

    async def _clear_task(self, difference: Difference) -> str:
        """The server keeps its state, or is in ERROR if it was never ready; its history tells who did that."""
        server, operation = difference.subject, str(uuid.uuid4())

        def clear(conn: sa.Connection) -> None:
            if cell_journal.holder(conn, server) is not None or cell_journal.queued(conn, server) is not None:
                raise Conflict(f"An operation works on {server} now.")
            instance, now = instances.get(conn, server), self._clock.now()
            task = instance.task_state
            unfinished = instance.vm_state is VmState.BUILDING or task in UNFINISHED
            state = VmState.ERROR if unfinished else instance.vm_state
            instances.update(conn, server, now=now, task=(task,), task_state=None, vm_state=state)
            message = f"Nothing was working on the server in {(task or instance.vm_state).value}."
            instances.add_fault(conn, server, operation, Fault(code=500, message=message, created_at=now))
            cell_journal.insert(conn, OperationRecord(
                id=operation, kind="heal", version=1, subject=server, state=OperationState.SUCCEEDED,
                exclusive=False, created_at=now, updated_at=now, finished_at=now,
            ), wake_at=None)

        await self._cells.named(difference.cell).database.write(clear)
        return operation
