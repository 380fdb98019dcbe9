"""Quotas of images: how much a project may have by the unified limits of service glance.

What is registered there limits all projects, but those with limits of their own; what is not registered limits
nobody. Sizes count in whole MiB. How large an upload is shows only at its end, so it may exceed a size once; the
next one is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import msgspec
import sqlalchemy as sa

from kilonova.embedded.image import schema
from kilonova.embedded.image.errors import TooLarge
from kilonova.embedded.image.records import UNDER_WAY
from kilonova.services.identity import IdentityService

SERVICE = "glance"
UNLIMITED = -1
MIB = 1 << 20


class Resource(Enum):
    """What is limited, by the names of the limits."""

    SIZE_TOTAL = "image_size_total"
    """MiB of data of all images."""
    STAGE_TOTAL = "image_stage_total"
    """MiB of data that was staged and has not become an image yet."""
    COUNT_TOTAL = "image_count_total"
    COUNT_UPLOADING = "image_count_uploading"
    """Images whose data is arriving, staged or being imported."""


UNITS = {Resource.SIZE_TOTAL: MIB, Resource.STAGE_TOTAL: MIB, Resource.COUNT_TOTAL: 1, Resource.COUNT_UPLOADING: 1}

_image = schema.images.c
_USED: Mapping[Resource, sa.ColumnElement[int]] = {
    Resource.SIZE_TOTAL: sa.func.coalesce(sa.func.sum(_image.size), 0),
    Resource.STAGE_TOTAL: sa.func.coalesce(sa.func.sum(_image.staged_size), 0),
    Resource.COUNT_TOTAL: sa.func.count(),
    Resource.COUNT_UPLOADING: sa.func.count().filter(_image.status.in_(UNDER_WAY)),
}


class Quota(msgspec.Struct, frozen=True):
    """The limits of one project: MiB or counts, -1 for none. Its methods are parts of units of work."""

    project_id: str
    limits: Mapping[Resource, int]

    def check(self, conn: sa.Connection, resource: Resource, *, more: int = 0) -> None:
        """Refuse what this unit of work has just written, if that is too much.

        Args:
            more: what counts beside that, in bytes or images; negative for what does not count.

        Raises:
            TooLarge.
        """
        limit = self.limits.get(resource, UNLIMITED)
        if limit == UNLIMITED:
            return
        if conn.dialect.name == "postgresql":  # SQLite has one writer anyway
            conn.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtextextended(self.project_id, 0))))
        used = (self._used(conn, resource) + more) // UNITS[resource]
        if used > limit:
            raise TooLarge(
                f"The project may have an {resource.value} of {limit}; with this request it has {used}.",
                hint="delete images, or have the limit raised in the identity service",
            )

    def usage(self, conn: sa.Connection) -> dict[Resource, int]:
        """What the project has of all that has a quota, in the units of the limits."""
        return {resource: self._used(conn, resource) // UNITS[resource] for resource in self.limits}

    def _used(self, conn: sa.Connection, resource: Resource) -> int:
        return int(conn.scalar(sa.select(_USED[resource]).where(_image.owner == self.project_id)) or 0)


NO_QUOTA = Quota("", {})


class Quotas:
    """The limits of all projects.

    Args:
        identity: the service that has them; None for no limits.
    """

    def __init__(self, identity: IdentityService | None) -> None:
        self._identity = identity

    async def of(self, project_id: str | None) -> Quota:
        """The limits as they are now; images of no project have none. Raises ServiceUnavailable."""
        if self._identity is None or project_id is None:
            return NO_QUOTA
        found = await self._identity.limits(SERVICE, project_id)
        return Quota(project_id, {each: found.get(each.value, UNLIMITED) for each in Resource})
