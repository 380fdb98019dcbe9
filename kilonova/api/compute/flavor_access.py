"""Which projects may use a private flavor. Spec: API-206 to API-208."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from kilonova.api.call import Call
from kilonova.api.compute.answers import catalogue as answers
from kilonova.api.policy import Audience, Rule
from kilonova.api.routes import Route
from kilonova.api.schema import Object, Text, required
from kilonova.api.telling import tell_flavor
from kilonova.db import flavors
from kilonova.domain.errors import Conflict, InvalidInput, NotFound

LIST = Rule("os-flavor-access", Audience.ADMIN)
ADD = Rule("os-flavor-access:add_tenant_access", Audience.ADMIN)
REMOVE = Rule("os-flavor-access:remove_tenant_access", Audience.ADMIN)


def _body(action: str) -> Object:
    return Object({action: required(Object({"tenant": required(Text(1, 255))}))})


def _shown(flavor_id: str, projects: list[str]) -> dict[str, Any]:
    return {"flavor_access": [{"flavor_id": flavor_id, "tenant_id": project} for project in projects]}


async def add(call: Call) -> Any:
    flavor_id, project = call.path["flavor_id"], call.body["addTenantAccess"]["tenant"]
    if not await call.cloud.identity.project_exists(project):
        raise InvalidInput(f"Project ID {project} is not a valid project.")

    def write(conn: sa.Connection) -> list[str]:
        if flavors.get(conn, flavor_id).is_public and call.version >= 7:
            raise Conflict(f"Can not add access to a public flavor: {flavor_id}.")
        flavors.add_access(conn, flavor_id, project)
        tell_flavor(call, conn, flavor_id)
        return list(flavors.projects_with_access(conn, flavor_id))

    return _shown(flavor_id, await call.cloud.cells.api.write(write))


async def remove(call: Call) -> Any:
    flavor_id, project = call.path["flavor_id"], call.body["removeTenantAccess"]["tenant"]

    def write(conn: sa.Connection) -> list[str]:
        flavors.get(conn, flavor_id)
        flavors.remove_access(conn, flavor_id, project)
        tell_flavor(call, conn, flavor_id)
        return list(flavors.projects_with_access(conn, flavor_id))

    return _shown(flavor_id, await call.cloud.cells.api.write(write))


async def index(call: Call) -> Any:
    flavor_id = call.path["flavor_id"]

    def read(conn: sa.Connection) -> list[str]:
        if flavors.get(conn, flavor_id).is_public:
            raise NotFound("Access list not available for public flavors.")
        return list(flavors.projects_with_access(conn, flavor_id))

    return _shown(flavor_id, await call.cloud.cells.api.read(read))


ROUTES = [
    Route(method="POST", path="/flavors/{flavor_id}/action", action="addTenantAccess", handler=add, rule=ADD,
          body=_body("addTenantAccess"), answer=answers.FLAVOR_ACCESS),
    Route(method="POST", path="/flavors/{flavor_id}/action", action="removeTenantAccess", handler=remove,
          rule=REMOVE, body=_body("removeTenantAccess"), answer=answers.FLAVOR_ACCESS),
    Route(method="GET", path="/flavors/{flavor_id}/os-flavor-access", handler=index, rule=LIST,
          answer=answers.FLAVOR_ACCESS),
]
