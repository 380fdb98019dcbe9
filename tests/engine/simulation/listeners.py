"""Who is told of what happens in a simulated cloud, and what they have heard."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from random import Random

from hearing import once

from kilonova.domain.errors import KilonovaError
from kilonova.domain.notification import Notification
from kilonova.notifications.sinks import Refused, Sink
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
        return once(self.heard[sink])


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
