"""What libvirt tells of guests by itself, in the order it happened, as the agent understands it.

libvirt's callbacks only queue (LCE-17). One task takes the events off the queue, leaves out guests that are not
ours and tells the agent; an error in telling one event does not keep the next from being told (LCE-16).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import libvirt  # type: ignore[import-untyped]
import structlog

from kilonova.domain.errors import Retryable
from kilonova.domain.states import PowerState
from kilonova.hypervisor.guest import GuestEvent

CANCEL_PAUSE = 0.2
"""Seconds."""

log = structlog.get_logger(__name__)

POWER_STATES = {
    libvirt.VIR_DOMAIN_NOSTATE: PowerState.NOSTATE,
    libvirt.VIR_DOMAIN_RUNNING: PowerState.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: PowerState.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: PowerState.PAUSED,
    libvirt.VIR_DOMAIN_SHUTDOWN: PowerState.RUNNING,  # it has shut down, but its QEMU has yet to let go of its disks
    libvirt.VIR_DOMAIN_SHUTOFF: PowerState.SHUTDOWN,
    libvirt.VIR_DOMAIN_CRASHED: PowerState.CRASHED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: PowerState.SUSPENDED,
}

TRANSITIONS = {
    libvirt.VIR_DOMAIN_EVENT_STARTED: ("started", PowerState.RUNNING),
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED: ("paused", PowerState.PAUSED),
    libvirt.VIR_DOMAIN_EVENT_RESUMED: ("resumed", PowerState.RUNNING),
    libvirt.VIR_DOMAIN_EVENT_STOPPED: ("stopped", PowerState.SHUTDOWN),
    libvirt.VIR_DOMAIN_EVENT_PMSUSPENDED: ("suspended", PowerState.SUSPENDED),
    libvirt.VIR_DOMAIN_EVENT_CRASHED: ("crashed", PowerState.CRASHED),
}

QUIET = frozenset({
    libvirt.VIR_DOMAIN_EVENT_DEFINED, libvirt.VIR_DOMAIN_EVENT_UNDEFINED, libvirt.VIR_DOMAIN_EVENT_SHUTDOWN
})
"""Events that change no power state; SHUTDOWN tells that a guest is about to stop."""

BY_POWER_STATE = {
    PowerState.RUNNING: "resumed",
    PowerState.PAUSED: "paused",
    PowerState.SHUTDOWN: "stopped",
    PowerState.CRASHED: "crashed",
    PowerState.SUSPENDED: "suspended",
    PowerState.NOSTATE: "stopped",
}
"""How a change is told of which only the outcome is known."""


def power_state(state: int, reason: int, *, saved: bool = False) -> PowerState:
    """A libvirt domain state as a power state. A guest that crashed, or whose memory was saved, is off in libvirt's
    eyes."""
    if state == libvirt.VIR_DOMAIN_SHUTOFF and saved:
        return PowerState.SUSPENDED
    if state == libvirt.VIR_DOMAIN_SHUTOFF and reason == libvirt.VIR_DOMAIN_SHUTOFF_CRASHED:
        return PowerState.CRASHED
    return POWER_STATES.get(state, PowerState.NOSTATE)


def translate(uuid: str, event: int, detail: int) -> GuestEvent | None:
    """A lifecycle event of libvirt; None for one that changes no power state, or that is not known. Spec: LCE-05,
    LCE-06."""
    if event == libvirt.VIR_DOMAIN_EVENT_STOPPED and detail == libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED:
        return GuestEvent(uuid=uuid, transition="crashed", power_state=PowerState.CRASHED)
    if event == libvirt.VIR_DOMAIN_EVENT_STOPPED and detail == libvirt.VIR_DOMAIN_EVENT_STOPPED_SAVED:
        return GuestEvent(uuid=uuid, transition="suspended", power_state=PowerState.SUSPENDED)
    if event not in TRANSITIONS:
        if event not in QUIET:
            log.warning("unknown event of a guest", uuid=uuid, number=event, detail=detail)
        return None
    transition, state = TRANSITIONS[event]
    return GuestEvent(uuid=uuid, transition=transition, power_state=state)


class Events:
    """Delivers events, wakes those who wait for a guest to stop, and makes up for events that were missed.

    Args:
        deliver: the agent's callback.
        is_ours: whether a guest carries this installation's mark.
    """

    def __init__(self, deliver: Callable[[GuestEvent], None], is_ours: Callable[[str], Awaitable[bool]]) -> None:
        self._deliver = deliver
        self._is_ours = is_ours
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[GuestEvent] = asyncio.Queue()
        self._told: dict[str, PowerState] = {}
        self._changed: dict[str, set[asyncio.Event]] = {}
        self._registered: tuple[libvirt.virConnect, int] | None = None
        self._task = self._loop.create_task(self._run())

    def register(self, connection: libvirt.virConnect) -> None:
        """Listen on a new connection. Runs in a worker thread."""
        number = connection.domainEventRegisterAny(
            None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._arrived, None
        )
        self._registered = (connection, number)

    def unregister(self) -> None:
        """Stop listening; a connection that is listened to never closes. Runs in a worker thread."""
        registered, self._registered = self._registered, None
        if registered is not None:
            connection, number = registered
            connection.domainEventDeregisterAny(number)

    def compare(self, found: dict[str, PowerState]) -> None:
        """Tell what changed while nobody listened: guests of known state that are now in another."""
        for uuid, before in list(self._told.items()):
            now = found.get(uuid, PowerState.NOSTATE)
            if now is not before and (now, before) != (PowerState.NOSTATE, PowerState.SHUTDOWN):
                self._enqueue(GuestEvent(uuid=uuid, transition=BY_POWER_STATE[now], power_state=now))

    def remember(self, found: dict[str, PowerState]) -> None:
        """Take these states as told."""
        self._told = dict(found)

    def watch(self, uuid: str) -> asyncio.Event:
        """An event that is set at each change of the guest. Give it back with `unwatch`."""
        event = asyncio.Event()
        self._changed.setdefault(uuid, set()).add(event)
        return event

    def forget(self, uuid: str) -> None:
        """The guest is gone on purpose; its absence is no news."""
        self._told.pop(uuid, None)

    def unwatch(self, uuid: str, event: asyncio.Event) -> None:
        watchers = self._changed[uuid]
        watchers.discard(event)
        if not watchers:
            del self._changed[uuid]

    async def close(self) -> None:
        while not self._task.done():  # a cancel that meets the end of a call to libvirt is lost
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=CANCEL_PAUSE)

    def _arrived(
        self, _connection: libvirt.virConnect, domain: libvirt.virDomain, event: int, detail: int, _opaque: None
    ) -> None:
        translated = translate(domain.UUIDString(), event, detail)
        if translated is None:
            return
        try:
            self._loop.call_soon_threadsafe(self._enqueue, translated)
        except RuntimeError:
            log.debug("an event of libvirt came after the event loop was closed")

    def _enqueue(self, event: GuestEvent) -> None:
        for waiting in self._changed.get(event.uuid, ()):
            waiting.set()
        self._queue.put_nowait(event)

    async def _run(self) -> None:
        while True:
            event = await self._queue.get()
            try:
                if await self._is_ours(event.uuid):
                    self._told[event.uuid] = event.power_state
                    self._deliver(event)
            except Retryable as error:  # the comparison after the gap makes up for it
                log.warning("an event of a guest came while libvirt went away", uuid=event.uuid, error=str(error))
            except Exception:  # whatever one event meets, the next must still be told
                log.exception("an event of a guest could not be handled", uuid=event.uuid, transition=event.transition)
