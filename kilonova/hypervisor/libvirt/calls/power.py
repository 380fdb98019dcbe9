"""Calls that start and stop guests."""

from __future__ import annotations

import asyncio

import libvirt  # type: ignore[import-untyped]

from kilonova.domain.states import GUEST_OFF, PowerState
from kilonova.hypervisor.guest import Guest
from kilonova.hypervisor.libvirt import power, secrets
from kilonova.hypervisor.libvirt.calls.shares import ShareCalls

SOFT_REBOOT_SIGNAL_INTERVAL = 5.0
"""Seconds. A guest that is still starting misses a signal, so it is repeated."""
MEMORY_LIMIT = 1500.0
"""Seconds that writing a guest's memory to the disk, or reading it, may take."""
LONGEST_WAIT_FOR_EVENT = 1.0
"""Seconds after which the state is asked for although no event came (it may have been lost)."""


class PowerCalls(ShareCalls):
    """Power: spawned, paused, suspended, rebooted, shut down, destroyed."""

    async def spawn(self, guest: Guest, *, paused: bool = False) -> None:
        await self._need_shares(guest)
        described = self._describe(guest)
        values = await self._values(guest.uuid, described.xml())

        def start(connection: libvirt.virConnect) -> None:
            with secrets.known(connection, values):
                power.start(connection, described, paused=paused)

        await self._connection.call(start, uuid=guest.uuid)
        self._ours.add(guest.uuid)
        if guest.rescue is None:
            await self._drop_rescue(guest.uuid)

    async def resume(self, uuid: str) -> None:
        await self._connection.call(lambda connection: power.resume(connection, uuid), uuid=uuid)

    async def pause(self, uuid: str) -> None:
        await self._connection.call(lambda connection: power.pause(connection, uuid), uuid=uuid)

    async def suspend(self, uuid: str) -> None:
        await self._connection.call(
            lambda connection: power.suspend(connection, uuid), uuid=uuid, limit=MEMORY_LIMIT
        )

    async def wake(self, uuid: str) -> None:
        described = await self._connection.call(lambda connection: power.defined(connection, uuid), uuid=uuid)
        values = await self._values(uuid, described)

        def wake(connection: libvirt.virConnect) -> None:
            with secrets.known(connection, values):
                power.wake(connection, uuid)

        await self._connection.call(wake, uuid=uuid, limit=MEMORY_LIMIT)
        self._ours.add(uuid)

    async def destroy(self, uuid: str) -> None:
        await self._connection.call(lambda connection: power.forget(connection, uuid), uuid=uuid)
        self._ours.discard(uuid)
        self._events.forget(uuid)

    async def power_off(self, uuid: str, *, grace: float, interval: float) -> None:
        """Cancelling it ends the wait and leaves the guest as it is. Spec: PWR-05, PWR-06, PWR-07, PWR-16."""
        if grace > 0 and await self._shut_down(uuid, grace, interval):
            return
        await self._connection.call(lambda connection: power.cut(connection, uuid), uuid=uuid)

    async def power_on(self, guest: Guest) -> None:
        await self.spawn(guest)

    async def soft_reboot(self, guest: Guest, *, wait: float) -> bool:
        """A guest that is off already (a repeated command) is started."""
        if not await self._shut_down(guest.uuid, wait, SOFT_REBOOT_SIGNAL_INTERVAL):
            return False
        await self.spawn(guest)
        return True

    async def hard_reboot(self, guest: Guest) -> None:
        await self._need_shares(guest)
        described = self._describe(guest)
        values = await self._values(guest.uuid, described.xml())

        def reboot(connection: libvirt.virConnect) -> None:
            power.cut(connection, guest.uuid)
            with secrets.known(connection, values):
                power.start(connection, described, paused=False)

        await self._connection.call(reboot, uuid=guest.uuid)
        self._ours.add(guest.uuid)
        if guest.rescue is None:
            await self._drop_rescue(guest.uuid)

    async def _shut_down(self, uuid: str, wait: float, interval: float) -> bool:
        """Press the power button until the guest is off. Returns whether it is."""
        deadline = self._clock.monotonic() + wait
        changed = self._events.watch(uuid)
        press_at = 0.0
        try:
            while True:
                changed.clear()
                now = self._clock.monotonic()
                if now >= press_at:
                    found = await self._connection.call(
                        lambda connection: power.press_button(connection, uuid), uuid=uuid
                    )
                    press_at = now + max(interval, LONGEST_WAIT_FOR_EVENT)
                else:
                    found = await self.power_state(uuid)
                if found in GUEST_OFF:
                    return True
                left = deadline - self._clock.monotonic()
                if left <= 0 or found is not PowerState.RUNNING:  # a guest that stands still obeys nobody
                    return False
                await _wait(changed, min(left, LONGEST_WAIT_FOR_EVENT))
        finally:
            self._events.unwatch(uuid, changed)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return  # the caller looks for itself
