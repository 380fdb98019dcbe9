"""What driving operations needs, the same for every operation of a journal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from kilonova.db.database import Database
from kilonova.db.journal import Journal
from kilonova.domain.clock import Clock
from kilonova.domain.operation import OperationRecord
from kilonova.engine.commands import Hosts
from kilonova.engine.operation import Definitions


@dataclass(frozen=True)
class Workshop:
    """The surroundings of a driver.

    Args:
        environment: handed to `Here` steps. owner: who holds the leases. ttl: seconds a lease lasts.
        wake: called after a commit that made other operations due.
        observe: called with every state that was journaled.
        checkpoint: called at every journal boundary with its name, for crash tests: `kind/step/do` (or `undo`), then
            `before` (begun in the journal, nothing done), `answered` (done, nothing written), `written` (in a
            transaction that is not committed) or `committed`. Taking an operation up is a step called BEGIN.
    """

    database: Database
    journal: Journal
    definitions: Definitions
    environment: Any
    hosts: Hosts
    clock: Clock
    random: Random
    owner: str
    ttl: float
    wake: Callable[[], None]
    observe: Callable[[OperationRecord], None] = lambda _record: None
    checkpoint: Callable[[str], None] = lambda _place: None
