"""Limits on what a project may have. Usage is counted, not kept, so that it is never wrong. Spec: EMV-10."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa

from kilonova.embedded.volume import schema
from kilonova.embedded.volume.errors import VolumeOverQuota
from kilonova.embedded.volume.states import TARGET

DEFAULTS = {
    "volumes": 10, "snapshots": 10, "gigabytes": 1000, "backups": 10, "backup_gigabytes": 1000, "groups": 10,
    "per_volume_gigabytes": -1,
}
OF_TYPES = ("volumes", "snapshots", "gigabytes")
"""What can be limited for each type, as `volumes_TYPE`."""
DEFAULT_CLASS = "default"


def class_limits(conn: sa.Connection, name: str) -> dict[str, int]:
    """The limits of a class; that called `default` changes the defaults of all projects. -1 is none."""
    c = schema.quota_classes.c
    return _base(conn) | dict(conn.execute(sa.select(c.resource, c.limit).where(c.class_name == name)).all())


def set_class_limits(conn: sa.Connection, name: str, values: Mapping[str, int]) -> None:
    table = schema.quota_classes
    for resource, limit in values.items():
        conn.execute(table.delete().where(table.c.class_name == name, table.c.resource == resource))
        conn.execute(table.insert().values(class_name=name, resource=resource, limit=limit))


def limits(conn: sa.Connection, project_id: str) -> dict[str, int]:
    """The limits of a project, known or not; -1 is none."""
    c = schema.quotas.c
    own = sa.select(c.resource, c.limit).where(c.project_id == project_id)
    return class_limits(conn, DEFAULT_CLASS) | dict(conn.execute(own).all())


def set_limits(conn: sa.Connection, project_id: str, values: Mapping[str, int]) -> None:
    table = schema.quotas
    for resource, limit in values.items():
        conn.execute(table.delete().where(table.c.project_id == project_id, table.c.resource == resource))
        conn.execute(table.insert().values(project_id=project_id, resource=resource, limit=limit))


def reset(conn: sa.Connection, project_id: str) -> None:
    """Back to the defaults."""
    conn.execute(schema.quotas.delete().where(schema.quotas.c.project_id == project_id))


def _base(conn: sa.Connection) -> dict[str, int]:
    names = conn.execute(sa.select(schema.types.c.name).order_by(schema.types.c.name)).scalars()
    return DEFAULTS | {f"{resource}_{name}": -1 for name in names for resource in OF_TYPES}


def usage(conn: sa.Connection, project_id: str) -> dict[str, int]:
    """What a project has. The targets of migrations count for nobody."""
    v, s, t, b = schema.volumes.c, schema.snapshots.c, schema.types.c, schema.backups.c
    used = dict.fromkeys(_base(conn), 0)
    own = sa.select(t.name, sa.func.count(), sa.func.coalesce(sa.func.sum(v.size), 0)).select_from(
        schema.volumes.outerjoin(schema.types, v.type_id == t.id)
    ).where(
        v.project_id == project_id, sa.func.coalesce(v.migration_status, "").not_like(f"{TARGET}%")
    ).group_by(t.name)
    snapped = sa.select(t.name, sa.func.count(), sa.func.coalesce(sa.func.sum(s.size), 0)).select_from(
        schema.snapshots.join(schema.volumes, s.volume_id == v.id).outerjoin(schema.types, v.type_id == t.id)
    ).where(s.project_id == project_id).group_by(t.name)
    for what, query in (("volumes", own), ("snapshots", snapped)):
        for name, number, gigabytes in conn.execute(query):
            for suffix in ("", f"_{name}") if name is not None else ("",):
                used[f"{what}{suffix}"] += number
                used[f"gigabytes{suffix}"] += int(gigabytes)
    counted = sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(b.size), 0)).where(b.project_id == project_id)
    number, gigabytes = conn.execute(counted).one()
    return used | {"backups": number, "backup_gigabytes": int(gigabytes)}


def check(conn: sa.Connection, project_id: str, more: Mapping[str, int], type_name: str | None = None) -> None:
    """Raises VolumeOverQuota if the project may not have that much more.

    Args:
        more: of which resource how much; those of `OF_TYPES` count for the type, too.
    """
    limit, used = limits(conn, project_id), usage(conn, project_id)
    asked = dict(more)
    if type_name is not None:
        asked |= {f"{resource}_{type_name}": n for resource, n in more.items() if resource in OF_TYPES}
    for resource, n in asked.items():
        if 0 <= limit.get(resource, -1) < used.get(resource, 0) + n:
            raise VolumeOverQuota(resource, n, used.get(resource, 0), limit[resource])


def check_size(conn: sa.Connection, project_id: str, size: int) -> None:
    """Raises VolumeOverQuota if one volume may not be that large (GiB)."""
    most = limits(conn, project_id)["per_volume_gigabytes"]
    if 0 <= most < size:
        raise VolumeOverQuota("per_volume_gigabytes", size, 0, most)
