"""Remove leftover: take away a guest or disks on a host that belong to no server there.

An audit asks for it. It has the server's UUID to itself, so that nothing can build there meanwhile; and it begins
only if the record, should there still be one, is on no host.
"""

from __future__ import annotations

import msgspec

from kilonova.agent.steps.power import REMOVE, GuestRef
from kilonova.db import instances
from kilonova.domain.errors import Conflict, InstanceNotFound
from kilonova.domain.operation import Failure
from kilonova.engine.operation import NoUndo, OnHost, Operation, Tx
from kilonova.engine.run import Run


class RemoveLeftover(msgspec.Struct, frozen=True, kw_only=True):
    """The host that it is on."""

    host: str


def _begin(tx: Tx, run: Run[RemoveLeftover]) -> None:
    """Raises Conflict: it belongs to a server after all."""
    try:
        instance = instances.get(tx.conn, run.subject)
    except InstanceNotFound:
        return
    if instance.host is not None:
        raise Conflict(f"Server {run.subject} is recorded on host {instance.host}.")


def _end(_tx: Tx, _run: Run[RemoveLeftover]) -> None:
    return


def _failed(_tx: Tx, _run: Run[RemoveLeftover], _failure: Failure) -> None:
    """The next audit finds it again."""


REMOVE_LEFTOVER = Operation(
    name="remove-leftover",
    request=RemoveLeftover,
    begins=_begin,
    steps=(
        OnHost("remove guest", lambda run: run.request.host, REMOVE, lambda run: GuestRef(uuid=run.subject),
               undo=NoUndo("what belongs to nothing is not brought back"), timeout=600, retries=5),
    ),
    ends=_end,
    fails=_failed,
)
