"""/resource_providers/{uuid}/traits and /aggregates."""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa
from starlette.responses import Response

from kilonova.db.placement import names, search
from kilonova.db.placement import providers as store
from kilonova.embedded.http import empty_response, json_response
from kilonova.embedded.placement.call import Call
from kilonova.embedded.placement.query import a_uuid


class TraitsBody(msgspec.Struct, forbid_unknown_fields=True):
    traits: list[str]
    resource_provider_generation: int


class AggregatesBody(msgspec.Struct, forbid_unknown_fields=True):
    aggregates: list[str]
    resource_provider_generation: int


async def traits(call: Call) -> Response:
    """GET .../traits. Spec: API-728."""
    return json_response(await call.db.read(lambda connection: _traits(connection, call.uuid())))


async def set_traits(call: Call) -> Response:
    """PUT .../traits. Spec: API-728."""
    body = await call.body(TraitsBody)

    def write(connection: sa.Connection) -> dict[str, Any]:
        names.check_traits(connection, body.traits)
        store.set_traits(connection, call.uuid(), body.traits, generation=body.resource_provider_generation)
        return _traits(connection, call.uuid())

    return json_response(await call.db.write(write))


async def clear_traits(call: Call) -> Response:
    """DELETE .../traits. Spec: API-729."""
    await call.db.write(lambda connection: store.set_traits(connection, call.uuid(), ()))
    return empty_response()


async def aggregates(call: Call) -> Response:
    """GET .../aggregates. Spec: API-727."""
    return json_response(await call.db.read(lambda connection: _aggregates(connection, call)))


async def set_aggregates(call: Call) -> Response:
    """PUT .../aggregates: a plain list up to 1.18. Spec: API-727."""
    generation = None
    if call.version >= 19:
        body = await call.body(AggregatesBody)
        wanted, generation = body.aggregates, body.resource_provider_generation
    else:
        wanted = await call.body(list[str])
    uuids = [a_uuid(text, "aggregates") for text in wanted]

    def write(connection: sa.Connection) -> dict[str, Any]:
        store.set_aggregates(connection, call.uuid(), uuids, generation=generation)
        return _aggregates(connection, call)

    return json_response(await call.db.write(write))


def _traits(connection: sa.Connection, uuid: str) -> dict[str, Any]:
    provider = store.find_provider(connection, uuid)
    found = search.traits_of_provider(connection, provider.id)
    return {"traits": found, "resource_provider_generation": provider.generation}


def _aggregates(connection: sa.Connection, call: Call) -> dict[str, Any]:
    provider = store.find_provider(connection, call.uuid())
    body: dict[str, Any] = {"aggregates": search.aggregates_of_provider(connection, provider.id)}
    return {**body, "resource_provider_generation": provider.generation} if call.version >= 19 else body
