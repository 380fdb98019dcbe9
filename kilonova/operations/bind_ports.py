"""Bind ports: ports of a server that are bound elsewhere, or whose binding failed, are bound where the server is.

The healing of interfaces asks for it; what it saw may be old, so the record is looked at when the server's turn has
come. Nothing else of the server changes.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import structlog

from kilonova.db import instances, migration_records
from kilonova.domain.errors import Conflict, InstanceNotReady
from kilonova.domain.migration import ON_THE_WAY, UNDECIDED
from kilonova.domain.operation import Failure
from kilonova.engine.operation import Here, NoUndo, Operation, Tx
from kilonova.engine.run import Run
from kilonova.operations.environment import Environment
from kilonova.operations.interface_refresh import refresh_interfaces
from kilonova.operations.port_resources import needs_of, tell_ports
from kilonova.services.network import PortSummary

log = structlog.get_logger(__name__)

NOT_BOUND = ("unbound", "binding_failed")
RIGHT = NoUndo("ports belong where their server is")


class BindPorts(msgspec.Struct, frozen=True):
    """The host that the server was seen on."""

    host: str


def drifted(ports: Sequence[PortSummary], host: str) -> bool:
    """Whether a port of a server on this host is not bound to it. Spec: IFC-52, PER-16."""
    return any(port.binding_host != host or port.vif_type in NOT_BOUND for port in ports)


def _begin(tx: Tx, run: Run[BindPorts]) -> None:
    """Raises InstanceNotReady: it is on another host. Conflict: something is done to it, or it moves. Spec: IFC-53,
    PER-22."""
    instance = instances.get(tx.conn, run.subject)
    if instance.host != run.request.host:
        raise InstanceNotReady(run.subject)
    if instance.task_state is not None or migration_records.of_server(tx.conn, run.subject, ON_THE_WAY | UNDECIDED):
        raise Conflict(f"Server {run.subject} is being changed or moved.")


async def _bind(env: Environment, run: Run[BindPorts]) -> None:
    """Spec: PER-14."""
    instance = await env.database.read(lambda conn: instances.get(conn, run.subject))
    zone = instance.availability_zone or ""
    await env.networks.go_to_host(run.subject, run.request.host, availability_zone=zone)
    await tell_ports(env, run.subject, await needs_of(env, run.subject))


async def _refresh(env: Environment, run: Run[BindPorts]) -> None:
    """Spec: PER-17."""
    await refresh_interfaces(env.database, env.networks, env.clock, run.subject)


def _end(_tx: Tx, _run: Run[BindPorts]) -> None:
    return


def _failed(_tx: Tx, run: Run[BindPorts], failure: Failure) -> None:
    """The server is as it was, and has its other turn. Spec: PER-18, PER-20."""
    log.warning("ports of a server not bound anew", instance=run.subject, error=failure.message)


BIND_PORTS = Operation(
    name="bind-ports",
    request=BindPorts,
    begins=_begin,
    steps=(
        Here("bind ports", _bind, undo=RIGHT),
        Here("refresh interfaces", _refresh, undo=RIGHT),
    ),
    ends=_end,
    fails=_failed,
    waited_for=True,
)
