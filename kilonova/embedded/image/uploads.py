"""Data that a caller sends: straight into an image, or staged for a later import.

Spec: EMG-02 to EMG-05, EMG-10, EMG-33.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator

import sqlalchemy as sa

from kilonova.domain.errors import Conflict, ImageNotFound, InvalidInput, KilonovaError
from kilonova.embedded.image import queries
from kilonova.embedded.image.errors import TooLarge
from kilonova.embedded.image.files import CHUNK, Incoming, Received
from kilonova.embedded.image.quotas import Resource
from kilonova.embedded.image.records import ImageRecord, Status
from kilonova.embedded.image.transfers import Transfers, check_described

STALLED = 60.0
"""Seconds without a byte after which an upload is given up."""

DRAIN_LIMIT = 30.0
"""Seconds for which the rest of a refused upload is still read, so that its sender gets to see the answer."""


class Uploads:
    def __init__(self, transfers: Transfers) -> None:
        self._transfers = transfers

    async def upload(self, record: ImageRecord, body: AsyncIterator[bytes], size: int | None) -> None:
        """Receive the data of a queued image and make it active.

        Args:
            size: bytes that the sender announced, or None.

        Raises:
            Conflict: the image is not queued. TooLarge. InvalidInput: the data is not what was announced or
                declared. ImageNotFound: deleted meanwhile.
        """
        async with self._received(record, body, size, Status.SAVING, Resource.SIZE_TOTAL) as received:
            await self._transfers.activate(record, received, Status.SAVING)

    async def stage(self, record: ImageRecord, body: AsyncIterator[bytes], size: int | None) -> None:
        """Receive data that a later import will use. Raises as `upload` does."""
        files = self._transfers.files
        async with self._received(record, body, size, Status.UPLOADING, Resource.STAGE_TOTAL) as received:
            quota = await self._transfers.quotas.of(record.owner)
            await files.run(files.stage, received, record.id)

            def unit(conn: sa.Connection) -> None:
                queries.record_staged(conn, record.id, received.size)
                quota.check(conn, Resource.STAGE_TOTAL, more=-received.size)

            await self._transfers.database.write(unit)

    @contextlib.asynccontextmanager
    async def _received(self, record: ImageRecord, body: AsyncIterator[bytes], size: int | None,
                        status: Status, space: Resource) -> AsyncIterator[Received]:
        """The data of the body, on the disk, where it takes `space`. The record is in `status` meanwhile, and
        queued again if the block or the transfer fails. Spec: EMG-03."""
        try:
            await self._begin(record, status, space)
        except KilonovaError:
            await _drain(body)
            raise
        try:
            async with self._transfers.transfer(record.id) as stopped:
                incoming = await self._transfers.incoming(record)
                try:
                    yield await self._receive(record, body, size, incoming, stopped)
                finally:
                    await asyncio.shield(self._transfers.files.run(incoming.discard))
        except BaseException as error:
            await asyncio.shield(self._give_back(record.id, status))
            if isinstance(error, KilonovaError):
                await _drain(body)
            raise

    async def _begin(self, record: ImageRecord, status: Status, space: Resource) -> None:
        quota, now = await self._transfers.quotas.of(record.owner), self._transfers.clock.now()

        def unit(conn: sa.Connection) -> None:
            if not queries.move(conn, record.id, [Status.QUEUED], status, now):
                raise Conflict(f"Image {record.id} is not in status queued.",
                               hint="an image gets its data once; make another image for other data")
            quota.check(conn, Resource.COUNT_UPLOADING)
            quota.check(conn, space)

        await self._transfers.database.write(unit)

    async def _give_back(self, image_id: str, status: Status) -> None:
        files, now = self._transfers.files, self._transfers.clock.now()
        await files.run(files.staged(image_id).unlink, missing_ok=True)
        await self._transfers.settle(lambda conn: queries.move(conn, image_id, [status], Status.QUEUED, now))

    async def _receive(self, record: ImageRecord, body: AsyncIterator[bytes], size: int | None,
                       incoming: Incoming, stopped: threading.Event) -> Received:
        """Write the body to the disk with memory for one chunk. Spec: EMG-33."""
        limit = self._transfers.limits.image_bytes
        if size is not None and size > limit:
            raise TooLarge(f"The image exceeds the limit of {limit} bytes.")
        buffer = bytearray()
        async for part in _parts(body):
            if stopped.is_set():
                raise ImageNotFound(record.id)
            if part:
                check_described(record)
            buffer += part
            if len(buffer) >= CHUNK:
                await self._transfers.files.run(incoming.write, buffer)
                buffer = bytearray()
        await self._transfers.files.run(incoming.write, buffer)
        if size is not None and size != incoming.size:
            raise InvalidInput(f"The image has {incoming.size} bytes, not {size} as announced.")
        return await self._transfers.files.run(incoming.finish)


async def _parts(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    while True:
        try:
            async with asyncio.timeout(STALLED):
                part = await anext(body)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise InvalidInput(f"The upload stalled for {STALLED:.0f} seconds.") from None
        yield part


async def _drain(body: AsyncIterator[bytes]) -> None:
    """Read and drop what is still to come: a sender who is cut off in mid-sentence never reads the answer."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_LIMIT):
            async for _ in body:
                pass
