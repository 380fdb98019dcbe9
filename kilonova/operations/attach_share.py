"""Attach share: give a stopped server a directory of its host, which its guest has from its next start.

The record lists the share from the beginning, so that users see it coming; other operations on the server wait for
the end. Whatever fails, the record lists it no more. Nothing is done to the guest: its start describes it anew.
"""

from __future__ import annotations

import contextlib

import msgspec

from kilonova.agent.steps.shares import CHECK, Directories
from kilonova.db import instances
from kilonova.domain.errors import Conflict, InstanceNotFound
from kilonova.domain.operation import Failure
from kilonova.domain.share import ShareMapping, ShareStatus
from kilonova.domain.states import VmState
from kilonova.engine.operation import NoUndo, OnHost, Operation, Record, Tx
from kilonova.engine.run import Run
from kilonova.operations.guests import Host, find_host
from kilonova.operations.notices import announce
from kilonova.operations.records import blame, check
from kilonova.operations.shares import with_status, without

STATES = (VmState.STOPPED,)
READS = NoUndo("changes nothing")


class AttachShare(msgspec.Struct, frozen=True, kw_only=True):
    """What to attach. export_location: the directory on every host."""

    share_id: str
    tag: str
    export_location: str


def _begin(tx: Tx, run: Run[AttachShare]) -> None:
    """Checked when the server's turn has come, on the record as it then is. Spec: API-185."""
    asked = run.request
    instance = check(tx, run.subject, action="create share", vm=STATES, needs_host=True)
    if any(one.share_id == asked.share_id for one in instance.shares):
        raise Conflict(f"Share {asked.share_id} is attached to instance {run.subject} already.")
    if any(one.tag == asked.tag for one in instance.shares):
        raise Conflict(f"Instance {run.subject} has a share with the tag {asked.tag!r} already.")
    mapping = ShareMapping(
        uuid=run.id, share_id=asked.share_id, tag=asked.tag, export_location=asked.export_location,
        status=ShareStatus.ATTACHING,
    )
    instances.update(tx.conn, run.subject, now=tx.now, shares=(*instance.shares, mapping))


def _attached(tx: Tx, run: Run[AttachShare]) -> None:
    shares = with_status(instances.get(tx.conn, run.subject), run.request.share_id, ShareStatus.INACTIVE)
    instances.update(tx.conn, run.subject, now=tx.now, shares=shares)


def _failed(tx: Tx, run: Run[AttachShare], failure: Failure) -> None:
    """The server is as it was."""
    with contextlib.suppress(InstanceNotFound):
        shares = without(instances.get(tx.conn, run.subject), run.request.share_id)
        instances.update(tx.conn, run.subject, now=tx.now, shares=shares)
    blame(tx, run, failure)


ATTACH_SHARE = Operation(
    name="attach-share",
    action="attach_share",
    event="compute_attach_share",
    notices=announce("share_attach", older=None),
    request=AttachShare,
    waited_for=True,
    begins=_begin,
    steps=(
        Record("find host", find_host, undo=READS),
        OnHost("check host", lambda run: run.output(Host).host, CHECK,
               lambda run: Directories((run.request.export_location,)), undo=READS, timeout=60.0),
    ),
    ends=_attached,
    fails=_failed,
)
