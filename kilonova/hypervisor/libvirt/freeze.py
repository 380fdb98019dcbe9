"""Holding the file systems of a guest still for the moment at which a copy of its disk begins.

Before a guest is told to freeze, a file beside its disks says until when. Whatever happens then, the guest is told to
thaw: at once when the copy has begun or could not, at that deadline if libvirt hangs, by the next report of the host
if nothing else has, and when the driver starts, if the process died in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import structlog

from kilonova.domain.clock import Clock
from kilonova.domain.errors import KilonovaError, NotSupported
from kilonova.hypervisor.libvirt import agent
from kilonova.hypervisor.libvirt.connection import Connection
from kilonova.hypervisor.libvirt.disks import GuestDisks
from kilonova.hypervisor.libvirt.files import finished, whole
from kilonova.shapes.quiesce import REQUIRED, Quiesce

log = structlog.get_logger(__name__)

T = TypeVar("T")

MARK = "frozen-until"
LONGEST = 60.0
"""Seconds for which a guest is frozen at most."""
ATTEMPTS, PAUSE = 3, 2.0
"""How often a guest is told to thaw, and seconds in between. Spec: QUI-11."""


class Freezer:
    """Freezes and thaws guests."""

    def __init__(self, disks: GuestDisks, clock: Clock, workers: Executor) -> None:
        self._disks = disks
        self._clock = clock
        self._workers = workers

    @asynccontextmanager
    async def held(self, connection: Connection, uuid: str, quiesce: Quiesce) -> AsyncIterator[None]:
        """Hold the file systems of a guest still during the block, for at most a minute.

        Raises:
            NotSupported: they must be and cannot. KilonovaError: the guest was not thawed. Spec: QUI-01 to QUI-04.
        """
        if not await self.freeze(connection, uuid, quiesce):
            yield
            return
        try:
            async with asyncio.timeout(LONGEST):
                yield
        except BaseException:
            await self._thaw_after_error(connection, uuid)
            raise
        await asyncio.shield(self.thaw(connection, uuid))

    async def thaw(self, connection: Connection, uuid: str) -> None:
        """Thaw a guest that may be frozen. Raises KilonovaError: it may still be. Spec: QUI-08, QUI-09, QUI-11."""
        mark = self._mark(uuid)
        if not await self._run(mark.exists):
            return
        for left in reversed(range(ATTEMPTS)):
            try:
                await connection.call(lambda open_: agent.thaw(open_, uuid))
            except KilonovaError as error:
                if left == 0:
                    log.error("guest may still be frozen", instance=uuid, error=str(error))
                    raise KilonovaError(
                        f"The file systems of instance {uuid} may still be frozen: {error}", hint="reboot it hard"
                    ) from error
                await self._clock.sleep(PAUSE)
            else:
                break
        await self._run(lambda: mark.unlink(missing_ok=True))

    async def thaw_all(self, connection: Connection, *, overdue: bool) -> None:
        """Thaw all guests that are marked. Failures are told in the log.

        Args:
            overdue: only those whose time is over; the others are at work. Spec: QUI-03, QUI-12.
        """
        for uuid in await self._disks.owners():
            until = await self._run(_until, self._mark(uuid))
            if until is not None and not (overdue and self._clock.now() < until):
                log.warning("guest was left frozen; thawing it", instance=uuid)
                await asyncio.gather(self.thaw(connection, uuid), return_exceptions=True)

    async def freeze(self, connection: Connection, uuid: str, quiesce: Quiesce) -> bool:
        """Hold the file systems of a guest still until `thaw`, for at most a minute.

        Returns:
            False if the guest is not frozen. One that has not answered might be, and is thawed.

        Raises:
            NotSupported: they must be and cannot. KilonovaError: the guest was not thawed.
        """
        if quiesce is Quiesce.NO:
            return False
        try:
            await connection.call(lambda open_: agent.require(open_, uuid), uuid=uuid)
            await self._run(_write, self._mark(uuid), self._clock.now() + LONGEST)
            await connection.call(lambda open_: agent.freeze(open_, uuid), uuid=uuid)
        except KilonovaError as error:
            reason = error
        except BaseException:
            await self._thaw_after_error(connection, uuid)
            raise
        else:
            return True
        await asyncio.shield(self.thaw(connection, uuid))
        if quiesce is Quiesce.MUST:
            raise NotSupported(
                f"The file systems of instance {uuid} cannot be held still while it runs, and its image demands that "
                f"({REQUIRED}): {reason}", hint="start the agent in the guest, or stop the server first",
            ) from reason
        log.info("file systems are not held still for a copy", instance=uuid, reason=str(reason))
        return False

    async def _thaw_after_error(self, connection: Connection, uuid: str) -> None:
        """A failure is told in the log, and thawing tried again by whoever finds the mark: the caller is told of the
        error that came first."""
        await asyncio.shield(asyncio.gather(self.thaw(connection, uuid), return_exceptions=True))

    def _mark(self, uuid: str) -> Path:
        return self._disks.of(uuid) / MARK

    async def _run(self, fn: Callable[..., T], *arguments: object) -> T:
        return await finished(asyncio.get_running_loop().run_in_executor(self._workers, fn, *arguments))


def _write(mark: Path, until: float) -> None:
    with whole(mark) as partial:
        partial.write_text(str(until))


def _until(mark: Path) -> float | None:
    """Seconds since the epoch, None without a mark."""
    try:
        return float(mark.read_text())
    except FileNotFoundError:
        return None
