"""Calls that look at running guests, or tell them something."""

from __future__ import annotations

from kilonova.domain.console import ConsoleAddress, ConsoleKind
from kilonova.domain.errors import NotFound
from kilonova.hypervisor.diagnostics import Diagnostics, OwnDiagnostics
from kilonova.hypervisor.libvirt import agent, console_address, diagnostics, power
from kilonova.hypervisor.libvirt.calls.parts import Calls
from kilonova.hypervisor.libvirt.disks import CONSOLE_SOCKET

AGENT_LIMIT = 40.0
"""Seconds that the agent inside a guest may take to answer."""


class GuestCalls(Calls):
    """Running guests: password, interrupt, diagnostics, consoles."""

    name: str

    async def set_password(self, uuid: str, user: str, password: str) -> None:
        await self._connection.call(
            lambda connection: agent.set_password(connection, uuid, user, password), uuid=uuid, limit=AGENT_LIMIT
        )

    async def inject_nmi(self, uuid: str) -> None:
        await self._connection.call(lambda connection: power.inject_nmi(connection, uuid), uuid=uuid)

    async def diagnostics(self, uuid: str) -> Diagnostics:
        virt = self._host.virt
        return await self._connection.call(
            lambda connection: diagnostics.common(connection, uuid, driver=self.name, hypervisor=virt), uuid=uuid
        )

    async def own_diagnostics(self, uuid: str) -> OwnDiagnostics:
        return await self._connection.call(lambda connection: diagnostics.own(connection, uuid), uuid=uuid)

    async def console_output(self, uuid: str, limit: int) -> bytes:
        try:
            return await self._disks.console_tail(uuid, limit)
        except FileNotFoundError as error:
            raise NotFound(f"Instance {uuid} has no console record on this host.") from error

    async def console(self, uuid: str, kind: ConsoleKind) -> ConsoleAddress:
        """Graphics listen where libvirt found a free port; the serial console is a socket beside its record."""
        socket = self._disks.of(uuid) / CONSOLE_SOCKET
        return await self._connection.call(
            lambda connection: console_address.find(connection, uuid, kind, socket), uuid=uuid
        )
