"""What can be told of a server whose cell does not answer, from 2.69. Spec: API-452."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from kilonova.api.call import Call
from kilonova.api.compute.server_view import FLAVOR_EXTRA_SPECS, embedded_flavor, seconds
from kilonova.api.policy import Rule, Target
from kilonova.db import build_requests, instance_list, server_groups
from kilonova.db.instance_list import Mapped
from kilonova.domain.errors import InstanceNotFound
from kilonova.domain.instance import RequestSpec

SINCE = 69
UNKNOWN = "UNKNOWN"


async def outline(call: Call, uuid: str, rule: Rule) -> dict[str, Any]:
    """The reduced view of one server, from the API database alone.

    Args:
        rule: who may show it.

    Raises:
        InstanceNotFound: there is none, or it is of another project. PolicyNotAuthorized.
    """

    def read(conn: sa.Connection) -> tuple[Mapped | None, RequestSpec | None, str | None]:
        return (
            instance_list.mapped(conn, uuid), build_requests.spec_of(conn, uuid), server_groups.of_server(conn, uuid)
        )

    mapped, spec, group = await call.cloud.cells.api.read(read)
    if mapped is None or not (call.context.is_admin or mapped.project_id == call.context.project_id):
        raise InstanceNotFound(uuid)
    target = Target(mapped.project_id, spec.user_id if spec else None)
    call.require(rule, target)
    shown: dict[str, Any] = {
        "id": uuid,
        "status": UNKNOWN,
        "tenant_id": mapped.project_id,
        "created": seconds(mapped.created_at),
        "links": call.links.pair(f"/servers/{uuid}"),
        "user_id": UNKNOWN,
        "image": UNKNOWN,
        "flavor": UNKNOWN,
        "OS-EXT-AZ:availability_zone": UNKNOWN,
        "OS-EXT-STS:power_state": 0,
    }
    if spec is not None:
        shown["user_id"] = spec.user_id
        shown["image"] = _image(call, spec)
        shown["flavor"] = embedded_flavor(spec.flavor, extra_specs=call.allows(FLAVOR_EXTRA_SPECS, target))
        shown["OS-EXT-AZ:availability_zone"] = spec.availability_zone or UNKNOWN
    if call.version >= 71:
        shown["server_groups"] = [] if group is None else [group]
    return shown


def _image(call: Call, spec: RequestSpec) -> Any:
    """The image, "" for a server that boots from a volume."""
    if not spec.image.id:
        return ""
    return {"id": spec.image.id, "links": [{"rel": "bookmark", "href": call.links.image_bookmark(spec.image.id)}]}
