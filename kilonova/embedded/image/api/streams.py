"""Image data leaving the service, in chunks of constant size."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator

from kilonova.domain.errors import ImageNotFound
from kilonova.embedded.image.errors import RangeNotSatisfiable
from kilonova.embedded.image.files import CHUNK, ImageFiles

RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


async def file_chunks(files: ImageFiles, image_id: str, start: int, length: int) -> AsyncIterator[bytes]:
    """`length` bytes of the data of an image from offset `start`. Raises ImageNotFound: the data is gone.

    A deletion meanwhile does not disturb it: the open file stays readable.
    """
    try:
        fd = await files.run(os.open, files.data(image_id), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ImageNotFound(image_id) from None
    try:
        while length > 0:
            chunk = await files.run(os.pread, fd, min(CHUNK, length), start)
            if not chunk:
                raise OSError(f"the data of image {image_id} is shorter than its record says")
            start += len(chunk)
            length -= len(chunk)
            yield chunk
    finally:
        # A read that a cancellation left behind in its thread loses its file; nobody looks at its result.
        os.close(fd)


def requested_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Start and length of the bytes that a Range header asks for; None when all are wanted.

    A header that asks for several ranges or is malformed is ignored, as HTTP allows.

    Raises:
        RangeNotSatisfiable: it begins behind the end.
    """
    asked = RANGE.fullmatch(header.replace(" ", "")) if header else None
    if asked is None or asked[1] == asked[2] == "":
        return None
    if asked[1] == "":
        start, end = max(size - int(asked[2]), 0), size
    else:
        start, end = int(asked[1]), min(int(asked[2]) + 1, size) if asked[2] else size
        if asked[2] and int(asked[2]) < start:
            return None
    if start >= size:
        raise RangeNotSatisfiable(f"The image has {size} bytes; there are none from {start} on.")
    return start, end - start
