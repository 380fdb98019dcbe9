"""What the image service keeps: images, members of shared images, import tasks."""

from __future__ import annotations

from enum import Enum

import msgspec

from kilonova.domain.clock import iso_seconds
from kilonova.domain.image import Image

HASH_ALGORITHM = "sha512"

STORE = "file"
"""The one store of image data: a directory of this machine."""


class Status(Enum):
    QUEUED = "queued"
    """Described, without data."""
    SAVING = "saving"
    """Data is being uploaded."""
    UPLOADING = "uploading"
    """Data is being staged, or staged and waiting for its import."""
    IMPORTING = "importing"
    ACTIVE = "active"
    DEACTIVATED = "deactivated"
    """Its data is withheld from all but administrators."""


WITH_DATA = frozenset({Status.ACTIVE, Status.DEACTIVATED})
MAY_BE_STAGED = frozenset({Status.UPLOADING, Status.IMPORTING})
UNDER_WAY = frozenset({Status.SAVING, *MAY_BE_STAGED})


class Visibility(Enum):
    PUBLIC = "public"
    COMMUNITY = "community"
    """Usable by all who know the id, but not in their lists."""
    SHARED = "shared"
    """Usable by its members."""
    PRIVATE = "private"


class MemberStatus(Enum):
    PENDING = "pending"
    ACCEPTED = "accepted"
    REJECTED = "rejected"


class TaskStatus(Enum):
    PROCESSING = "processing"
    SUCCESS = "success"
    FAILURE = "failure"


class ImportMethod(Enum):
    GLANCE_DIRECT = "glance-direct"
    """From data staged before."""
    WEB_DOWNLOAD = "web-download"
    LOCATION = "location"
    """From a location that was added to an image without data."""


class ImportRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Where an import takes its data from.

    Args:
        uri: for all methods but glance-direct.
        sha512: hex digest that the data must have, or None.
    """

    method: ImportMethod
    uri: str | None = None
    sha512: str | None = None


class ImageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One image.

    Args:
        size, virtual_size: bytes, None until known. min_disk: GiB. min_ram: MiB.
        staged_size: bytes that wait for their import, None without.
        checksum: MD5; os_hash_value: SHA-512, both in hex and None until there is data.
        importing_to, failed_import: store names while and after an import, None without one.
        properties: everything that callers added.
    """

    id: str
    name: str | None = None
    owner: str | None = None
    status: Status = Status.QUEUED
    visibility: Visibility = Visibility.SHARED
    disk_format: str | None = None
    container_format: str | None = None
    size: int | None = None
    virtual_size: int | None = None
    staged_size: int | None = None
    min_disk: int = 0
    min_ram: int = 0
    checksum: str | None = None
    os_hash_value: str | None = None
    os_hidden: bool = False
    protected: bool = False
    importing_to: str | None = None
    failed_import: str | None = None
    created_at: float = 0.0
    updated_at: float = 0.0
    properties: dict[str, str] = {}
    tags: tuple[str, ...] = ()

    def for_compute(self) -> Image:
        """The image as the compute service sees it."""
        return Image(
            id=self.id, name=self.name or "", status=self.status.value, disk_format=self.disk_format or "",
            container_format=self.container_format or "", size=self.size or 0, virtual_size=self.virtual_size,
            min_disk=self.min_disk, min_ram=self.min_ram, checksum=self.checksum, owner=self.owner,
            visibility=self.visibility.value, created_at=iso_seconds(self.created_at),
            updated_at=iso_seconds(self.updated_at), properties=self.properties,
        )


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A project that a shared image is shared with."""

    image_id: str
    member_id: str
    status: MemberStatus
    created_at: float
    updated_at: float


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """An import, running or finished. message: why it failed."""

    id: str
    image_id: str
    owner: str | None
    user_id: str
    request_id: str
    request: ImportRequest
    status: TaskStatus
    message: str = ""
    created_at: float
    updated_at: float


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What one deployment allows. Bytes unless said otherwise.

    Args:
        keep_free: an upload is refused rather than leave less than this on the disk.
        project_bytes: of all images of one project; None for no limit.
        images, properties, tags, members: counts; images per project, the others per image.
    """

    image_bytes: int = 1 << 40
    virtual_bytes: int = 1 << 44
    keep_free: int = 256 << 20
    project_bytes: int | None = None
    images: int = 10_000
    properties: int = 128
    tags: int = 128
    members: int = 128
