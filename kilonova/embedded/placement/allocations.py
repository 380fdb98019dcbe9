"""/allocations, /usages, /reshaper: who holds what."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import sqlalchemy as sa
from starlette.responses import Response

from kilonova.db.placement import claims, names, replacement, search
from kilonova.db.placement import providers as store
from kilonova.db.placement.replacement import ConsumerWrite
from kilonova.domain.errors import Forbidden, InvalidInput, NotFound
from kilonova.embedded.http import caller, empty_response, json_response
from kilonova.embedded.placement.call import BadQuery, Call
from kilonova.embedded.placement.inventories import ClassName, InventoriesBody, Positive
from kilonova.embedded.placement.query import a_uuid, single_values

NOBODY = "00000000-0000-0000-0000-000000000000"
"""Project and user of consumers written before 1.8, which did not say."""

Owner = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
TypeName = Annotated[str, msgspec.Meta(pattern=r"^[A-Z0-9_]+$", min_length=1, max_length=255)]
UNKNOWN_TYPE = "unknown"


class HoldBody(msgspec.Struct, forbid_unknown_fields=True):
    resources: dict[ClassName, Positive]
    generation: int | None = None


class ConsumerBody(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """The form from 1.12 on."""

    allocations: dict[str, HoldBody]
    project_id: Owner
    user_id: Owner
    consumer_generation: int | msgspec.UnsetType | None = msgspec.UNSET
    consumer_type: TypeName | msgspec.UnsetType = msgspec.UNSET
    mappings: dict[str, list[str]] | msgspec.UnsetType = msgspec.UNSET


class ProviderReference(msgspec.Struct, forbid_unknown_fields=True):
    uuid: str


class ListedHold(msgspec.Struct, forbid_unknown_fields=True):
    resource_provider: ProviderReference
    resources: dict[ClassName, Positive]


class OldConsumerBody(msgspec.Struct, forbid_unknown_fields=True):
    """The form up to 1.11."""

    allocations: Annotated[list[ListedHold], msgspec.Meta(min_length=1)]
    project_id: Owner | msgspec.UnsetType = msgspec.UNSET
    user_id: Owner | msgspec.UnsetType = msgspec.UNSET


class ReshapeBody(msgspec.Struct, forbid_unknown_fields=True):
    inventories: dict[str, InventoriesBody]
    allocations: dict[str, ConsumerBody]


async def of_provider(call: Call) -> Response:
    """GET /resource_providers/{uuid}/allocations. Spec: API-730."""

    def read(connection: sa.Connection) -> dict[str, Any]:
        provider = store.find_provider(connection, call.uuid())
        held = search.allocations_on(connection, provider.id)
        return {"resource_provider_generation": provider.generation, "allocations": {
            consumer: {"resources": amounts, **_if(call, 28, consumer_generation=generation)}
            for consumer, (generation, amounts) in held.items()
        }}

    return json_response(await call.db.read(read))


async def show(call: Call) -> Response:
    """GET /allocations/{consumer}. Spec: API-735."""
    consumer, held = await call.db.read(lambda c: search.consumer_with_holds(c, call.path("uuid")))
    body: dict[str, Any] = {"allocations": {
        provider: {"generation": generation, "resources": amounts} for provider, (generation, amounts) in held.items()
    }}
    if consumer is not None:
        body |= _if(call, 12, project_id=consumer.project_id, user_id=consumer.user_id)
        body |= _if(call, 28, consumer_generation=consumer.generation)
        body |= _if(call, 38, consumer_type=consumer.type)
    return json_response(body)


async def replace(call: Call) -> Response:
    """PUT /allocations/{consumer}. Spec: API-736."""
    uuid = a_uuid(call.path("uuid"), "consumer")
    if call.version < 12:
        written = _old_write(call, uuid, await call.body(OldConsumerBody))
    else:
        written = _write(call, uuid, await call.body(ConsumerBody))
    if not written.holds and call.version < 28:
        raise InvalidInput("JSON does not validate: allocations is empty.")
    await call.db.write(lambda connection: replacement.replace_allocations(connection, [written]))
    return empty_response()


async def replace_many(call: Call) -> Response:
    """POST /allocations. Spec: API-738."""
    bodies = await call.body(dict[str, ConsumerBody])
    if not bodies:
        raise InvalidInput("JSON does not validate: no consumer is given.")
    written = [_write(call, a_uuid(uuid, "consumer"), body) for uuid, body in bodies.items()]
    await call.db.write(lambda connection: replacement.replace_allocations(connection, written))
    return empty_response()


async def delete(call: Call) -> Response:
    """DELETE /allocations/{consumer}. Spec: API-737."""
    uuid = call.path("uuid")
    if not await call.db.write(lambda connection: claims.release(connection, uuid)):
        raise NotFound(f"No allocations for consumer '{uuid}'.")
    return empty_response()


async def reshape(call: Call) -> Response:
    """POST /reshaper: inventories and allocations of several providers in one step. Spec: API-741."""
    body = await call.body(ReshapeBody)
    written = [_write(call, a_uuid(uuid, "consumer"), consumer) for uuid, consumer in body.allocations.items()]
    wanted = {
        a_uuid(uuid, "provider"): {name: offer.checked(call.version) for name, offer in new.inventories.items()}
        for uuid, new in body.inventories.items()
    }
    generations = {a_uuid(uuid, "provider"): new.resource_provider_generation
                   for uuid, new in body.inventories.items()}

    def write(connection: sa.Connection) -> None:
        for uuid, offers in wanted.items():
            provider = store.lock_provider(connection, uuid, generations[uuid])
            names.check_classes(connection, offers)
            store.set_inventories(connection, uuid, {**search.inventories_of(connection, provider), **offers})
        replacement.replace_allocations(connection, written)
        for uuid, offers in wanted.items():
            store.set_inventories(connection, uuid, offers)

    await call.db.write(write)
    return empty_response()


async def usages(call: Call) -> Response:
    """GET /usages of a project. Spec: API-740, API-706, EMP-01."""
    values = single_values(call, {"project_id": 9, "user_id": 9, "consumer_type": 38})
    if "project_id" not in values:
        raise BadQuery("The query parameter project_id is required.", "placement.query.missing_value")
    project, asked = values["project_id"], caller(call.request)
    own = asked.project_id == project and "reader" in asked.roles
    if not own and not {"admin", "service"}.intersection(asked.roles):
        raise Forbidden("You are not authorized to perform the requested action.")
    kind = values.get("consumer_type")
    types = None if kind in (None, "all") else [kind or ""]
    found = await call.db.read(lambda c: search.usages_by_type(c, project, values.get("user_id"), types))
    if call.version < 38 or kind == "all":
        together: dict[str, int] = {}
        for _, amounts in found.values():
            for name, amount in amounts.items():
                together[name] = together.get(name, 0) + amount
        count = sum(number for number, _ in found.values())
        return json_response({"usages": {"all": {"consumer_count": count, **together}} if kind == "all" else together})
    return json_response({"usages": {
        name: {"consumer_count": count, **amounts} for name, (count, amounts) in found.items()
    }})


def _write(call: Call, uuid: str, body: ConsumerBody) -> ConsumerWrite:
    for since, name in ((28, "consumer_generation"), (38, "consumer_type")):
        given = getattr(body, name) is not msgspec.UNSET
        if given != (call.version >= since):
            raise InvalidInput(f"JSON does not validate: {name} is {'not known' if given else 'required'}"
                               " in this version.")
    if body.mappings is not msgspec.UNSET and call.version < 34:
        raise InvalidInput("JSON does not validate: mappings is not known in this version.")
    type_ = UNKNOWN_TYPE if body.consumer_type is msgspec.UNSET else body.consumer_type
    holds = {a_uuid(provider, "allocations"): hold.resources for provider, hold in body.allocations.items()}
    return ConsumerWrite(uuid=uuid, project_id=body.project_id, user_id=body.user_id, type=type_, holds=holds,
                         generation=body.consumer_generation)


def _old_write(call: Call, uuid: str, body: OldConsumerBody) -> ConsumerWrite:
    owners = [NOBODY if owner is msgspec.UNSET else owner for owner in (body.project_id, body.user_id)]
    if (NOBODY in owners) != (call.version < 8):
        raise InvalidInput("JSON does not validate: project_id and user_id are required from 1.8 on.")
    holds = {a_uuid(hold.resource_provider.uuid, "allocations"): hold.resources for hold in body.allocations}
    return ConsumerWrite(uuid=uuid, project_id=owners[0], user_id=owners[1], type=UNKNOWN_TYPE, holds=holds)


def _if(call: Call, since: int, **fields: Any) -> dict[str, Any]:
    return fields if call.version >= since else {}
