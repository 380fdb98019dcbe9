"""Limits on what a project may have. Spec: EMN-18, EMN-19."""

from __future__ import annotations

import sqlalchemy as sa

from kilonova.embedded.network import schema
from kilonova.embedded.network.errors import NetworkOverQuota

DEFAULTS = {
    "network": 100, "subnet": 100, "subnetpool": -1, "port": 500, "router": 10, "floatingip": 50,
    "security_group": 10, "security_group_rule": 100, "rbac_policy": 10,
}

_COUNTED = {
    "network": schema.networks, "subnet": schema.subnets, "port": schema.ports,
    "security_group": schema.groups, "security_group_rule": schema.rules,
}


def limits(conn: sa.Connection, project_id: str) -> dict[str, int]:
    """The limits of a project, known or not; -1 is none."""
    table = schema.quotas
    rows = conn.execute(sa.select(table.c.resource, table.c.limit).where(table.c.project_id == project_id))
    return DEFAULTS | {row.resource: row.limit for row in rows}


def used(conn: sa.Connection, project_id: str, resource: str) -> int:
    """How many the project has; 0 for kinds that are not offered here."""
    table = _COUNTED.get(resource)
    if table is None:
        return 0
    statement = sa.select(sa.func.count()).select_from(table).where(table.c.project_id == project_id)
    return int(conn.execute(statement).scalar_one())


def check(conn: sa.Connection, project_id: str, resource: str, more: int = 1) -> None:
    """Raises NetworkOverQuota if the project may not have that many more."""
    limit = limits(conn, project_id)[resource]
    if limit >= 0 and used(conn, project_id, resource) + more > limit:
        raise NetworkOverQuota(resource)


def set_limits(conn: sa.Connection, project_id: str, values: dict[str, int]) -> None:
    table = schema.quotas
    for resource, limit in values.items():
        conn.execute(sa.delete(table).where(table.c.project_id == project_id, table.c.resource == resource))
        conn.execute(sa.insert(table).values(project_id=project_id, resource=resource, limit=limit))


def reset(conn: sa.Connection, project_id: str) -> None:
    """Back to the defaults."""
    conn.execute(sa.delete(schema.quotas).where(schema.quotas.c.project_id == project_id))
