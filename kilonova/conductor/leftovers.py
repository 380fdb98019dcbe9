"""Looking on hosts for what deleted servers and failed migrations have left there; each find becomes an operation.

A delete leaves nothing, and owes what it cannot do at once. What is found here came back in another way: with a host
that was restored from a backup, by hand, or from a move that broke.
"""

from __future__ import annotations

from uuid import uuid4

import msgspec
import sqlalchemy as sa
import structlog

from kilonova.agent.reports import Found, FoundQuery
from kilonova.bus.protocol import Bus
from kilonova.conductor.overdue import Wake
from kilonova.db import instances, migration_records, services
from kilonova.db.journal import cell_journal
from kilonova.domain.errors import InstanceNotFound, KilonovaError
from kilonova.domain.instance import Instance
from kilonova.domain.migration import Migration
from kilonova.domain.operation import Asker, OperationState
from kilonova.domain.states import GUEST_OFF
from kilonova.engine import submit
from kilonova.engine.operation import Operation, Tx
from kilonova.hypervisor.guest import GuestOnHost
from kilonova.operations.clean_migration import CLEAN_MIGRATION, CleanMigration
from kilonova.operations.deleted_guest import POWER_OFF_DELETED, REAP_DELETED, DeletedGuest
from kilonova.operations.environment import Environment
from kilonova.operations.host_query import ask_host
from kilonova.operations.remove_leftover import REMOVE_LEFTOVER, RemoveLeftover

log = structlog.get_logger(__name__)

DOWN_TIME = 60.0
"""Seconds of silence after which a host is not asked."""


class Leftovers:
    """The rounds over the hosts of a cell.

    Args:
        wake: there is work in the journal.
    """

    def __init__(self, environment: Environment, bus: Bus, wake: Wake) -> None:
        self._environment = environment
        self._options = environment.options
        self._database = environment.database
        self._bus = bus
        self._wake = wake

    # --- guests -----------------------------------------------------------------------------------

    async def guests(self) -> None:
        """Guests whose servers are deleted. Spec: PER-83 to PER-88, PER-92, PER-94."""
        for host in await self._hosts():
            found = await self._ask(host)
            for guest in found.guests if found is not None else ():
                await self._judge_guest(host, guest)

    async def _judge_guest(self, host: str, guest: GuestOnHost) -> None:
        server = await self._record(guest.uuid)
        if server is None:
            log.warning("guest belongs to no server of this cell", host=host, instance=guest.uuid, name=guest.name)
            return
        if not self._is_deleted(server, self._options.running_deleted_instance_timeout):
            return
        log.warning("guest of a deleted server", host=host, instance=guest.uuid, name=guest.name)
        match self._options.running_deleted_instance_action:
            case "shutdown" if guest.power_state not in GUEST_OFF:
                await self._submit(POWER_OFF_DELETED, guest.uuid, DeletedGuest(host=host))
            case "reap":
                await self._submit(REAP_DELETED, guest.uuid, DeletedGuest(host=host))

    # --- files ------------------------------------------------------------------------------------

    async def files(self) -> None:
        """Files of deleted servers that have no guest. Spec: PER-95 to PER-99."""
        for host in await self._hosts():
            found = await self._ask(host)
            if found is None:
                continue
            for uuid in sorted(set(found.disks) - {guest.uuid for guest in found.guests}):
                server = await self._record(uuid)
                if server is not None and self._is_deleted(server, self._options.instance_delete_interval):
                    await self._try(REMOVE_LEFTOVER, uuid, RemoveLeftover(host=host), host)

    async def _try(self, operation: Operation, uuid: str, request: msgspec.Struct, host: str | None) -> None:
        """Unless it has failed too often: then an operator has to look, to whom the audit shows it, too. Spec: PER-96,
        PER-97, PER-99."""
        before = await self._database.read(lambda conn: cell_journal.of_subject(conn, uuid))
        failed = [o for o in before if o.kind == operation.name and o.state is OperationState.FAILED]
        if len(failed) < self._options.maximum_instance_delete_attempts:
            await self._submit(operation, uuid, request)
        else:
            log.error("leftover of a deleted server stays", host=host, instance=uuid, attempts=len(failed))

    # --- migrations -------------------------------------------------------------------------------

    async def migrations(self) -> None:
        """Migrations that failed and whose servers are gone, one of each server in a round. Spec: PER-101, PER-102,
        PER-106 to PER-109."""
        seen: set[str] = set()
        for migration in await self._database.read(migration_records.in_error):
            if migration.instance_uuid not in seen:
                seen.add(migration.instance_uuid)
                await self._judge_migration(migration)

    async def _judge_migration(self, migration: Migration) -> None:
        uuid = migration.instance_uuid
        server = await self._record(uuid)
        if server is not None and not self._is_deleted(server, 0.0):
            return
        last = server.host if server is not None else None
        hosts = [
            host if host != last else None for host in dict.fromkeys((migration.source_compute, migration.dest_compute))
        ]
        if not any(hosts):
            return
        source, destination = (*hosts, None)[:2]
        request = CleanMigration(migration=migration.uuid, source=source, destination=destination)
        await self._try(CLEAN_MIGRATION, uuid, request, source or destination)

    # --- both -------------------------------------------------------------------------------------

    async def _hosts(self) -> list[str]:
        """Hosts that live."""
        now = self._environment.clock.now()
        known = await self._database.read(lambda conn: services.all_services(conn, binary=services.COMPUTE))
        return [one.host for one in known if one.up(now, DOWN_TIME)]

    async def _ask(self, host: str) -> Found | None:
        """What is on a host, None if it does not say. Spec: PER-84."""
        try:
            return (await ask_host(self._bus, host, FoundQuery())).found
        except KilonovaError as error:
            log.info("host did not say what it has", host=host, error=str(error))
            return None

    async def _record(self, uuid: str) -> Instance | None:
        try:
            return await self._database.read(lambda conn: instances.get(conn, uuid, deleted=True))
        except InstanceNotFound:
            return None

    def _is_deleted(self, server: Instance, age: float) -> bool:
        """Whether it has been deleted, not only softly, for so many seconds."""
        return server.deleted_at is not None and server.deleted_at <= self._environment.clock.now() - age

    async def _submit(self, operation: Operation, uuid: str, request: msgspec.Struct) -> None:
        """Nobody asked. What is busy, or has changed meanwhile, is left alone. Spec: PER-98, PER-108."""
        now = self._environment.clock.now()

        def accept(conn: sa.Connection) -> None:
            asker = Asker(request_id=f"req-{uuid4()}")
            submit.submit(Tx(conn, now), cell_journal, operation, uuid, request, asker)

        try:
            await self._database.write(accept)
        except KilonovaError as error:
            log.info("leftover left alone", operation=operation.name, instance=uuid, error=str(error))
        else:
            await self._wake(None)
