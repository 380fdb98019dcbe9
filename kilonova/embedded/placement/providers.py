"""/resource_providers: the providers themselves."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

import msgspec
import sqlalchemy as sa
from starlette.responses import Response

from kilonova.db.placement import names, search
from kilonova.db.placement import providers as store
from kilonova.db.placement.providers import Provider
from kilonova.domain.errors import InvalidInput
from kilonova.embedded.http import empty_response, json_response
from kilonova.embedded.placement.call import Call
from kilonova.embedded.placement.query import a_uuid, names_of, provider_query

LINKS = (("self", "", 0), ("inventories", "/inventories", 0), ("usages", "/usages", 0),
         ("aggregates", "/aggregates", 1), ("traits", "/traits", 6), ("allocations", "/allocations", 11))
"""rel, end of the path, and the version that brought it."""


class ProviderBody(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    uuid: str | msgspec.UnsetType = msgspec.UNSET
    parent_provider_uuid: str | msgspec.UnsetType | None = msgspec.UNSET


def view(call: Call, provider: Provider) -> dict[str, Any]:
    """A provider in the form of the version."""
    path = f"/resource_providers/{provider.uuid}"
    body: dict[str, Any] = {
        "uuid": provider.uuid, "name": provider.name, "generation": provider.generation,
        "links": [{"rel": rel, "href": call.href(path + end)} for rel, end, since in LINKS if call.version >= since],
    }
    if call.version >= 14:
        body |= {"parent_provider_uuid": provider.parent, "root_provider_uuid": provider.root}
    return body


async def index(call: Call) -> Response:
    """GET /resource_providers. Spec: API-714."""
    query = provider_query(call)

    def read(connection: sa.Connection) -> list[Provider]:
        names.check_classes(connection, query.resources)
        names.check_traits(connection, names_of(query))
        return search.find_providers(connection, query)

    found = await call.db.read(read)
    return json_response({"resource_providers": [view(call, provider) for provider in found]})


async def create(call: Call) -> Response:
    """POST /resource_providers. Spec: API-715."""
    body = await call.body(ProviderBody)
    parent = _parent(call, body)
    uuid_ = str(uuid.uuid4()) if body.uuid is msgspec.UNSET else a_uuid(body.uuid, "uuid")
    now = call.clock.now()

    def write(connection: sa.Connection) -> Provider:
        store.create_provider(connection, uuid_, body.name, parent=parent, now=now)
        return store.find_provider(connection, uuid_)

    made = await call.db.write(write)
    headers = {"Location": call.url(f"/resource_providers/{made.uuid}")}
    return json_response(view(call, made), 200, headers) if call.version >= 20 else empty_response(201, headers)


async def show(call: Call) -> Response:
    """GET /resource_providers/{uuid}. Spec: API-716."""
    found = await call.db.read(lambda connection: store.find_provider(connection, call.uuid()))
    return json_response(view(call, found))


async def update(call: Call) -> Response:
    """PUT /resource_providers/{uuid}. Spec: API-717."""
    body = await call.body(ProviderBody)
    if body.uuid is not msgspec.UNSET:
        raise InvalidInput("JSON does not validate: the uuid of a resource provider cannot be changed.")
    parent, uuid_ = _parent(call, body), call.uuid()

    def write(connection: sa.Connection) -> Provider:
        kept = store.find_provider(connection, uuid_).parent
        wanted = kept if body.parent_provider_uuid is msgspec.UNSET else parent
        store.rename_provider(connection, uuid_, body.name, parent=wanted, may_move=call.version >= 37)
        return store.find_provider(connection, uuid_)

    return json_response(view(call, await call.db.write(write)))


async def delete(call: Call) -> Response:
    """DELETE /resource_providers/{uuid}. Spec: API-718."""
    await call.db.write(lambda connection: store.delete_provider(connection, call.uuid()))
    return empty_response()


def _parent(call: Call, body: ProviderBody) -> str | None:
    if body.parent_provider_uuid is msgspec.UNSET:
        return None
    if call.version < 14:
        raise InvalidInput("JSON does not validate: parent_provider_uuid is not known in this version.")
    return None if body.parent_provider_uuid is None else a_uuid(body.parent_provider_uuid, "parent_provider_uuid")
