"""Images as the compute service sees them."""

from __future__ import annotations

import msgspec


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """What the image service says of an image.

    Args:
        size, virtual_size: bytes. min_disk: GiB. min_ram: MiB.
        properties: everything that is not a base attribute, as strings.
    """

    id: str
    name: str = ""
    status: str = "active"
    disk_format: str = "qcow2"
    container_format: str = "bare"
    size: int = 0
    virtual_size: int | None = None
    min_disk: int = 0
    min_ram: int = 0
    checksum: str | None = None
    owner: str | None = None
    visibility: str = "private"
    created_at: str = ""
    updated_at: str = ""
    properties: dict[str, str] = {}
