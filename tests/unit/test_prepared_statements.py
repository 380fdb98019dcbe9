"""Every prepared statement of the package, as PostgreSQL gets it."""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import pkgutil

from sqlalchemy.dialects import postgresql

import kilonova
from kilonova.db.prepared import Prepared

NOT_IMPORTED = ("kilonova.__main__", "kilonova.db.migrations")


def test_the_names_of_their_parameters_do_not_become_columns_to_set() -> None:
    """SQLAlchemy takes a parameter that is named like a column for one to be set, unless the statement sets it."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:  # where no other test has prepared anything
        statements, wrong = pool.apply(_clashes)
    assert statements > 50
    assert not wrong


def _clashes() -> tuple[int, list[str]]:
    """How many statements there are, and those that are not executed with the parameters that they declare."""
    for module in pkgutil.walk_packages(kilonova.__path__, "kilonova."):
        if not module.name.startswith(NOT_IMPORTED):
            importlib.import_module(module.name)
    statements = [thing.statement for thing in gc.get_objects() if isinstance(thing, Prepared)]
    dialect = postgresql.dialect()
    wrong = []
    for statement in statements:
        declared = {name for name, bind in statement.compile(dialect=dialect).binds.items() if bind.required}
        executed = statement.compile(dialect=dialect, column_keys=sorted(declared))  # raises for a clash
        if {name for name, bind in executed.binds.items() if bind.required} != declared:
            wrong.append(str(statement))
    return len(statements), wrong
