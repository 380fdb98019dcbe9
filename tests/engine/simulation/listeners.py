"""Who is told of what happens in a simulated cloud, and what they have heard."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from random import Random

from kilonova.domain.errors import KilonovaError
from kilonova.domain.notification import Notification
from kilonova.domain.operation import OperationRecord, OperationState
from kilonova.notifications.sinks import Refused, Sink
from kilonova.operations.catalogue import CELL_OPERATIONS
from kilonova.operations.notices import InstanceAction
from simulation.process import Process, Trouble

LISTENERS = ("left", "right")
"""Sinks that are told the same, each in its own way."""


class Ears:
    """What listeners have taken, each message as often as it came.

    Args:
        heard: by sink, in the order in which the messages came. fail: by sink, the errors that its next deliveries
            meet. deaf: sinks that take nothing.
    """

    def __init__(self, random: Random, trouble: Trouble) -> None:
        self._random = random
        self._trouble = trouble
        self.heard: dict[str, list[Notification]] = defaultdict(list)
        self.fail: dict[str, list[Exception]] = defaultdict(list)
        self.deaf: set[str] = set()

    def sinks(self, process: Process) -> dict[str, Sink]:
        """As a process reaches them."""
        return {name: _Ear(self, name, process) for name in LISTENERS}

    async def hear(self, sink: str, message: Notification) -> None:
        await asyncio.sleep(self._random.random() * 0.02)
        if sink in self.deaf:
            raise KilonovaError("nobody listens")
        if self.fail[sink]:
            raise self.fail[sink].pop(0)
        if self._random.random() < self._trouble.service_error:
            raise self._random.choice((KilonovaError("away"), Refused("not this one")))
        self.heard[sink].append(message)
        if self._random.random() < self._trouble.service_error:  # taken, but the answer is lost
            raise KilonovaError("no answer")

    def once(self, sink: str = LISTENERS[0]) -> list[Notification]:
        """What a listener knows that passes over what it has heard already."""
        seen: dict[str, Notification] = {}
        for message in self.heard[sink]:
            seen.setdefault(message.message_id, message)
        return list(seen.values())


class _Ear:
    """One sink, through the port of a process: a process that crashed tells nobody any more."""

    def __init__(self, ears: Ears, name: str, process: Process) -> None:
        self._ears = ears
        self._name = name
        self._process = process

    async def send(self, message: Notification) -> None:
        await self._process.port(self._ears.hear(self._name, message))

    async def close(self) -> None:
        return None


def unheard(ears: Ears, operations: list[OperationRecord]) -> list[str]:
    """What every listener should know once all is at rest, and some do not, or know in a wrong order.

    Args:
        operations: of the cell, all of them ended.
    """
    found = []
    actions = {o.name: {n.action for n in o.notices if isinstance(n, InstanceAction) and n.during is None}
               for o in CELL_OPERATIONS}
    expected = Counter(
        (o.subject, f"instance.{action}.{phase}")
        for o in operations if o.entries or o.state is OperationState.SUCCEEDED
        for action in actions.get(o.kind, ()) if action
        for phase in ("start", "end" if o.state is OperationState.SUCCEEDED else "error")
    )
    whole = {f"instance.{action}.{phase}" for of in actions.values() for action in of if action
             for phase in ("start", "end", "error")}
    for sink in LISTENERS:
        told = [message for message in ears.once(sink) if message.versioned]
        heard = Counter((m.subject, m.event_type) for m in told if m.event_type in whole)
        found += [f"{sink} has not heard {missing}" for missing in (expected - heard)]
        found += [f"{sink} has heard {extra}, which did not happen" for extra in (heard - expected)]
        began: dict[str, str] = {}
        for message in told:
            action, _, phase = message.event_type.rpartition(".")
            if message.event_type not in whole:
                continue
            if phase == "start":
                if (other := began.get(message.subject)) is not None:
                    found.append(f"{sink}: {message.event_type} of {message.subject} within {other}")
                began[message.subject] = action
            elif began.pop(message.subject, None) != action:
                found.append(f"{sink}: {message.event_type} of {message.subject} without its start")
    orders = [_by_subject(ears.once(sink)) for sink in LISTENERS]
    found += [f"the listeners have heard of {subject} in another order" for subject in orders[0]
              if orders[0][subject] != orders[1].get(subject)]
    return found


def _by_subject(messages: list[Notification]) -> dict[str, list[str]]:
    order: dict[str, list[str]] = defaultdict(list)
    for message in messages:
        order[message.subject].append(message.message_id)
    return order
