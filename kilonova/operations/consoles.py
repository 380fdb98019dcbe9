"""Consoles: who may use one gets a token for it, and a token is judged by what is true when it is used.

Nothing of a server changes here, whatever becomes of a request: no state, and no fault. Spec: CON-09, CON-18, CON-22.
"""

from __future__ import annotations

import uuid
from urllib.parse import urlencode

import msgspec
import sqlalchemy as sa

from kilonova.agent.reports import ConsoleAddressQuery
from kilonova.bus.protocol import Bus
from kilonova.cells.registry import Cells, Located
from kilonova.db import console_tokens, instances
from kilonova.domain.clock import Clock
from kilonova.domain.console import KINDS, SPICE_DIRECT, ConsoleAddress, ConsoleKind, ConsoleToken
from kilonova.domain.errors import (
    ConsoleTypeInvalid,
    ConsoleTypeUnavailable,
    InstanceInvalidState,
    InstanceNotFound,
    InstanceNotReady,
    NotFound,
)
from kilonova.domain.states import TaskState, VmState
from kilonova.operations.host_query import ask_host

_REFUSED = frozenset({TaskState.DELETING, TaskState.MIGRATING})


class ConsoleOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Consoles of guests."""

    vnc_enabled: bool = True
    """Give access to the screens of guests."""
    serial_enabled: bool = True
    """Give access to the serial consoles of guests."""
    spice_enabled: bool = False
    """Give guests SPICE as well, from their next start on, and access to it."""
    token_ttl: float = 600.0
    """Seconds after which a token lets nobody in any more; connections that are open by then stay."""
    novncproxy_base_url: str = ""
    """URL of the page for screens, the name of the page included; empty for the one of this installation."""
    serial_base_url: str = ""
    """WebSocket URL of serial consoles; empty for the one of this installation."""
    html5proxy_base_url: str = ""
    """URL of the page for SPICE; empty for the one of this installation."""
    spice_direct_proxy_base_url: str = ""
    """URL of a proxy for clients that speak SPICE."""
    allowed_origins: tuple[str, ...] = ()
    """Host names of other web pages that may open consoles, for example that of a dashboard."""


class RemoteConsole(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody who asked for a console is given."""

    type: str
    url: str
    token: str


class Consoles:
    """Makes and judges tokens.

    Args:
        url: under which clients reach this installation.
    """

    def __init__(self, cells: Cells, bus: Bus, clock: Clock, options: ConsoleOptions, url: str) -> None:
        self._cells = cells
        self._bus = bus
        self._clock = clock
        self._options = options
        self._bases = {
            "novnc": options.novncproxy_base_url or f"{url}/console/novnc/vnc_lite.html",
            "serial": options.serial_base_url or f"ws{url.removeprefix('http')}/console/",
            "spice-html5": options.html5proxy_base_url or f"{url}/console/spice/spice_auto.html",
            SPICE_DIRECT: options.spice_direct_proxy_base_url,
        }

    async def create(self, server: Located, kind: ConsoleKind, type_: str) -> RemoteConsole:
        """Give access to a console.

        Raises:
            InstanceInvalidState, InstanceNotReady: the server is not where it could be reached.
            ConsoleTypeUnavailable, ConsoleTypeInvalid: not this kind, or not this type of it.
            NotSupported, Conflict, NotFound, ServiceUnavailable: what the host said. Spec: CON-10 to CON-18.
        """
        instance, cell = server.instance, server.cell
        if instance.host is None or cell is None:
            raise InstanceNotReady(instance.uuid)
        if instance.task_state in _REFUSED:
            raise InstanceInvalidState(instance.uuid, f"get_{kind}_console", "task_state", instance.task_state.value)
        self._check(kind, type_)
        try:
            address = await self._look(instance.uuid, instance.host, kind)
        except NotFound as error:
            stored = await cell.database.read(lambda conn: instances.get(conn, instance.uuid))
            if stored.vm_state is VmState.BUILDING:
                raise InstanceNotReady(instance.uuid) from error
            raise InstanceNotFound(instance.uuid) from error
        token, now = str(uuid.uuid4()), self._clock.now()
        base = self._bases[type_]
        right = ConsoleToken(
            instance_uuid=instance.uuid, type=type_, compute_host=instance.host, address=address,
            access_url_base=base, expires_at=now + self._options.token_ttl,
        )

        def store(conn: sa.Connection) -> None:
            """Not for a server that is deleted meanwhile: its tokens have been revoked already."""
            stored = instances.get(conn, instance.uuid, lock=True)
            if stored.host != instance.host or stored.task_state in _REFUSED:
                raise InstanceNotReady(instance.uuid)
            console_tokens.insert(conn, token, right, now=now)

        await cell.database.write(store)
        return RemoteConsole(type=type_, url=_with_token(base, type_, token), token=token)

    async def show(self, token: str) -> ConsoleToken:
        """What a token gives a right to. Raises NotFound for one that is unknown, revoked or expired. Spec: API-265."""
        now = self._clock.now()
        for cell in self._cells.all:
            found = await cell.database.read(lambda conn: console_tokens.find(conn, token, now=now))
            if found is not None:
                return found
        raise NotFound("Token not found")

    async def admit(self, token: str) -> ConsoleToken:
        """Judge a token that somebody wants to use: the server must be where it was when the token was made, and
        its console must still listen there.

        Raises:
            KilonovaError: the token is not valid, whatever the reason. Spec: CON-24 to CON-29.
        """
        right = await self.show(token)
        kind = KINDS.get(right.type)
        if kind is None:
            raise ConsoleTypeInvalid(right.type)
        self._check(kind, right.type)
        server = await self._cells.locate(right.instance_uuid)
        if server.instance.host != right.compute_host or server.instance.task_state in _REFUSED:
            raise NotFound("The server is not where it was when the token was made.")
        if await self._look(right.instance_uuid, right.compute_host, kind) != right.address:
            raise NotFound("The console is not where it was when the token was made.")
        return right

    async def still_there(self, right: ConsoleToken) -> bool:
        """Whether the server of an open connection has neither been deleted nor moved."""
        try:
            instance = (await self._cells.locate(right.instance_uuid)).instance
        except InstanceNotFound:
            return False
        return instance.host == right.compute_host and instance.task_state is not TaskState.DELETING

    def _check(self, kind: ConsoleKind, type_: str) -> None:
        """Raises ConsoleTypeUnavailable, ConsoleTypeInvalid. Spec: CON-10 to CON-12, CON-27."""
        options = self._options
        enabled = {
            ConsoleKind.VNC: options.vnc_enabled, ConsoleKind.SERIAL: options.serial_enabled,
            ConsoleKind.SPICE: options.spice_enabled,
        }
        if not enabled.get(kind):
            raise ConsoleTypeUnavailable(kind.value)
        if KINDS.get(type_) is not kind:
            raise ConsoleTypeInvalid(type_)
        if not self._bases[type_]:
            raise ConsoleTypeUnavailable(type_)

    async def _look(self, instance_uuid: str, host: str, kind: ConsoleKind) -> ConsoleAddress:
        answer = await ask_host(self._bus, host, ConsoleAddressQuery(uuid=instance_uuid, kind=kind))
        assert answer.address is not None
        return answer.address


def _with_token(base: str, type_: str, token: str) -> str:
    """noVNC takes the WebSocket's path as a parameter of its page. Spec: CON-19."""
    query = {"path": f"?token={token}"} if type_ == "novnc" else {"token": token}
    return f"{base}{'&' if '?' in base else '?'}{urlencode(query)}"
