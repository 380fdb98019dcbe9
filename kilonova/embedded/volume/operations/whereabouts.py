"""Where the data of a volume lie, for the steps of operations; and telling users why one failed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from kilonova.domain.image import Image
from kilonova.domain.operation import Failure
from kilonova.embedded.volume import messages, volumes
from kilonova.embedded.volume.errors import InvalidVolume
from kilonova.embedded.volume.records import Volume
from kilonova.engine.operation import NoUndo, Tx
from kilonova.engine.run import Run
from kilonova.services.image import ImageSource

READS = NoUndo("changes nothing")
COPY_LIMIT = 6 * 3600.0
"""Seconds that copying the data of a volume may take."""
CHUNK = 1 << 20


class Whereabouts(msgspec.Struct, frozen=True):
    """host: the pool. name_id: what the data are called in it. key_id: that they are encrypted with."""

    host: str
    name_id: str
    size: int
    key_id: str | None = None


def whereabouts(volume: Volume) -> Whereabouts:
    """Raises InvalidVolume: it has no data."""
    if volume.host is None:
        raise InvalidVolume(volume.id, "has no data")
    return Whereabouts(volume.host, volume.name_id, volume.size, volume.encryption_key_id)


def look(tx: Tx, run: Run[Any]) -> Whereabouts:
    """As a step: where the data of the operation's subject are."""
    return whereabouts(volumes.get(tx.conn, run.subject))


def tell_user(tx: Tx, run: Run[Any], resource: str, resource_id: str, failure: Failure) -> None:
    """Leave a message of why an operation failed to whom asked for it."""
    messages.tell(
        tx.conn, run.record.asker.project_id, run.record.asker.request_id, resource, resource_id,
        f"{run.record.kind}-failed".replace(" ", "-"), failure.message, tx.now,
    )


async def file_of(images: ImageSource, image_id: str, staged: Path) -> Path:
    """The data of an image as a file: the service's own, or a copy at `staged`."""
    local = images.local_path(image_id)
    if local is not None:
        return local
    await asyncio.to_thread(staged.parent.mkdir, parents=True, exist_ok=True)
    with await asyncio.to_thread(staged.open, "wb") as file:
        async for chunk in images.data(image_id):
            await asyncio.to_thread(file.write, chunk)
    return staged


async def chunks(path: Path) -> AsyncIterator[bytes]:
    """The bytes of a file."""
    with await asyncio.to_thread(path.open, "rb") as file:
        while chunk := await asyncio.to_thread(file.read, CHUNK):
            yield chunk


async def remove(path: Path) -> None:
    """Remove a file that may be gone already."""
    await asyncio.to_thread(path.unlink, missing_ok=True)


def image_metadata(image: Image) -> dict[str, str]:
    """What a volume tells of the image that it was made from. Spec: EMV-04."""
    known: dict[str, object] = {
        "image_id": image.id, "image_name": image.name, "checksum": image.checksum or "",
        "container_format": image.container_format, "disk_format": image.disk_format, "min_disk": image.min_disk,
        "min_ram": image.min_ram, "size": image.size,
    }
    return image.properties | {name: str(value) for name, value in known.items()}
