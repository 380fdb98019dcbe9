"""What goes wrong at which point of a run.

A point is a journal boundary (see `Workshop.checkpoint`) or a place within a step, named `kind/step/do|undo/point`:

- `part`: after the first call to another service or to the hypervisor
- `begun`, `done`: on the host, before and after the effect of a host step
- `effect`: on the host, before the result is journaled there
- `record`, `recorded`, `undone`: within the transaction, in the function of that name
- `ends`, `fails`: within the closing transaction, of the step `(end)`
- `event`: the wait gets an event that says that it failed
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextvars import ContextVar

import msgspec

from kilonova.domain.errors import KilonovaError, TryElsewhere, Unreachable


class Act(msgspec.Struct, frozen=True):
    """Something that happens when a point is reached.

    Args:
        does: kill, fail, twice, delete (a user does that) or deaf (no host can be reached from here on).
        error: with fail: permanent, elsewhere, unexpected or lost.
        always: each time; otherwise once, and only when the acts before it have happened.
    """

    point: str
    does: str
    error: str = ""
    always: bool = False


ERRORS: dict[str, Callable[[], Exception]] = {
    "permanent": lambda: KilonovaError("This cannot be done."),
    "elsewhere": lambda: TryElsewhere("This host cannot do it."),
    "unexpected": lambda: RuntimeError("a defect"),
    "lost": lambda: Unreachable("The answer was lost."),
}

PLACE: ContextVar[str] = ContextVar("PLACE", default="")
"""The step that the current task works for: `kind/step/do|undo`."""


class Plan:
    """The acts of one life of the process. Args: users: what `delete` and `deaf` do."""

    def __init__(self, acts: tuple[Act, ...]) -> None:
        self._always = [act for act in acts if act.always]
        self._next = [act for act in acts if not act.always]
        self.users: dict[str, Callable[[], None]] = {}
        self.watch: Callable[[str], None] = lambda _point: None

    @property
    def left(self) -> list[str]:
        """Points that were never reached."""
        return [act.point for act in self._next]

    def disarm(self) -> None:
        """Nothing goes wrong any more."""
        self._always, self._next = [], []

    def checkpoint(self, point: str) -> None:
        """A conductor or scheduler has come to a journal boundary."""
        if not point.endswith("/written"):  # written by another task
            PLACE.set(point.rsplit("/", 1)[0])
        self.at(point)

    def here(self, name: str) -> None:
        """The current step has come to a point."""
        self.at(f"{PLACE.get()}/{name}")

    def at(self, point: str) -> None:
        self.watch(point)
        for act in self._due(point, ("kill", "fail", "delete", "deaf")):
            if act.does == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif act.does == "fail":
                raise ERRORS[act.error]()
            else:
                self.users[act.does]()

    def twice(self) -> bool:
        """Whether the effect of the current step is to be repeated."""
        return bool(self._due(f"{PLACE.get()}/twice", ("twice",)))

    def asked(self, point: str) -> bool:
        """Whether a failure is planned for a point that others bring about."""
        return bool(self._due(point, ("fail",)))

    def _due(self, point: str, kinds: tuple[str, ...]) -> list[Act]:
        due = [act for act in self._always if act.point == point and act.does in kinds]
        if self._next and self._next[0].point == point and self._next[0].does in kinds:
            due.append(self._next.pop(0))
        return due
