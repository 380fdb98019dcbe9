"""Events to the compute service: kept until it has taken them.

Spec: section 4.8, EMN-59, EMN-62.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import msgspec
import structlog

from kilonova.domain.clock import Clock
from kilonova.domain.errors import KilonovaError, NotFound
from kilonova.embedded.network.schema import Port
from kilonova.embedded.network.tasks import begin, end

log = structlog.get_logger(__name__)

CHANGED, PLUGGED = "network-changed", "network-vif-plugged"
UNPLUGGED, DELETED = "network-vif-unplugged", "network-vif-deleted"
_REPLACES = {PLUGGED: (UNPLUGGED,), UNPLUGGED: (PLUGGED,), DELETED: (PLUGGED, UNPLUGGED, CHANGED), CHANGED: ()}
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0


class OnEvent(Protocol):
    """Takes an event. NotFound drops it; any other error has it sent again."""

    async def __call__(self, name: str, instance_uuid: str, *, tag: str, status: str) -> None: ...


class Event(msgspec.Struct, frozen=True):
    name: str
    instance_uuid: str
    port_id: str


class EventSender:
    """Sends events in the order they arose, one of a kind for each port, and repeats those that failed."""

    def __init__(self, clock: Clock, on_event: OnEvent) -> None:
        self._clock = clock
        self._on_event = on_event
        self._waiting: dict[Event, None] = {}
        self._more = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = begin(self._run(), "network-events")

    async def close(self) -> None:
        await end(self._task)

    def send(self, name: str, port: Port) -> None:
        """Send an event about a port, if it belongs to a server."""
        if not port.device_id or not port.device_owner.startswith("compute:"):
            return
        for replaced in _REPLACES[name]:
            self._waiting.pop(Event(replaced, port.device_id, port.id), None)
        self._waiting[Event(name, port.device_id, port.id)] = None
        self._more.set()

    async def _run(self) -> None:
        pause = _FIRST_PAUSE
        while True:
            await self._more.wait()
            self._more.clear()
            failed = False
            for event in list(self._waiting):
                if event in self._waiting and not await self._send(event):
                    failed = True
            if failed:
                await self._clock.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
                self._more.set()
            else:
                pause = _FIRST_PAUSE

    async def _send(self, event: Event) -> bool:
        self._waiting.pop(event)
        try:
            await self._on_event(event.name, event.instance_uuid, tag=event.port_id, status="completed")
        except NotFound:
            log.debug("event dropped, the server is gone", event_name=event.name, port=event.port_id)
        except KilonovaError as error:
            log.warning("event will be sent again", event_name=event.name, port=event.port_id, error=str(error))
            self._put_back(event)
            return False
        return True

    def _put_back(self, event: Event) -> None:
        newer = [name for name, old in _REPLACES.items() if event.name in old]
        if not any(Event(name, event.instance_uuid, event.port_id) in self._waiting for name in newer):
            self._waiting = {event: None, **self._waiting}
