"""Calling the notices of an operation, in the transaction that journals what they tell of.

The whole operation starts when a conductor begins with it, and ends with its closing transaction or with that of its
undo. A part starts when its first step is reached, and ends when its last one is passed or the operation turns around
within it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
import structlog

from kilonova.domain.notification import Phase
from kilonova.domain.operation import EntryState, Failure
from kilonova.engine.operation import During, Operation, Tx
from kilonova.engine.run import Run

log = structlog.get_logger(__name__)


class Telling:
    """The notices of one kind of operation."""

    def __init__(self, definition: Operation) -> None:
        self._definition = definition
        self._parts = any(notice.during is not None for notice in definition.notices)

    def begun(self, tx: Tx, run: Run[Any]) -> None:
        """A conductor begins with the operation."""
        self._tell(tx, run, Phase.START, _whole)

    def ended(self, tx: Tx, run: Run[Any]) -> None:
        """It has succeeded."""
        self._tell(tx, run, Phase.END, _whole)

    def failed(self, tx: Tx, run: Run[Any], failure: Failure) -> None:
        """It is undone."""
        self._tell(tx, run, Phase.ERROR, _whole, failure)

    def reached(self, tx: Tx, run: Run[Any], step: str, *, undo: bool = False) -> None:
        """The operation is at a step. One at which it is already in this round was told of."""
        if self._parts and run.entry(step, undo=undo) is None:
            self._tell(
                tx, run, Phase.START, lambda part: part is not None and (part.first, part.undo) == (step, undo)
            )

    def passed(self, tx: Tx, run: Run[Any], step: str, *, undo: bool = False) -> None:
        """The operation goes on from a step. What is owed did not succeed."""
        if not self._parts:
            return
        entry = run.entry(step, undo=undo)
        owed = entry is not None and entry.state is EntryState.OWED
        failure = Failure(kind="Owed", message=f"{step} is still to be done.", step=step) if owed else None
        self._tell(
            tx, run, Phase.ERROR if owed else Phase.END,
            lambda part: part is not None and (part.last, part.undo) == (step, undo), failure,
        )

    def broken_off(self, tx: Tx, run: Run[Any], failure: Failure) -> None:
        """The operation turns around at its cursor."""
        if not self._parts:
            return
        position, cursor = self._definition.position, run.record.cursor
        self._tell(
            tx, run, Phase.ERROR,
            lambda part: part is not None and not part.undo and position(part.first) <= cursor <= position(part.last),
            failure,
        )

    def _tell(
        self, tx: Tx, run: Run[Any], phase: Phase, concerns: Callable[[During | None], bool],
        failure: Failure | None = None,
    ) -> None:
        """Nothing that goes wrong with it (but for a database that is away) changes the operation. Spec: BLD-44,
        MIG-06."""
        for notice in self._definition.notices:
            if not concerns(notice.during):
                continue
            try:
                notice(tx, run, phase, failure)
            except sa.exc.SQLAlchemyError:
                raise
            except Exception:
                log.exception("nobody is told", operation=run.id, kind=run.record.kind, phase=phase.value)


def _whole(part: During | None) -> bool:
    return part is None
