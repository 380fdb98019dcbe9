"""Volumes and their snapshots, up to 2.35, in a cloud without a volume service.

There are none, so that nothing is listed or found, and none can be made. Spec: API-292 to API-301.
"""

from __future__ import annotations

from typing import Any, NoReturn

from kilonova.api.call import Call
from kilonova.api.compute.answers import volumes as answers
from kilonova.api.compute.field_types import METADATA
from kilonova.api.policy import Audience, Rule
from kilonova.api.query import Param, Query
from kilonova.api.routes import Route
from kilonova.api.schema import Boolean, Integer, Object, Text, nullable, optional, required
from kilonova.domain.errors import NotFound, ServiceUnavailable

_UNTIL = 35
_TEXT = nullable(Text(0, 255))
_PAGES = Query({"limit": Param(Integer(0)), "offset": Param(Integer(0))})
VOLUME = Object({"volume": required(Object({
    "size": required(Integer(1)),
    "snapshot_id": optional(_TEXT),
    "volume_type": optional(_TEXT),
    "metadata": optional(nullable(METADATA)),
    "availability_zone": optional(_TEXT),
    "display_name": optional(_TEXT),
    "display_description": optional(_TEXT),
}))})
SNAPSHOT = Object({"snapshot": required(Object({
    "volume_id": required(Text(1, 255)),
    "force": optional(Boolean()),
    "display_name": optional(_TEXT),
    "display_description": optional(_TEXT),
}))})


async def no_volumes(call: Call) -> Any:
    return {"volumes": []}


async def no_snapshots(call: Call) -> Any:
    return {"snapshots": []}


async def no_service(call: Call) -> NoReturn:
    raise no_volume_service()


def no_volume_service() -> ServiceUnavailable:
    """What is answered where a volume service would be needed."""
    return ServiceUnavailable("This cloud has no volume service.")


async def no_such_volume(call: Call) -> NoReturn:
    raise NotFound(f"Volume {call.path['id']} could not be found.")


async def no_such_snapshot(call: Call) -> NoReturn:
    raise NotFound(f"Snapshot {call.path['id']} could not be found.")


def _rule(name: str, audience: Audience) -> Rule:
    return Rule(f"os-volumes:{name}", audience)


_VOLUMES, _SNAPSHOTS = "/os-volumes", "/os-snapshots"
ROUTES = [
    Route(method="GET", path=_VOLUMES, handler=no_volumes, rule=_rule("list", Audience.READER), query=_PAGES,
          until=_UNTIL, answer=answers.VOLUMES),
    Route(method="GET", path=f"{_VOLUMES}/detail", handler=no_volumes, rule=_rule("detail", Audience.READER),
          query=_PAGES, until=_UNTIL, answer=answers.VOLUMES),
    Route(method="POST", path=_VOLUMES, handler=no_service, rule=_rule("create", Audience.MEMBER), body=VOLUME,
          until=_UNTIL),
    Route(method="GET", path=f"{_VOLUMES}/{{id}}", handler=no_such_volume, rule=_rule("show", Audience.READER),
          until=_UNTIL),
    Route(method="DELETE", path=f"{_VOLUMES}/{{id}}", handler=no_such_volume, rule=_rule("delete", Audience.MEMBER),
          until=_UNTIL, status=202),
    Route(method="GET", path=_SNAPSHOTS, handler=no_snapshots, rule=_rule("snapshots:list", Audience.READER),
          query=_PAGES, until=_UNTIL, answer=answers.SNAPSHOTS),
    Route(method="GET", path=f"{_SNAPSHOTS}/detail", handler=no_snapshots, query=_PAGES, until=_UNTIL,
          rule=_rule("snapshots:detail", Audience.READER), answer=answers.SNAPSHOTS),
    Route(method="POST", path=_SNAPSHOTS, handler=no_service, rule=_rule("snapshots:create", Audience.MEMBER),
          body=SNAPSHOT, until=_UNTIL),
    Route(method="GET", path=f"{_SNAPSHOTS}/{{id}}", handler=no_such_snapshot, until=_UNTIL,
          rule=_rule("snapshots:show", Audience.READER)),
    Route(method="DELETE", path=f"{_SNAPSHOTS}/{{id}}", handler=no_such_snapshot, until=_UNTIL, status=202,
          rule=_rule("snapshots:delete", Audience.MEMBER)),
]
