"""Quotas as operators have set them, and the resources that have some. Spec: API-640 to API-643."""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from kilonova.api.call import Call
from kilonova.api.compute.quota_check import UNLIMITED, Limits, count_usage
from kilonova.cells.registry import Cells
from kilonova.db import quotas as records
from kilonova.db.quotas import PROJECT
from kilonova.db.server_usage import Usage

DEFAULT_CLASS = "default"
"""The one quota class that has an effect."""

NETWORK = ("fixed_ips", "floating_ips", "security_groups", "security_group_rules")
"""Without effect: the network service has its own."""


class Resource(msgspec.Struct, frozen=True):
    """A resource with a quota, and the microversions in which quota sets and class sets know it."""

    name: str
    sets_until: int | None = None
    classes_since: int = 1
    classes_until: int | None = None


RESOURCES = (
    *(Resource(name) for name in ("instances", "cores", "ram", "metadata_items", "key_pairs")),
    *(Resource(name, classes_since=50) for name in ("server_groups", "server_group_members")),
    *(
        Resource(name, sets_until=56, classes_until=56)
        for name in ("injected_files", "injected_file_content_bytes", "injected_file_path_bytes")
    ),
    *(Resource(name, sets_until=35, classes_until=49) for name in NETWORK),
)


def in_sets(version: int) -> list[str]:
    """The resources that quota sets show. Spec: API-640."""
    return [r.name for r in RESOURCES if r.sets_until is None or version <= r.sets_until]


def in_classes(version: int) -> list[str]:
    """The resources that quota class sets show."""
    known = (r for r in RESOURCES if version >= r.classes_since)
    return [r.name for r in known if r.classes_until is None or version <= r.classes_until]


class StoredQuotas:
    """Limits from the records over the configured ones, usage counted. Fulfils `quota_check.Quotas`.

    Args:
        limits: what holds where nobody has set anything.
    """

    changeable = True
    """Whether requests of this API change the limits."""

    def __init__(self, cells: Cells, limits: Limits | None = None) -> None:
        self._cells = cells
        self._configured = {**msgspec.structs.asdict(limits or Limits()), **dict.fromkeys(NETWORK, UNLIMITED)}

    async def limits(self, project_id: str, user_id: str | None = None) -> Limits:
        """What the project may use, or that user in it."""
        values = await self.values(project_id, user_id)
        return Limits(**{name: values[name] for name in Limits.__struct_fields__})

    async def usage(self, project_id: str, user_id: str | None = None) -> Usage:
        """What the servers of the project take, those without a cell included."""
        return await count_usage(self._cells, project_id, user_id)

    async def values(self, project_id: str, user_id: str | None = None) -> dict[str, int]:
        """The limit of every resource: of the user, else of the project, else the default. Spec: API-641."""

        def read(conn: sa.Connection) -> dict[str, int]:
            found = {**self._configured, **records.of_class(conn, DEFAULT_CLASS)}
            found.update(records.of_project(conn, project_id, PROJECT))
            if user_id is not None:
                found.update(records.of_project(conn, project_id, user_id))
            return found

        return await self._cells.api.read(read)

    async def class_values(self, name: str) -> dict[str, int]:
        """The limits of a quota class; what is not set there is as configured."""
        stored = await self._cells.api.read(lambda conn: records.of_class(conn, name))
        return {**self._configured, **stored}


def stored_quotas(call: Call) -> StoredQuotas:
    """The quotas behind this request: those the API was given, or with the usual limits."""
    given = call.cloud.quotas
    return given if isinstance(given, StoredQuotas) else StoredQuotas(call.cloud.cells)
