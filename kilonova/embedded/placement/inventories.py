"""/resource_providers/{uuid}/inventories and /usages: what a provider offers and how much of it is used."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import sqlalchemy as sa
from starlette.responses import Response

from kilonova.db.placement import names, search
from kilonova.db.placement import providers as store
from kilonova.db.placement.errors import ConcurrentUpdate
from kilonova.db.placement.providers import MAX_UNIT, Inventory
from kilonova.domain.errors import InvalidInput, NotFound
from kilonova.embedded.http import empty_response, json_response
from kilonova.embedded.placement.call import Call

Positive = Annotated[int, msgspec.Meta(ge=1, le=MAX_UNIT)]
ClassName = Annotated[str, msgspec.Meta(pattern=r"^[A-Z0-9_]+$", max_length=255)]


class InventoryBody(msgspec.Struct, forbid_unknown_fields=True):
    """Spec: API-749."""

    total: Positive
    reserved: Annotated[int, msgspec.Meta(ge=0, le=MAX_UNIT)] = 0
    min_unit: Positive = 1
    max_unit: Positive = MAX_UNIT
    step_size: Positive = 1
    allocation_ratio: Annotated[float, msgspec.Meta(gt=0, le=3.4e38)] = 1.0

    def checked(self, version: int) -> Inventory:
        """As an inventory. Raises InvalidInput when more is reserved than there may be."""
        if self.reserved > self.total or (self.reserved == self.total and version < 26):
            raise InvalidInput("Invalid inventory: reserved is larger than total allows.")
        return Inventory(**{name: getattr(self, name) for name in Inventory.__struct_fields__})


class OneInventoryBody(InventoryBody, forbid_unknown_fields=True, kw_only=True):
    resource_provider_generation: int


class NewInventoryBody(InventoryBody, forbid_unknown_fields=True, kw_only=True):
    resource_class: ClassName
    resource_provider_generation: int | None = None


class InventoriesBody(msgspec.Struct, forbid_unknown_fields=True):
    resource_provider_generation: int
    inventories: dict[ClassName, InventoryBody]


async def index(call: Call) -> Response:
    """GET .../inventories. Spec: API-719."""
    return json_response(await call.db.read(lambda connection: all_of(connection, call.uuid())))


async def create(call: Call) -> Response:
    """POST .../inventories. Spec: API-720."""
    body = await call.body(NewInventoryBody)
    inventory, uuid = body.checked(call.version), call.uuid()

    def write(connection: sa.Connection) -> dict[str, Any]:
        present = _present(connection, uuid, body.resource_provider_generation)
        if body.resource_class in present:
            raise ConcurrentUpdate(f"Inventory of {body.resource_class} exists already on {uuid}.")
        names.check_classes(connection, [body.resource_class])
        store.set_inventories(connection, uuid, {**present, body.resource_class: inventory})
        return one_of(connection, uuid, body.resource_class)

    headers = {"Location": call.url(f"/resource_providers/{uuid}/inventories/{body.resource_class}")}
    return json_response(await call.db.write(write), 201, headers)


async def replace(call: Call) -> Response:
    """PUT .../inventories. Spec: API-721."""
    body = await call.body(InventoriesBody)
    wanted = {name: inventory.checked(call.version) for name, inventory in body.inventories.items()}

    def write(connection: sa.Connection) -> dict[str, Any]:
        store.lock_provider(connection, call.uuid(), body.resource_provider_generation)
        names.check_classes(connection, wanted)
        store.set_inventories(connection, call.uuid(), wanted)
        return all_of(connection, call.uuid())

    return json_response(await call.db.write(write))


async def clear(call: Call) -> Response:
    """DELETE .../inventories. Spec: API-722."""
    await call.db.write(lambda connection: store.set_inventories(connection, call.uuid(), {}))
    return empty_response()


async def show(call: Call) -> Response:
    """GET .../inventories/{resource_class}. Spec: API-723."""
    return json_response(await call.db.read(lambda c: one_of(c, call.uuid(), call.path("resource_class"))))


async def replace_one(call: Call) -> Response:
    """PUT .../inventories/{resource_class}. Spec: API-724."""
    body = await call.body(OneInventoryBody)
    inventory, uuid, name = body.checked(call.version), call.uuid(), call.path("resource_class")

    def write(connection: sa.Connection) -> dict[str, Any]:
        present = _present(connection, uuid, body.resource_provider_generation)
        names.check_classes(connection, [name])
        if name not in present:
            raise InvalidInput(f"No inventory of class {name} found for update on {uuid}.")
        store.set_inventories(connection, uuid, {**present, name: inventory})
        return one_of(connection, uuid, name)

    return json_response(await call.db.write(write))


async def delete_one(call: Call) -> Response:
    """DELETE .../inventories/{resource_class}. Spec: API-725."""
    uuid, name = call.uuid(), call.path("resource_class")

    def write(connection: sa.Connection) -> None:
        present = _present(connection, uuid, None)
        if name not in present:
            raise NotFound(f"No inventory of class {name} found for delete.")
        del present[name]
        store.set_inventories(connection, uuid, present)

    await call.db.write(write)
    return empty_response()


async def usages(call: Call) -> Response:
    """GET .../usages. Spec: API-726."""

    def read(connection: sa.Connection) -> dict[str, Any]:
        provider = store.find_provider(connection, call.uuid())
        used = search.usages_of(connection, provider.id)
        return {"resource_provider_generation": provider.generation, "usages": used}

    return json_response(await call.db.read(read))


def all_of(connection: sa.Connection, uuid: str) -> dict[str, Any]:
    """The inventories of a provider as the API shows them."""
    provider = store.find_provider(connection, uuid)
    offered = search.inventories_of(connection, provider.id)
    return {"resource_provider_generation": provider.generation, "inventories": offered}


def one_of(connection: sa.Connection, uuid: str, name: str) -> dict[str, Any]:
    """One inventory as the API shows it. Raises NotFound."""
    shown = all_of(connection, uuid)
    if name not in shown["inventories"]:
        raise NotFound(f"No inventory of class {name} for {uuid}.")
    inventory: dict[str, Any] = msgspec.structs.asdict(shown["inventories"][name])
    return {**inventory, "resource_provider_generation": shown["resource_provider_generation"]}


def _present(connection: sa.Connection, uuid: str, generation: int | None) -> dict[str, Inventory]:
    return search.inventories_of(connection, store.lock_provider(connection, uuid, generation))
