"""From an exception to a failure in the journal, and back."""

from __future__ import annotations

import asyncio
import traceback

from kilonova.domain.errors import KilonovaError, PastReturn, Retryable, ServiceUnavailable, StaleState, TryElsewhere
from kilonova.domain.operation import Failure


class Failed(KilonovaError):
    """Carries a failure that was journaled or came from a host."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def describe(error: BaseException, step: str = "") -> Failure:
    """Turn an error into what is journaled and shown.

    Errors raised on purpose speak for themselves and decide what follows. Of any other only the class is shown
    to users, the traceback is kept for operators, and another host may be tried. An operation that finds its subject
    taken over has been cancelled. Spec: BDM-27, BLD-96, API-036, FND-11.
    """
    if isinstance(error, Failed):
        return error.failure
    if isinstance(error, asyncio.CancelledError):
        return Failure(kind="Cancelled", message="The step was cut short.", step=step, cancelled=True)
    if isinstance(error, TimeoutError):
        return Failure(kind="StepTimedOut", message=f"The step {step!r} did not end in time.", status=504, step=step,
                       elsewhere=True)
    if isinstance(error, KilonovaError):
        return Failure(
            kind=type(error).__name__,
            message=str(error),
            status=error.status,
            step=step,
            elsewhere=isinstance(error, TryElsewhere | Retryable),
            retryable=isinstance(error, Retryable | ServiceUnavailable),
            cancelled=isinstance(error, StaleState),
        )
    return Failure(
        kind=type(error).__name__,
        message=f"Unexpected error: {type(error).__name__}.",
        details="".join(traceback.format_exception(error))[-8000:],
        step=step,
        elsewhere=True,
    )


CANCELLED = "Cancelled"
CRASH_LOOP = "CrashLoop"
PAST_RETURN = PastReturn.__name__


def crash_loop(what: str, crashes: int, step: str) -> Failure:
    """A step has taken its process down too often. Args: what: stopped so many times."""
    return Failure(kind=CRASH_LOOP, message=f"{what} stopped {crashes} times during {step}.", step=step)


def cancelled(reason: str) -> Failure:
    """The failure of an operation that was asked to end."""
    return Failure(kind=CANCELLED, message=f"The operation was cancelled: {reason}", status=409, cancelled=True)


def out_of_time(kind: str) -> Failure:
    """The failure of an operation that reached its deadline. Spec: BLD-25."""
    return Failure(kind="OperationTimedOut", message=f"The {kind} was not complete in time.", status=504)
