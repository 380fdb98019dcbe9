"""What is done about a guest whose server is deleted: it is switched off, or removed with everything it still has.

A delete leaves no guest; one may come back with a host that was restored from a backup, or be started by hand.
"""

from __future__ import annotations

from typing import Any

import msgspec

from kilonova.agent.steps.power import POWER_OFF, REMOVE, GuestRef, PowerOffArgs
from kilonova.db import instances
from kilonova.domain.errors import Conflict
from kilonova.domain.operation import Failure
from kilonova.engine.operation import Here, NoUndo, OnHost, Operation, Record, Tx
from kilonova.engine.run import Run
from kilonova.operations.environment import Environment

GONE = NoUndo("what belongs to a deleted server is not brought back")


class DeletedGuest(msgspec.Struct, frozen=True, kw_only=True):
    """The host on which the guest was found."""

    host: str


class Ports(msgspec.Struct, frozen=True):
    """Ports that the user brought, and the names of all interfaces on the host."""

    keep: tuple[str, ...]
    devnames: tuple[str, ...]


def _begin(tx: Tx, run: Run[DeletedGuest]) -> None:
    """Raises InstanceNotFound: no server of this cell. Conflict: the server is not deleted. Spec: PER-85, PER-94."""
    if instances.get(tx.conn, run.subject, deleted=True).deleted_at is None:
        raise Conflict(f"Server {run.subject} is not deleted.")


def _find_ports(tx: Tx, run: Run[DeletedGuest]) -> Ports:
    vifs = instances.get(tx.conn, run.subject, deleted=True).network_info
    keep = tuple(vif.id for vif in vifs if vif.preserve_on_delete)
    return Ports(keep, tuple(vif.devname for vif in vifs))


async def _release(env: Environment, run: Run[DeletedGuest]) -> None:
    await env.networks.release(run.subject, keep_ports=run.output(Ports).keep, host=run.request.host)


def _end(_tx: Tx, _run: Run[Any]) -> None:
    return


def _failed(_tx: Tx, _run: Run[Any], _failure: Failure) -> None:
    """The next round finds the guest again. Spec: PER-87, PER-88."""


POWER_OFF_DELETED = Operation(
    name="power-off-deleted",
    request=DeletedGuest,
    begins=_begin,
    steps=(
        OnHost("power off", lambda run: run.request.host, POWER_OFF,
               lambda run: PowerOffArgs(uuid=run.subject, grace=0.0, interval=0.0), undo=GONE, retries=1),
    ),
    ends=_end,
    fails=_failed,
)

REAP_DELETED = Operation(
    name="reap-deleted",
    request=DeletedGuest,
    begins=_begin,
    steps=(
        Record("find ports", _find_ports, undo=NoUndo("changes nothing")),
        OnHost("remove guest", lambda run: run.request.host, REMOVE,
               lambda run: GuestRef(uuid=run.subject, devnames=run.output(Ports).devnames), undo=GONE, retries=1),
        Here("release ports", _release, undo=GONE),
    ),
    ends=_end,
    fails=_failed,
)
