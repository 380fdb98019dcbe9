"""Limits on what a project may have. Spec: EMN-18, EMN-19."""

from __future__ import annotations

import sqlalchemy as sa

from kilonova.db.prepared import Prepared
from kilonova.domain.errors import InvalidInput
from kilonova.embedded.network import schema
from kilonova.embedded.network.errors import NetworkOverQuota

DEFAULTS = {
    "network": 100, "subnet": 100, "subnetpool": -1, "port": 500, "router": 10, "floatingip": 50,
    "security_group": 10, "security_group_rule": 100, "rbac_policy": 10,
}

_COUNTED = {
    "network": schema.networks, "subnet": schema.subnets, "subnetpool": schema.subnet_pools, "port": schema.ports,
    "router": schema.routers, "floatingip": schema.floating_ips, "security_group": schema.groups,
    "security_group_rule": schema.rules,
}
_COUNTS = {
    name: Prepared(
        sa.select(sa.func.count()).select_from(table).where(table.c.project_id == sa.bindparam("project"))
    )
    for name, table in _COUNTED.items()
}
_LIMITS = Prepared(
    sa.select(schema.quotas.c.resource, schema.quotas.c.limit)
    .where(schema.quotas.c.project_id == sa.bindparam("project"))
)


def limits(conn: sa.Connection, project_id: str) -> dict[str, int]:
    """The limits of a project, known or not; -1 is none."""
    return DEFAULTS | dict(_LIMITS.all(conn, project=project_id))


def used(conn: sa.Connection, project_id: str, resource: str) -> int:
    """How many the project has; 0 for kinds that are not offered here."""
    counting = _COUNTS.get(resource)
    return int(counting.scalar(conn, project=project_id)) if counting is not None else 0


def check(conn: sa.Connection, project_id: str, resource: str, more: int = 1) -> None:
    """Raises NetworkOverQuota if the project may not have that many more."""
    limit = limits(conn, project_id)[resource]
    if limit >= 0 and used(conn, project_id, resource) + more > limit:
        raise NetworkOverQuota(resource)


def check_unused(conn: sa.Connection, project_id: str, values: dict[str, int]) -> None:
    """Raises InvalidInput for a limit below what the project has."""
    for resource, limit in values.items():
        if 0 <= limit < (number := used(conn, project_id, resource)):
            raise InvalidInput(f"Quota limit {limit} of {resource} is lower than what is in use, {number}.")


def set_limits(conn: sa.Connection, project_id: str, values: dict[str, int]) -> None:
    table = schema.quotas
    for resource, limit in values.items():
        conn.execute(sa.delete(table).where(table.c.project_id == project_id, table.c.resource == resource))
        conn.execute(sa.insert(table).values(project_id=project_id, resource=resource, limit=limit))


def reset(conn: sa.Connection, project_id: str) -> None:
    """Back to the defaults."""
    conn.execute(sa.delete(schema.quotas).where(schema.quotas.c.project_id == project_id))
