"""Data on its way into an image: what uploads and imports have in common.

One transfer at a time per image. While it runs the record says saving, uploading or importing; it ends with the
record active (or staged), or with the record as it was before and no data kept.

Spec: EMG-02, EMG-03, EMG-10, EMG-22.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable

import sqlalchemy as sa
import structlog

from kilonova.db.database import Database
from kilonova.domain.clock import Clock
from kilonova.domain.errors import Conflict, ImageNotFound, InvalidInput, ServiceUnavailable
from kilonova.embedded.image import queries
from kilonova.embedded.image.errors import TooLarge
from kilonova.embedded.image.files import ImageFiles, Incoming, Received
from kilonova.embedded.image.quotas import Quota, Quotas, Resource
from kilonova.embedded.image.records import ImageRecord, Limits, Status
from kilonova.imaging.inspect import check

log = structlog.get_logger(__name__)

SINGLE_DISKS = frozenset({"bare", "ami", "ari", "aki"})
"""Containers that hold nothing but the disk. What is in the others is not looked at."""

RETRY_PAUSE = 5.0
"""Seconds between attempts to write to a database that does not answer."""

CLOSE_LIMIT = 2.0
"""Seconds that closing, or a new transfer, waits for a transfer to clean up behind itself."""


class _Transfer:
    """stopped: tells it to stop. ended: tells others that it has."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self.ended = asyncio.Event()


class Transfers:
    """The transfers of one service: which run, and how each gets its data into place."""

    def __init__(self, database: Database, files: ImageFiles, clock: Clock, limits: Limits, quotas: Quotas) -> None:
        self.database = database
        self.files = files
        self.clock = clock
        self.limits = limits
        self.quotas = quotas
        self._running: dict[str, _Transfer] = {}
        self._debts: set[asyncio.Task[None]] = set()

    def running(self, image_id: str) -> bool:
        return image_id in self._running

    def stop(self, image_id: str) -> None:
        """End the transfer of an image that has been deleted. It cleans up behind itself."""
        if image_id in self._running:
            self._running[image_id].stopped.set()

    async def close(self) -> None:
        """End all transfers. One whose sender is silent may be left behind; the next start settles it."""
        running = list(self._running.values())
        for transfer in running:
            transfer.stopped.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_LIMIT):
                for transfer in running:
                    await transfer.ended.wait()
        for debt in self._debts:
            debt.cancel()
        await asyncio.gather(*self._debts, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def transfer(self, image_id: str) -> AsyncIterator[threading.Event]:
        """The block is the transfer that the record of the image already tells of. The event tells it to stop.

        An earlier one, which has given the record back, may still be ending: this waits for it.

        Raises:
            Conflict: it does not end.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_LIMIT):
                while image_id in self._running:
                    await self._running[image_id].ended.wait()
        if image_id in self._running:
            raise Conflict(f"Data of image {image_id} is being transferred already.")
        transfer = self._running[image_id] = _Transfer()
        try:
            yield transfer.stopped
        finally:
            del self._running[image_id]
            transfer.ended.set()
            transfer.stopped.set()  # for a thread that a cancellation has left behind

    async def settle(self, unit: Callable[[sa.Connection], object]) -> None:
        """Write how a transfer ended. If the database does not answer now this goes on in the background, so
        that no record stays in the middle of a transfer that is over."""
        try:
            await self.database.write(unit)
        except ServiceUnavailable as error:
            log.warning("putting off a record of image data", reason=str(error))
            debt = asyncio.create_task(self._pay(unit), name="settle image records")
            self._debts.add(debt)
            debt.add_done_callback(self._debts.discard)

    async def _pay(self, unit: Callable[[sa.Connection], object]) -> None:
        while True:
            await self.clock.sleep(RETRY_PAUSE)
            try:
                await self.database.write(unit)
            except ServiceUnavailable as error:
                log.warning("still cannot record image data", reason=str(error))
            else:
                return

    async def incoming(self, record: ImageRecord) -> Incoming:
        """A file that may grow up to what the limits leave."""
        limit = self.limits.image_bytes
        if self.limits.project_bytes is not None:
            used = await self.database.read(lambda conn: queries.used_bytes(conn, record.owner))
            limit = min(limit, max(self.limits.project_bytes - used, 0))
        return await self.files.run(self.files.incoming, limit)

    async def activate(self, record: ImageRecord, received: Received, before: Status) -> None:
        """Check the data, put it in its place, then say so in the record: in this order a crash at any moment
        leaves either no data or an active image.

        Raises:
            InvalidInput: the data is not what the image is declared to be. ImageNotFound: deleted meanwhile.
            TooLarge: the project has too much data.
        """
        quota = await self.quotas.of(record.owner)
        virtual_size = await self.files.run(_inspect, record, received, self.limits.virtual_bytes)
        await self.files.run(self.files.publish, received, record.id)
        try:
            await self.database.write(
                lambda conn: self._mark_active(conn, record, received, virtual_size, before, quota)
            )
        except (ImageNotFound, TooLarge):
            # After any other failure the record may have been written: the data stays until the next sweep.
            await self.files.run(self.files.data(record.id).unlink, missing_ok=True)
            raise

    def _mark_active(self, conn: sa.Connection, record: ImageRecord, received: Received, virtual_size: int | None,
                     before: Status, quota: Quota) -> None:
        limit = self.limits.project_bytes
        if limit is not None and queries.used_bytes(conn, record.owner) + received.size > limit:
            raise TooLarge(f"The images of the project exceed its limit of {limit} bytes.")
        finished = {"importing_to": "", "failed_import": ""} if before is Status.IMPORTING else {}
        moved = queries.move(
            conn, record.id, [before], Status.ACTIVE, self.clock.now(), size=received.size,
            virtual_size=virtual_size, checksum=received.md5, os_hash_value=received.sha512, **finished,
        )
        if not moved:
            raise ImageNotFound(record.id)
        # How much would come was known beforehand only if it was staged.
        quota.check(conn, Resource.SIZE_TOTAL, more=0 if record.staged_size is not None else -received.size)


def check_described(record: ImageRecord) -> None:
    """Raises InvalidInput for an image that does not say what its data will be."""
    if record.disk_format is None or record.container_format is None:
        raise InvalidInput(f"Image {record.id} needs disk_format and container_format before its data.")


def _inspect(record: ImageRecord, received: Received, max_virtual_bytes: int) -> int | None:
    """The virtual size in bytes, None where it is not known. Raises InvalidInput. Spec: EMG-04, EMG-22."""
    if received.size == 0:
        return None
    check_described(record)
    if record.container_format not in SINGLE_DISKS:
        return None
    return check(received.path, record.disk_format or "", max_virtual_bytes).virtual_size
