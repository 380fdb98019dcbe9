"""Fetching images to the hosts of an aggregate before they are needed. Spec: API-230, API-581."""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Call
from kilonova.api.compute.aggregates import find_aggregate
from kilonova.api.compute.field_types import UUID
from kilonova.api.compute.service_hosts import check_complete, known_hosts
from kilonova.api.policy import Audience, Rule
from kilonova.api.routes import Route
from kilonova.api.schema import ListOf, Object, required
from kilonova.cells.registry import Cell
from kilonova.db.services import COMPUTE
from kilonova.domain.errors import InvalidInput

IMAGES = Rule("compute:aggregates:images", Audience.ADMIN)
BODY = Object({"cache": required(ListOf(Object({"id": required(UUID)}), 1))})


async def cache(call: Call) -> Any:
    """Each cell fetches to those of the hosts that it has."""
    images = [one["id"] for one in call.body["cache"]]
    if len(set(images)) < len(images):
        raise InvalidInput("Duplicate images in request.")
    aggregate = await find_aggregate(call)
    agents, silent = await known_hosts(call).services(binary=COMPUTE)
    check_complete(call, silent)
    hosts: dict[str, tuple[Cell, list[str]]] = {}
    for agent in agents:
        if agent.record.host in aggregate.hosts:
            hosts.setdefault(agent.cell.name, (agent.cell, []))[1].append(agent.record.host)
    for cell, names in hosts.values():
        await call.cloud.compute.cache_images(call.context, cell, aggregate.uuid, names, images)


ROUTES = [
    Route(method="POST", path="/os-aggregates/{id}/images", handler=cache, rule=IMAGES, body=BODY, status=202,
          since=81),
]
