"""Handing a password to a guest while an operation holds its server."""

from __future__ import annotations

import uuid

import msgspec
import sqlalchemy as sa
import structlog

from kilonova.agent.reports import PasswordQuery
from kilonova.bus.protocol import Bus
from kilonova.cells.registry import Cell, Located
from kilonova.db import instances
from kilonova.db.journal import cell_journal
from kilonova.domain.clock import Clock
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import Conflict, GuestAgentAway, InstanceInvalidState, KilonovaError, NotSupported
from kilonova.domain.instance import Fault
from kilonova.domain.operation import ExternalEvent, OperationRecord
from kilonova.domain.states import TaskState
from kilonova.operations.acceptance import END_LIMIT, Acceptance
from kilonova.operations.host_query import ask_host
from kilonova.operations.password import BOOT_LIMIT, CHANGE_PASSWORD, EVENT, HOST_LIMIT, ChangePassword
from kilonova.shapes.quiesce import has_agent

log = structlog.get_logger(__name__)

ADMINISTRATOR = "root"
WINDOWS_ADMINISTRATOR = "Administrator"
BOOT_PAUSE = 1.0
"""Seconds between questions whether the agent of a guest answers now."""


class PasswordSetting:
    """Asks for a change of the password, and hands the password over."""

    def __init__(self, acceptance: Acceptance, bus: Bus, clock: Clock) -> None:
        self._acceptance = acceptance
        self._bus = bus
        self._clock = clock

    async def change(self, context: RequestContext, server: Located, password: str) -> None:
        """Spec: PWD-01 to PWD-14."""
        instance, cell = server.instance, server.cell
        asked = ChangePassword(key=str(uuid.uuid4()))
        change = await self._acceptance.ask(context, server, CHANGE_PASSWORD, asked)
        assert cell is not None
        if msgspec.json.decode(change.request, type=ChangePassword) != asked:
            raise InstanceInvalidState(
                instance.uuid, "changePassword", "task_state", TaskState.UPDATING_PASSWORD.value
            )
        failed = await self._hand_over(server, password)
        await self.tell(cell, change, asked.key, failed)
        self._acceptance.wake(cell)
        await self._acceptance.end_of(cell, change.id, END_LIMIT)
        if failed is not None:
            raise failed

    async def tell(
        self, cell: Cell, change: OperationRecord, key: str, failed: KilonovaError | None
    ) -> None:
        """Tell the operation how it went, and store why it failed. Spec: PWD-09, PWD-11, PWD-12.

        Raises:
            InstanceNotFound: the server was deleted meanwhile. Only if the password was set: why it was not is worth
                more than that it cannot be stored.
        """
        status = "completed" if failed is None else "failed"
        event = ExternalEvent(subject=change.subject, name=EVENT, tag=key, status=status)

        def write(conn: sa.Connection) -> None:
            instances.get(conn, change.subject)
            now = self._clock.now()
            if failed is not None:
                fault = Fault(code=failed.status, message=failed.message, created_at=now)
                instances.add_fault(conn, change.subject, change.id, fault)
            cell_journal.add_event(conn, event, now)

        try:
            await cell.database.write(write)
        except Exception as error:
            if failed is None:
                raise
            log.warning("outcome of a password change not stored", instance=change.subject, error=str(error))

    async def _hand_over(self, server: Located, password: str) -> KilonovaError | None:
        """Ask the host; returns why it did not work. What is not meant for the caller is logged and replaced, so that
        nothing of the cause reaches him. Spec: PWD-08, PWD-10."""
        instance = server.instance
        assert instance.host is not None
        query = PasswordQuery(uuid=instance.uuid, user=_administrator(server), password=password)
        try:
            await self._ask(instance.host, query, wait=BOOT_LIMIT if has_agent(_properties(server)) else 0.0)
        except (Conflict, NotSupported) as error:
            return error
        except Exception as error:  # noqa: BLE001 - whatever it was, its text may hold the password
            text = str(error).replace(password, "***") if password else str(error)
            log.warning("password not set", instance=instance.uuid, kind=type(error).__name__, error=text)
            return Conflict(f"Failed to set admin password on {instance.uuid} because error setting admin password")
        return None

    async def _ask(self, host: str, query: PasswordQuery, *, wait: float) -> None:
        """Ask the host, and for `wait` seconds again while no agent answers in the guest: a server is ACTIVE when its
        guest has only begun to boot."""
        give_up = self._clock.monotonic() + wait
        while True:
            try:
                await ask_host(self._bus, host, query, limit=HOST_LIMIT)
                return
            except GuestAgentAway:
                if self._clock.monotonic() + BOOT_PAUSE > give_up:
                    raise
            await self._clock.sleep(BOOT_PAUSE)


def _properties(server: Located) -> dict[str, str]:
    image = server.instance.image
    return image.properties if image is not None else {}


def _administrator(server: Located) -> str:
    """Whose password it is: the image may say."""
    properties = _properties(server)
    windows = properties.get("os_type", "").lower() == "windows"
    return properties.get("os_admin_user") or (WINDOWS_ADMINISTRATOR if windows else ADMINISTRATOR)
