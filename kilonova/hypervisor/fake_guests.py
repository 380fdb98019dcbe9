"""Looking at simulated guests that run, and telling them something."""

from __future__ import annotations

import zlib

from kilonova.domain.console import ConsoleAddress, ConsoleKind
from kilonova.domain.errors import Conflict, GuestAgentAway, NotFound, NotSupported
from kilonova.domain.states import GUEST_OFF, PowerState
from kilonova.hypervisor import fake_diagnostics
from kilonova.hypervisor.diagnostics import Diagnostics, OwnDiagnostics
from kilonova.hypervisor.fake_calls import ON, FakeCalls


class FakeGuestCalls(FakeCalls):
    """Running guests: password, interrupt, diagnostics, consoles."""

    async def set_password(self, uuid: str, user: str, password: str) -> None:
        await self._call("set_password")
        guest = self._existing(uuid)
        if guest.power_state is not PowerState.RUNNING:
            raise Conflict(f"Guest {uuid} does not run.")
        if uuid in self.hypervisor.faults.booting:
            raise GuestAgentAway(f"No agent answers in the guest of instance {uuid} yet.")
        self.hypervisor.passwords[uuid, user] = password

    async def inject_nmi(self, uuid: str) -> None:
        await self._call("inject_nmi")
        if self._existing(uuid).power_state not in ON:
            raise Conflict(f"Guest {uuid} does not run.")

    async def diagnostics(self, uuid: str) -> Diagnostics:
        await self._call("diagnostics")
        self._existing(uuid)
        return fake_diagnostics.COMMON

    async def own_diagnostics(self, uuid: str) -> OwnDiagnostics:
        await self._call("own_diagnostics")
        self._existing(uuid)
        return fake_diagnostics.OWN

    async def console_output(self, uuid: str, limit: int) -> bytes:
        guest = self._existing(uuid)
        boots = "".join(f"boot {number}: nothing is executed here\n" for number in range(1, guest.starts + 1))
        text = f"FAKE CONSOLE OUTPUT\nguest {guest.name}\n{boots}started {guest.starts} times\nready\n"
        return text.encode()[-limit:]

    async def console(self, uuid: str, kind: ConsoleKind) -> ConsoleAddress:
        """As on a real host, a guest may get another port at each start."""
        await self._call("console")
        guest = self._guest(uuid)
        if not guest.defined:
            raise NotFound(f"Host {self.hypervisor.host} has no guest {uuid}.")
        if guest.power_state in GUEST_OFF:
            raise Conflict(f"The guest of instance {uuid} does not run.")
        screens = self.hypervisor.screens
        if kind is ConsoleKind.VNC and screens is not None:
            return ConsoleAddress(host="127.0.0.1", port=await screens.port(uuid, guest.name, guest.starts))
        if kind is ConsoleKind.VNC:
            return ConsoleAddress(host="127.0.0.1", port=5900 + (zlib.crc32(uuid.encode()) + guest.starts) % 50_000)
        if kind is ConsoleKind.SERIAL:
            return ConsoleAddress(internal_access_path=f"/fake/{uuid}/console.sock")
        raise NotSupported(f"The guest of instance {uuid} has no {kind} console.")
