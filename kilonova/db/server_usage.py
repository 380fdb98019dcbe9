"""What the servers of a project take, counted from their records. Quotas are checked against it."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from kilonova.db import build_requests
from kilonova.db.instances import instances
from kilonova.domain.instance import Instance
from kilonova.domain.states import VmState
from kilonova.shapes.resources import is_volume_backed, local_gib

_CHUNK = 500


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Servers, virtual CPUs, memory (MiB) and disks on hosts (GiB) in use."""

    instances: int = 0
    cores: int = 0
    ram: int = 0
    disk: int = 0

    def plus(self, other: Usage) -> Usage:
        return Usage(instances=self.instances + other.instances, cores=self.cores + other.cores,
                     ram=self.ram + other.ram, disk=self.disk + other.disk)

    def minus(self, other: Usage) -> Usage:
        return Usage(instances=self.instances - other.instances, cores=self.cores - other.cores,
                     ram=self.ram - other.ram, disk=self.disk - other.disk)


def of_instances(conn: sa.Connection, project_id: str, user_id: str | None = None) -> Usage:
    """The usage of the records in this cell that are not deleted, not even softly. Spec: API-136."""
    table = instances.c
    query = sa.select(
        sa.func.count().label("instances"),
        sa.func.coalesce(sa.func.sum(table.vcpus), 0).label("cores"),
        sa.func.coalesce(sa.func.sum(table.memory_mib), 0).label("ram"),
        sa.func.coalesce(sa.func.sum(table.disk_gib), 0).label("disk"),
    ).where(table.project_id == project_id, table.deleted_at.is_(None))
    if user_id is not None:
        query = query.where(table.user_id == user_id)
    soft = query.where(table.vm_state == sa.literal_column(f"'{VmState.SOFT_DELETED.value}'"))  # has an index
    every, softly = (Usage(**conn.execute(one).mappings().one()) for one in (query, soft))
    return every.minus(softly)


def of_build_requests(conn: sa.Connection, project_id: str, user_id: str | None = None) -> dict[str, Usage]:
    """The usage of each server that waits for its cell, by uuid."""
    return {
        asked.instance.uuid: _usage_of(asked.instance) for asked in build_requests.of_project(conn, project_id)
        if user_id in (None, asked.instance.user_id)
    }


def _usage_of(instance: Instance) -> Usage:
    flavor = instance.flavor
    disk = local_gib(flavor, volume_backed=is_volume_backed(instance.block_devices))
    return Usage(instances=1, cores=flavor.vcpus, ram=flavor.memory_mib, disk=disk)


def known(conn: sa.Connection, uuids: Sequence[str]) -> set[str]:
    """Those of the servers that have a record in this cell."""
    found: set[str] = set()
    for start in range(0, len(uuids), _CHUNK):
        chunk = uuids[start : start + _CHUNK]
        found.update(conn.execute(sa.select(instances.c.uuid).where(instances.c.uuid.in_(chunk))).scalars())
    return found
