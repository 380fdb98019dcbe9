"""Healing what records say of interfaces, server by server, in case an event of the network service was lost."""

from __future__ import annotations

from functools import partial

import sqlalchemy as sa
import structlog

from kilonova.conductor.overdue import Wake
from kilonova.db import instances
from kilonova.db.journal import cell_journal
from kilonova.domain.errors import InstanceNotFound, KilonovaError
from kilonova.domain.instance import Instance
from kilonova.domain.operation import Asker
from kilonova.domain.states import TaskState, VmState
from kilonova.engine import submit
from kilonova.engine.operation import Tx
from kilonova.operations.bind_ports import BIND_PORTS, BindPorts, drifted
from kilonova.operations.environment import Environment
from kilonova.operations.interface_refresh import refresh_interfaces
from kilonova.operations.told import lost_port

log = structlog.get_logger(__name__)


class InterfaceHealing:
    """Takes one server of each host in a round, until all had their turn.

    Spec: PER-10 to PER-14, PER-17 to PER-21, PER-24.
    """

    def __init__(self, environment: Environment, wake: Wake) -> None:
        self._environment = environment
        self._database = environment.database
        self._wake = wake
        self._waiting: dict[str, list[str]] = {}

    async def heal(self) -> None:
        """One round."""
        hosts = await self._database.read(instances.hosts_in_use)
        self._waiting = {host: self._waiting.get(host, []) for host in hosts}
        for host in hosts:
            uuid = await self._next(host)
            if uuid is not None:
                await self._heal(uuid, host)

    async def _next(self, host: str) -> str | None:
        """The next server of a host that can be healed. The list is made anew when it was empty before, not when it
        becomes so, so that a round ends."""
        if not self._waiting[host]:
            self._waiting[host] = await self._database.read(lambda conn: _usable(conn, host))
        while self._waiting[host]:
            uuid = self._waiting[host].pop(0)
            try:
                server = await self._database.read(partial(instances.get, uuid=uuid))
            except InstanceNotFound:
                continue
            if server.host == host and server.task_state is not TaskState.DELETING:
                return uuid
        return None

    async def _heal(self, uuid: str, host: str) -> None:
        environment = self._environment
        try:
            if drifted(await environment.networks.ports_of(uuid), host):
                await self._bind(uuid, host)
            gone = await refresh_interfaces(self._database, environment.networks, environment.clock, uuid)
            work = await self._database.write(partial(self._detach, uuid, gone)) if gone else False
            if work:
                await self._wake(None)
        except InstanceNotFound:
            log.debug("server gone while its interfaces were read", instance=uuid)
        except KilonovaError as error:
            log.warning("interfaces of a server not healed", instance=uuid, exc_info=error)

    async def _bind(self, uuid: str, host: str) -> None:
        """A server that is busy has its other turn later. Spec: IFC-53, PER-14."""
        def accept(conn: sa.Connection) -> None:
            tx = Tx(conn, self._environment.clock.now())
            submit.submit(tx, cell_journal, BIND_PORTS, uuid, BindPorts(host), Asker())

        try:
            await self._database.write(accept)
        except KilonovaError as error:
            log.info("ports of a server are not bound anew now", instance=uuid, error=str(error))
        else:
            await self._wake(None)

    def _detach(self, uuid: str, gone: tuple[str, ...], conn: sa.Connection) -> bool:
        """One at a time: a server that is busy has its other turn later. Spec: PER-05, XEV-14, XEV-23."""
        server = instances.get(conn, uuid)
        return server.task_state is None and lost_port(Tx(conn, self._environment.clock.now()), server, gone[0])


def _usable(conn: sa.Connection, host: str) -> list[str]:
    def usable(server: Instance) -> bool:
        return server.vm_state is not VmState.BUILDING and server.task_state is not TaskState.DELETING

    return [server.uuid for server in instances.on_host(conn, host) if usable(server)]
