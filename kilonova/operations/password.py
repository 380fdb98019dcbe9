"""Change the password of a guest's administrator.

No journal sees the password. The operation holds the server and waits; who asked hands the password to the host
and then tells the operation how that went. If nobody tells it, the service was stopped meanwhile: the password is
not kept anywhere, so that the change is not repeated.
"""

from __future__ import annotations

import msgspec

from kilonova.domain.operation import Failure, event_key
from kilonova.domain.states import TaskState, VmState
from kilonova.engine.operation import Await, Operation, Tx
from kilonova.engine.run import Run
from kilonova.operations.notices import ONLY_FAILURES
from kilonova.operations.records import fail, settle, take

OWNED = (TaskState.UPDATING_PASSWORD,)
EVENT = "password-changed"
"""What is told of the change; the tag is its key."""

BOOT_LIMIT = 50.0
"""Seconds in which an agent that the image promises may begin to answer: less than clients wait for an answer."""

HOST_LIMIT = 45.0
"""Seconds that the host may take to change the password."""

WAIT_LIMIT = BOOT_LIMIT + HOST_LIMIT + 5.0
"""Seconds until nobody is expected to tell any more."""


class ChangePassword(msgspec.Struct, frozen=True):
    """Not the password. key: names this change, so that nobody takes another one for it."""

    key: str


def _begin(tx: Tx, run: Run[ChangePassword]) -> None:
    take(tx, run.subject, action="changePassword", becomes=TaskState.UPDATING_PASSWORD, vm=(VmState.ACTIVE,),
         needs_host=True)


def _changed(tx: Tx, run: Run[ChangePassword]) -> None:
    """Spec: PWD-04."""
    settle(tx, run, owned=OWNED, task_state=None)


def _not_changed(tx: Tx, run: Run[ChangePassword], failure: Failure) -> None:
    """vm_state stays. Why it failed was stored by who asked, unless that process was stopped. Spec: PWD-03, PWD-05 to
    PWD-09, PWD-14, INI-107."""
    if failure.kind == "WaitTimedOut":
        failure = msgspec.structs.replace(
            failure, message="The service stopped while a password was being set; it is not known whether it was."
        )
    fail(tx, run, failure, owned=OWNED)


CHANGE_PASSWORD = Operation(
    name="change-password",
    action="changePassword",
    event="compute_set_admin_password",
    notices=ONLY_FAILURES,
    request=ChangePassword,
    begins=_begin,
    steps=(
        Await("password changed", lambda run: (event_key(EVENT, run.request.key),), lambda _run: WAIT_LIMIT),
    ),
    ends=_changed,
    fails=_not_changed,
)
