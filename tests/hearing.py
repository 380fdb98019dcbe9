"""What listeners should have heard of the operations of a cell once all is at rest."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from kilonova.domain.notification import Notification
from kilonova.domain.operation import EntryState, OperationRecord, OperationState
from kilonova.operations.catalogue import CELL_OPERATIONS
from kilonova.operations.notices import InstanceAction

ACTIONS = {o.name: {n.action for n in o.notices if isinstance(n, InstanceAction) and n.during is None and n.action}
           for o in CELL_OPERATIONS}
WHOLE = {f"instance.{action}.{phase}" for of in ACTIONS.values() for action in of
         for phase in ("start", "end", "error")}
PARTS = {(o.name, n.action): n.during.first for o in CELL_OPERATIONS for n in o.notices
         if isinstance(n, InstanceAction) and n.during is not None and f"instance.{n.action}.start" in WHOLE}
"""Steps that are told as another operation is, by operation and action."""


def once(messages: Iterable[Notification]) -> list[Notification]:
    """What a listener knows that passes over what it has heard already."""
    seen: dict[str, Notification] = {}
    for message in messages:
        seen.setdefault(message.message_id, message)
    return list(seen.values())


def unheard(told: Mapping[str, Sequence[Notification]], operations: Sequence[OperationRecord]) -> list[str]:
    """What every listener should know, and some do not, or know in a wrong order.

    Args:
        told: what each listener was told, in the order in which it came. operations: of the cell, all of them ended.
    """
    expected = Counter(
        (o.subject, f"instance.{action}.{phase}")
        for o in operations if o.entries or o.state is OperationState.SUCCEEDED
        for action in ACTIONS.get(o.kind, ())
        for phase in ("start", "end" if o.state is OperationState.SUCCEEDED else "error")
    )
    expected += Counter(
        (o.subject, f"instance.{action}.{phase}")
        for o in operations for (kind, action), step in PARTS.items() if kind == o.kind
        for entry in o.entries if (entry.step, entry.undo) == (step, False)
        for phase in ("start", "end" if entry.state is EntryState.DONE else "error")
    )
    deleted = {o.subject for o in operations if o.kind == "delete"}
    found: list[str] = []
    for sink, messages in told.items():
        heard = [message for message in once(messages) if message.versioned and message.event_type in WHOLE]
        counted = Counter((m.subject, m.event_type) for m in heard if m.subject in deleted or not _by_api(m))
        found += [f"{sink} has not heard {missing}" for missing in (expected - counted)]
        found += [f"{sink} has heard {extra}, which did not happen" for extra in (counted - expected)]
        found += _unpaired(sink, heard)
    orders = [_by_subject(once(messages)) for messages in told.values()]
    for other in orders[1:]:
        found += [f"the listeners have heard of {subject} in another order" for subject in orders[0]
                  if orders[0][subject] != other.get(subject)]
    return found


def _by_api(message: Notification) -> bool:
    """Whether it tells of a delete in which no host has a part, as one without an operation does."""
    return message.event_type.startswith("instance.delete.") and message.publisher_id.startswith("nova-api:")


def _unpaired(sink: str, heard: Iterable[Notification]) -> Iterable[str]:
    """Each start is followed by its own end or error, with nothing but a part of it in between."""
    parts = {f"instance.{action}" for _, action in PARTS}
    began: dict[str, list[str]] = defaultdict(list)
    for message in heard:
        open_ = began[message.subject]
        action, _, phase = message.event_type.rpartition(".")
        if phase == "start":
            if open_ and action not in parts:
                yield f"{sink}: {message.event_type} of {message.subject} within {open_[-1]}"
            open_.append(action)
        elif not open_ or open_.pop() != action:
            yield f"{sink}: {message.event_type} of {message.subject} without its start"


def _by_subject(messages: Iterable[Notification]) -> dict[str, list[str]]:
    order: dict[str, list[str]] = defaultdict(list)
    for message in messages:
        order[message.subject].append(message.message_id)
    return order
