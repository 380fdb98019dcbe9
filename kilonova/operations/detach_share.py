"""Detach share: a server that is off has the directory no more when it starts next.

A server in ERROR may have a guest that is on; it keeps the share until it is stopped.
"""

from __future__ import annotations

import contextlib

import msgspec

from kilonova.agent.steps.power import GuestRef
from kilonova.agent.steps.shares import CHECK_OFF
from kilonova.db import instances
from kilonova.domain.errors import InstanceNotFound, NotFound
from kilonova.domain.operation import Failure
from kilonova.domain.share import ShareStatus
from kilonova.domain.states import VmState
from kilonova.engine.operation import NoUndo, OnHost, Operation, Record, Tx
from kilonova.engine.run import Run
from kilonova.operations.guests import Host, find_host
from kilonova.operations.notices import announce
from kilonova.operations.records import blame, check
from kilonova.operations.shares import with_status, without

STATES = (VmState.STOPPED, VmState.ERROR)
READS = NoUndo("changes nothing")


class DetachShare(msgspec.Struct, frozen=True):
    """Which one."""

    share_id: str


def _begin(tx: Tx, run: Run[DetachShare]) -> None:
    """On the record as it is when its turn has come. Spec: API-187."""
    instance = check(tx, run.subject, action="delete share", vm=STATES, needs_host=True)
    if all(one.share_id != run.request.share_id for one in instance.shares):
        raise NotFound(f"Share {run.request.share_id} is not attached to instance {run.subject}.")
    shares = with_status(instance, run.request.share_id, ShareStatus.DETACHING)
    instances.update(tx.conn, run.subject, now=tx.now, shares=shares)


def _detached(tx: Tx, run: Run[DetachShare]) -> None:
    shares = without(instances.get(tx.conn, run.subject), run.request.share_id)
    instances.update(tx.conn, run.subject, now=tx.now, shares=shares)


def _failed(tx: Tx, run: Run[DetachShare], failure: Failure) -> None:
    """It stays attached; whether its directory is there shows when the guest starts next."""
    with contextlib.suppress(InstanceNotFound):
        shares = with_status(instances.get(tx.conn, run.subject), run.request.share_id, ShareStatus.INACTIVE)
        instances.update(tx.conn, run.subject, now=tx.now, shares=shares)
    blame(tx, run, failure)


DETACH_SHARE = Operation(
    name="detach-share",
    action="detach_share",
    event="compute_detach_share",
    notices=announce("share_detach", older=None),
    request=DetachShare,
    waited_for=True,
    begins=_begin,
    steps=(
        Record("find host", find_host, undo=READS),
        OnHost("check guest", lambda run: run.output(Host).host, CHECK_OFF, lambda run: GuestRef(uuid=run.subject),
               undo=READS, timeout=60.0),
    ),
    ends=_detached,
    fails=_failed,
)
