"""What the limits of a service come to for a project: a unit of work. Spec: API-644, EMI-25."""

from __future__ import annotations

import sqlalchemy as sa

from kilonova.embedded.identity import schema
from kilonova.embedded.identity.store import limits, registered_limits, services


def of_service(conn: sa.Connection, service: str, project_id: str | None) -> dict[str, int]:
    """The limit of each registered resource; one of a region replaces the one for all regions.

    Args:
        service: its name; of several of that name all count. project_id: None for the registered limits alone.
    """
    ids = [found.id for found in services.matching(conn, schema.services.c.name == service)]
    registered = registered_limits.matching(conn, schema.registered_limits.c.service_id.in_(ids))
    values = {
        found.resource_name: found.default_limit
        for found in sorted(registered, key=lambda found: found.region_id is not None)
    }
    if project_id is not None:
        column = schema.limits.c
        own = limits.matching(conn, column.service_id.in_(ids), column.project_id == project_id)
        values |= {
            found.resource_name: found.resource_limit
            for found in sorted(own, key=lambda found: found.region_id is not None)
        }
    return values
