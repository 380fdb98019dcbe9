"""The shares of a server while other operations start its guest."""

from __future__ import annotations

from typing import Any

import msgspec

from kilonova.agent.steps.shares import LOOK, Absent, Directories
from kilonova.db import instances
from kilonova.domain.errors import KilonovaError
from kilonova.domain.instance import Instance
from kilonova.domain.share import ShareMapping, ShareStatus
from kilonova.engine.operation import NoUndo, OnHost, Record, Tx
from kilonova.engine.run import Run
from kilonova.operations.guests import Described

STANDS = NoUndo("changes nothing but what is known of the shares")


def with_status(instance: Instance, share_id: str, status: ShareStatus) -> tuple[ShareMapping, ...]:
    """The shares of a server, one of them with another status."""
    return tuple(
        msgspec.structs.replace(one, status=status) if one.share_id == share_id else one for one in instance.shares
    )


def without(instance: Instance, share_id: str) -> tuple[ShareMapping, ...]:
    return tuple(one for one in instance.shares if one.share_id != share_id)


def _directories(run: Run[Any]) -> tuple[str, ...]:
    return tuple(share.directory for share in run.output(Described).guest.shares)


def _host(run: Run[Any]) -> str | None:
    """None for a server without shares: its host is not asked."""
    return run.output(Described).host if _directories(run) else None


def _note(tx: Tx, run: Run[Any]) -> None:
    """Shares whose directories have vanished are in error, until they are found again."""
    absent = run.output(Absent).paths
    shares = tuple(
        msgspec.structs.replace(
            one, status=ShareStatus.ERROR if one.export_location in absent else ShareStatus.INACTIVE
        ) if one.described else one
        for one in instances.get(tx.conn, run.subject).shares
    )
    instances.update(tx.conn, run.subject, now=tx.now, shares=shares)


def _judge(tx: Tx, run: Run[Any]) -> None:
    found = run.find(Absent)
    if found is None or not found.paths:
        return
    gone = [one.share_id for one in instances.get(tx.conn, run.subject).shares if one.export_location in found.paths]
    raise KilonovaError(
        f"Host {run.output(Described).host} does not have the directory of share {', '.join(gone)}.",
        hint="mount it there, or detach the share",
    )


LOOK_FOR_SHARES = (
    OnHost("look for shares", _host, LOOK, lambda run: Directories(_directories(run)), undo=STANDS, recorded=_note),
    Record("judge shares", _judge, undo=STANDS),
)
"""Steps between the description of a guest and its start."""
