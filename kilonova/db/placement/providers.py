"""Resource providers and what they offer: inventories, traits, aggregates.

Whoever changes a provider locks its row first and touches it in the same transaction. The order of locks is
server group, consumer, providers by id; then two transactions can wait for each other but not in a circle.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import sqlalchemy as sa

from kilonova.db.placement.errors import (
    CannotDeleteParent,
    ConcurrentUpdate,
    DuplicateName,
    InventoryInUse,
    ProviderInUse,
    ProviderNotFound,
)
from kilonova.db.placement.tables import (
    allocation_groups,
    allocations,
    change_number,
    deleted_providers,
    hosts,
    inventories,
    layouts,
    provider_aggregates,
    provider_traits,
    providers,
    stamp,
    touch,
)
from kilonova.db.prepared import Prepared
from kilonova.domain.errors import InvalidInput

MAX_UNIT = 2**31 - 1


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """How much of a resource class a provider offers. The defaults are those of API-749."""

    total: int
    reserved: int = 0
    min_unit: int = 1
    max_unit: int = MAX_UNIT
    step_size: int = 1
    allocation_ratio: float = 1.0

    @property
    def capacity(self) -> int:
        """Spec: API-750."""
        return int((self.total - self.reserved) * self.allocation_ratio)


class Provider(msgspec.Struct, frozen=True, kw_only=True):
    """A resource provider; parent and root are uuids."""

    id: int
    uuid: str
    name: str
    generation: int
    parent: str | None
    root: str
    root_id: int
    updated_at: float


_parents = providers.alias("parents")
_roots = providers.alias("roots")
PROVIDERS = (
    sa.select(
        providers.c.id,
        providers.c.uuid,
        providers.c.name,
        providers.c.generation,
        providers.c.root_id,
        providers.c.updated_at,
        _parents.c.uuid.label("parent"),
        _roots.c.uuid.label("root"),
    )
    .outerjoin(_parents, _parents.c.id == providers.c.parent_id)
    .join(_roots, _roots.c.id == providers.c.root_id)
)
"""Selects the columns of `Provider`."""


def find_provider(connection: sa.Connection, uuid: str) -> Provider:
    """Raises ProviderNotFound."""
    row = connection.execute(PROVIDERS.where(providers.c.uuid == uuid)).one_or_none()
    if row is None:
        raise ProviderNotFound(uuid)
    return Provider(**row._mapping)


def lock_provider(connection: sa.Connection, uuid: str, generation: int | None = None) -> int:
    """Lock the provider until the transaction ends and return its id.

    Raises:
        ProviderNotFound: there is none. ConcurrentUpdate: its generation is not the one the caller read.
    """
    row = _LOCK.first(connection, uuid=uuid)
    if row is None:
        raise ProviderNotFound(uuid)
    if generation is not None and row.generation != generation:
        raise ConcurrentUpdate(
            f"resource provider generation conflict: {uuid} is at {row.generation}, not {generation}.",
            hint="read the provider again and repeat the change",
        )
    return int(row.id)


_LOCK = Prepared(
    sa.select(providers.c.id, providers.c.generation)
    .where(providers.c.uuid == sa.bindparam("uuid")).with_for_update()
)
_INVENTORIES = Prepared(sa.select(inventories).where(inventories.c.provider_id == sa.bindparam("provider")))
_ADD_INVENTORY = Prepared(inventories.insert().values({c.name: sa.bindparam(c.name) for c in inventories.columns}))
_SET_INVENTORY = Prepared(
    inventories.update()
    .where(
        inventories.c.provider_id == sa.bindparam("b_provider"),
        inventories.c.resource_class == sa.bindparam("b_class"),
    )
    .values({name: sa.bindparam(name) for name in (*Inventory.__struct_fields__, "capacity")})
)
_NAMES = {
    column: Prepared(sa.select(column).where(column.table.c.provider_id == sa.bindparam("provider")))
    for column in (provider_traits.c.trait, provider_aggregates.c.aggregate)
}


def inventories_of(connection: sa.Connection, provider_id: int) -> dict[str, Any]:
    """The rows of `inventories` of a provider, by resource class."""
    return {row.resource_class: row for row in _INVENTORIES.all(connection, provider=provider_id)}


def traits_of(connection: sa.Connection, provider_id: int) -> set[str]:
    """The traits of a provider."""
    return set(_NAMES[provider_traits.c.trait].scalars(connection, provider=provider_id))


def create_provider(connection: sa.Connection, uuid: str, name: str, *, parent: str | None = None, now: float) -> int:
    """Make a provider and return its id.

    Raises:
        DuplicateName: uuid or name are taken. InvalidInput: there is no such parent.
    """
    taken = connection.execute(
        sa.select(providers.c.uuid).where((providers.c.uuid == uuid) | (providers.c.name == name))
    ).first()
    if taken is not None:
        what = f"uuid: {uuid}" if taken.uuid == uuid else f"name: {name}"
        raise DuplicateName(f"Conflicting resource provider {what} already exists.")
    parent_id = root_id = None
    if parent is not None:
        parent_id, root_id = _parent(connection, parent)
    values = {
        "uuid": uuid,
        "name": name,
        "generation": 0,
        "parent_id": parent_id,
        "root_id": root_id,
        "changed": change_number(connection.dialect.name),
        "updated_at": now,
    }
    created = connection.execute(providers.insert().values(values)).inserted_primary_key
    assert created is not None
    provider_id = int(created[0])
    if root_id is None:
        connection.execute(providers.update().where(providers.c.id == provider_id).values(root_id=provider_id))
    return provider_id


def rename_provider(connection: sa.Connection, uuid: str, name: str, *, parent: str | None, may_move: bool) -> None:
    """Give a provider a name and a parent.

    Args:
        parent: None leaves a provider without one as it is, and detaches one that may move.
        may_move: allow a provider that has a parent to get another or none. Spec: API-717.

    Raises:
        ProviderNotFound, DuplicateName: as they say. InvalidInput: a parent that cannot be.
    """
    provider_id = lock_provider(connection, uuid)
    before = find_provider(connection, uuid)
    taken = connection.execute(
        sa.select(providers.c.id).where(providers.c.name == name, providers.c.id != provider_id)
    ).first()
    if taken is not None:
        raise DuplicateName(f"Conflicting resource provider name: {name} already exists.")
    values: dict[str, object] = {"name": name}
    if parent != before.parent:
        if before.parent is not None and not may_move:
            raise InvalidInput(f"Cannot change the parent of resource provider {uuid} once it has one.")
        _move_tree(connection, provider_id, parent)
    connection.execute(providers.update().where(providers.c.id == provider_id).values(**values))
    touch(connection, [provider_id])


def _move_tree(connection: sa.Connection, provider_id: int, parent: str | None) -> None:
    subtree = _subtree(connection, provider_id)
    parent_id, root_id = (None, provider_id) if parent is None else _parent(connection, parent)
    if parent_id in subtree:
        raise InvalidInput("Creating a loop in the provider tree is not allowed.")
    stamp(connection, [_root_of(connection, provider_id)])
    connection.execute(providers.update().where(providers.c.id == provider_id).values(parent_id=parent_id))
    connection.execute(providers.update().where(providers.c.id.in_(subtree)).values(root_id=root_id))
    touch(connection, sorted(subtree - {provider_id}))


def _parent(connection: sa.Connection, uuid: str) -> tuple[int, int]:
    row = connection.execute(
        sa.select(providers.c.id, providers.c.root_id).where(providers.c.uuid == uuid)
    ).one_or_none()
    if row is None:
        raise InvalidInput(f"Parent provider {uuid} does not exist.")
    return int(row.id), int(row.root_id)


def _root_of(connection: sa.Connection, provider_id: int) -> int:
    return int(connection.execute(sa.select(providers.c.root_id).where(providers.c.id == provider_id)).scalar_one())


def _subtree(connection: sa.Connection, provider_id: int) -> set[int]:
    found, layer = {provider_id}, {provider_id}
    while layer:
        children = sa.select(providers.c.id).where(providers.c.parent_id.in_(layer))
        layer = set(connection.execute(children).scalars()) - found
        found |= layer
    return found


def delete_provider(connection: sa.Connection, uuid: str) -> None:
    """Remove a provider that nobody uses.

    Raises:
        ProviderNotFound, CannotDeleteParent, ProviderInUse: as they say. Spec: API-718.
    """
    provider_id = lock_provider(connection, uuid)
    if connection.execute(sa.select(providers.c.id).where(providers.c.parent_id == provider_id)).first():
        raise CannotDeleteParent(f"Unable to delete parent resource provider {uuid}: It has child resource providers.")
    claimed = sa.select(allocations.c.consumer).where(allocations.c.provider_id == provider_id)
    if connection.execute(claimed).first():
        raise ProviderInUse(f"Unable to delete resource provider {uuid}: Resource provider has allocations.")
    for table in (inventories, provider_traits, provider_aggregates, layouts, allocation_groups, hosts):
        connection.execute(table.delete().where(table.c.provider_id == provider_id))
    stamp(connection, [_root_of(connection, provider_id)])
    number = change_number(connection.dialect.name)
    connection.execute(deleted_providers.delete().where(deleted_providers.c.id == provider_id))  # SQLite reuses ids
    connection.execute(deleted_providers.insert().values(id=provider_id, changed=number))
    connection.execute(providers.delete().where(providers.c.id == provider_id))


def set_inventories(
    connection: sa.Connection, uuid: str, wanted: Mapping[str, Inventory], *, generation: int | None = None
) -> None:
    """Make the inventories of a provider exactly these.

    Raises:
        ProviderNotFound, ConcurrentUpdate: as `lock_provider`. InventoryInUse: one to remove has allocations;
            making one smaller than its use is allowed. Spec: API-748.
    """
    provider_id = lock_provider(connection, uuid, generation)
    present = inventories_of(connection, provider_id)
    removed = [name for name in present if name not in wanted]
    in_use = sorted(name for name in removed if present[name].used)
    if in_use:
        raise InventoryInUse(f"Inventory for '{', '.join(in_use)}' on resource provider '{uuid}' in use.")
    changed = bool(removed)
    if removed:
        connection.execute(
            inventories.delete().where(
                inventories.c.provider_id == provider_id, inventories.c.resource_class.in_(removed)
            )
        )
    for name, inventory in wanted.items():
        values = {**msgspec.structs.asdict(inventory), "capacity": inventory.capacity}
        if name not in present:
            _ADD_INVENTORY.run(connection, provider_id=provider_id, resource_class=name, used=0, **values)
        elif any(getattr(present[name], key) != value for key, value in values.items()):
            _SET_INVENTORY.run(connection, b_provider=provider_id, b_class=name, **values)
        else:
            continue
        changed = True
    if changed:
        touch(connection, [provider_id])


def set_traits(connection: sa.Connection, uuid: str, wanted: Iterable[str], *, generation: int | None = None) -> bool:
    """Make the traits of a provider exactly these. Nothing is written when they are already so.

    Returns:
        Whether anything was written.

    Raises:
        ProviderNotFound, ConcurrentUpdate: as `lock_provider`.
    """
    return _set_names(connection, uuid, provider_traits.c.trait, set(wanted), generation)


def set_aggregates(
    connection: sa.Connection, uuid: str, wanted: Iterable[str], *, generation: int | None = None
) -> bool:
    """Make the aggregates of a provider exactly these; otherwise as `set_traits`."""
    return _set_names(connection, uuid, provider_aggregates.c.aggregate, set(wanted), generation)


def _set_names(
    connection: sa.Connection, uuid: str, column: sa.Column[str], wanted: set[str], generation: int | None
) -> bool:
    provider_id = lock_provider(connection, uuid, generation)
    table = column.table
    assert isinstance(table, sa.Table)
    of_provider = table.c.provider_id == provider_id
    present = set(_NAMES[column].scalars(connection, provider=provider_id))
    if present == wanted:
        return False
    if present - wanted:
        connection.execute(table.delete().where(of_provider, column.in_(sorted(present - wanted))))
    if wanted - present:
        added = [{"provider_id": provider_id, column.name: name} for name in sorted(wanted - present)]
        connection.execute(table.insert(), added)
    touch(connection, [provider_id])
    return True
