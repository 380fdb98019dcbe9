"""Data on its way into an image: what uploads and imports have in common.

One transfer at a time per image. While it runs the record says saving, uploading or importing; it ends with the
record active (or staged), or with the record as it was before and no data kept.

Spec: EMG-02, EMG-03, EMG-10, EMG-22.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

import sqlalchemy as sa

from kilonova.db.database import Database
from kilonova.domain.clock import Clock
from kilonova.domain.errors import Conflict, ImageNotFound, InvalidInput
from kilonova.embedded.image import queries
from kilonova.embedded.image.errors import TooLarge
from kilonova.embedded.image.files import ImageFiles, Incoming, Received
from kilonova.embedded.image.records import ImageRecord, Limits, Status
from kilonova.imaging.inspect import check

SINGLE_DISKS = frozenset({"bare", "ami", "ari", "aki"})
"""Containers that hold nothing but the disk. What is in the others is not looked at."""

CLOSE_LIMIT = 2.0
"""Seconds that closing waits for transfers to clean up behind themselves."""


class Transfers:
    """The transfers of one service: which run, and how each gets its data into place."""

    def __init__(self, database: Database, files: ImageFiles, clock: Clock, limits: Limits) -> None:
        self.database = database
        self.files = files
        self.clock = clock
        self.limits = limits
        self._running: dict[str, threading.Event] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    def running(self, image_id: str) -> bool:
        return image_id in self._running

    def stop(self, image_id: str) -> None:
        """End the transfer of an image that has been deleted. It cleans up behind itself."""
        if image_id in self._running:
            self._running[image_id].set()

    async def close(self) -> None:
        """End all transfers. One whose sender is silent may be left behind; the next start settles it."""
        for stopped in self._running.values():
            stopped.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_LIMIT):
                await self._idle.wait()

    @contextlib.contextmanager
    def transfer(self, image_id: str) -> Iterator[threading.Event]:
        """The block is the one transfer of this image. The event tells it to stop. Raises Conflict."""
        if image_id in self._running:
            raise Conflict(f"Data of image {image_id} is being transferred already.")
        stopped = self._running[image_id] = threading.Event()
        self._idle.clear()
        try:
            yield stopped
        finally:
            stopped.set()  # for a thread that a cancellation has left behind
            del self._running[image_id]
            if not self._running:
                self._idle.set()

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
        virtual_size = await self.files.run(_inspect, record, received, self.limits.virtual_bytes)
        await self.files.run(self.files.publish, received, record.id)
        try:
            await self.database.write(
                lambda conn: self._mark_active(conn, record, received, virtual_size, before)
            )
        except (ImageNotFound, TooLarge):
            await self.files.run(self.files.data(record.id).unlink, missing_ok=True)
            raise

    def _mark_active(self, conn: sa.Connection, record: ImageRecord, received: Received, virtual_size: int | None,
                     before: Status) -> None:
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
