"""Names of resource classes and traits: the standard ones, which are code, and the custom ones, which are rows."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache

import os_resource_classes  # type: ignore[import-untyped]
import sqlalchemy as sa

from kilonova.db.placement.errors import PlacementConflict
from kilonova.db.placement.tables import custom_classes, custom_traits, inventories, provider_traits
from kilonova.db.upsert import insert_missing
from kilonova.domain.errors import InvalidInput, NotFound

STANDARD_CLASSES: frozenset[str] = frozenset(os_resource_classes.STANDARDS)
CUSTOM_NAME = re.compile(r"CUSTOM_[A-Z0-9_]{1,248}\Z")


@cache
def standard_traits() -> frozenset[str]:
    """Read on first use: importing them takes a tenth of a second."""
    import os_traits  # type: ignore[import-untyped]

    return frozenset(os_traits.get_traits())


def classes(connection: sa.Connection) -> set[str]:
    """All resource classes."""
    return set(STANDARD_CLASSES) | set(connection.execute(sa.select(custom_classes.c.name)).scalars())


def traits(connection: sa.Connection) -> set[str]:
    """All traits; those that only hosts know by themselves among them."""
    custom = set(connection.execute(sa.select(custom_traits.c.name)).scalars())
    return set(standard_traits()) | custom | used_traits(connection)


def used_traits(connection: sa.Connection) -> set[str]:
    """The traits that some provider has."""
    return set(connection.execute(sa.select(provider_traits.c.trait).distinct()).scalars())


def check_classes(connection: sa.Connection, names: Iterable[str]) -> None:
    """Raises InvalidInput for an unknown resource class. Spec: API-747."""
    unknown = set(names) - classes(connection)
    if unknown:
        raise InvalidInput(f"No such resource class {', '.join(sorted(unknown))}.")


def check_traits(connection: sa.Connection, names: Iterable[str]) -> None:
    """Raises InvalidInput for an unknown trait. Spec: API-728."""
    unknown = set(names) - traits(connection)
    if unknown:
        raise InvalidInput(f"No such trait(s): {', '.join(sorted(unknown))}.")


def add_trait(connection: sa.Connection, name: str) -> bool:
    """Make a custom trait. Returns False if it was there. Raises InvalidInput for another kind of name."""
    return _add(connection, custom_traits, name, "trait")


def add_class(connection: sa.Connection, name: str) -> bool:
    """Make a custom resource class. Returns False if it was there. Raises InvalidInput for another kind of name."""
    return _add(connection, custom_classes, name, "resource class")


def _add(connection: sa.Connection, table: sa.Table, name: str, kind: str) -> bool:
    if not CUSTOM_NAME.match(name):
        raise InvalidInput(f"The {kind} is invalid: {name!r}.", hint="its name must be CUSTOM_ and A-Z, 0-9, _")
    return insert_missing(connection, table, {"name": name})


def remove_trait(connection: sa.Connection, name: str) -> None:
    """Raises InvalidInput for a standard trait, NotFound, or PlacementConflict while a provider has it."""
    if name in standard_traits():
        raise InvalidInput(f"Cannot delete standard trait {name}.")
    _remove(connection, custom_traits, name, provider_traits.c.trait, "trait")


def remove_class(connection: sa.Connection, name: str) -> None:
    """Raises InvalidInput for a standard class, NotFound, or PlacementConflict while a provider offers it."""
    if name in STANDARD_CLASSES:
        raise InvalidInput(f"Cannot delete standard resource class {name}.")
    _remove(connection, custom_classes, name, inventories.c.resource_class, "resource class")


def rename_class(connection: sa.Connection, name: str, new: str) -> None:
    """Raises as `remove_class`, and InvalidInput or PlacementConflict for a new name that cannot be."""
    remove_class(connection, name)
    if not add_class(connection, new):
        raise already_there(new)


def _remove(connection: sa.Connection, table: sa.Table, name: str, use: sa.Column[str], kind: str) -> None:
    if connection.execute(sa.select(use).where(use == name)).first():
        raise PlacementConflict(f"The {kind} {name} is in use by a resource provider.")
    if not connection.execute(table.delete().where(table.c.name == name)).rowcount:
        raise NotFound(f"No such {kind}: {name}.")


def already_there(name: str) -> PlacementConflict:
    """The error for a resource class that exists. Spec: API-710."""
    return PlacementConflict(f"Resource class already exists: {name}.")
