"""What all calls of the simulated hypervisor work with."""

from __future__ import annotations

import msgspec

from kilonova.domain.clock import Clock
from kilonova.domain.errors import NotFound
from kilonova.domain.states import PowerState
from kilonova.hypervisor.fake_state import FakeGuest, FakeHypervisor

ON = (PowerState.RUNNING, PowerState.PAUSED)


class FakeCalls:
    """Reading and keeping the records of guests."""

    hypervisor: FakeHypervisor
    _clock: Clock

    async def _call(self, name: str) -> None:
        """Every call takes its time and may have been told to fail."""
        faults = self.hypervisor.faults
        if faults.latency:
            await self._clock.sleep(faults.latency)
        planned = faults.fail.get(name)
        if planned:
            raise planned.pop(0)

    def _guest(self, uuid: str) -> FakeGuest:
        known = self.hypervisor.guests.get(uuid)
        return msgspec.structs.replace(known) if known is not None else FakeGuest(uuid=uuid)

    def _existing(self, uuid: str) -> FakeGuest:
        guest = self._guest(uuid)
        if not guest.disks:
            raise NotFound(f"Guest {uuid} has no disks on host {self.hypervisor.host}.")
        return guest

    def _power(self, guest: FakeGuest, state: PowerState) -> None:
        if state in ON and guest.power_state not in ON:
            guest.starts += 1
        guest.power_state = state
        guest.frozen = guest.frozen and state in ON
        self.hypervisor.keep(guest)
