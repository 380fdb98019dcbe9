"""Statements of hot paths: compiled once, then handed to the SQLite driver as they are.

SQLAlchemy spends several times as long on a small statement as SQLite does: it looks the statement up in its cache,
builds a context and a result. A `Prepared` has done that once. On PostgreSQL, where a network lies in between, it
is executed in the usual way. Either way the types of the columns convert what goes in and what comes out.
"""

from __future__ import annotations

import sqlite3
from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import sqlalchemy as sa

Convert = Callable[[Any], Any]


class Prepared:
    """A statement whose changing parts are all bind parameters, given by name when it is executed.

    `in_` takes bind parameters, not a list of values. Rows are named tuples. Errors of the driver are raised as
    those of SQLAlchemy, on both databases.

    Args:
        statement: a select, or an insert, update or delete with or without RETURNING. Every bind parameter must
            be given at every execution; defaults of columns are not filled in.
    """

    __slots__ = ("_compiled", "statement")

    def __init__(self, statement: sa.sql.ClauseElement) -> None:
        self.statement = statement
        self._compiled: _Compiled | None = None

    def all(self, conn: sa.Connection, /, **values: Any) -> list[Any]:
        """All rows."""
        if conn.dialect.name != "sqlite":
            return list(conn.execute(self._executable, values).all())
        compiled = self._compiled or self._compile(conn)
        return compiled.rows(_execute(conn, compiled, compiled.bind(values)))

    def first(self, conn: sa.Connection, /, **values: Any) -> Any:
        """The first row, None if there is none."""
        if conn.dialect.name != "sqlite":
            return conn.execute(self._executable, values).first()
        compiled = self._compiled or self._compile(conn)
        row = _execute(conn, compiled, compiled.bind(values)).fetchone()
        return None if row is None else compiled.rows((row,))[0]

    def scalar(self, conn: sa.Connection, /, **values: Any) -> Any:
        """The first column of the first row, None if there is no row."""
        row = self.first(conn, **values)
        return None if row is None else row[0]

    def scalars(self, conn: sa.Connection, /, **values: Any) -> list[Any]:
        """The first column of all rows."""
        return [row[0] for row in self.all(conn, **values)]

    def run(self, conn: sa.Connection, /, **values: Any) -> int:
        """Execute a change; returns how many rows it affected."""
        if conn.dialect.name != "sqlite":
            return conn.execute(self._executable, values).rowcount
        compiled = self._compiled or self._compile(conn)
        return _execute(conn, compiled, compiled.bind(values)).rowcount

    @property
    def _executable(self) -> Any:
        return self.statement

    def _compile(self, conn: sa.Connection) -> _Compiled:
        self._compiled = _Compiled(self.statement, conn.dialect)
        return self._compiled


class _Compiled:
    """A statement as SQLite gets it: text, where each bind parameter comes from, and how values are converted."""

    __slots__ = ("_binds", "_convert", "_given", "_row", "text")

    def __init__(self, statement: Any, dialect: sa.Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        late = compiled.post_compile_params | compiled.literal_execute_params
        if late or compiled.insert_prefetch or compiled.update_prefetch:
            raise TypeError(f"a list of values, or a default of a column, is filled in at execution: {compiled}")
        self.text = str(compiled)
        self._binds: list[tuple[str | None, Any]] = []
        """Of each parameter: its name and how it is converted, or None and the constant that it is."""
        given = set()
        for name in compiled.positiontup:
            bind = compiled.binds[name]
            convert = bind.type.dialect_impl(dialect).bind_processor(dialect)
            if bind.required:
                given.add(name)
                self._binds.append((name, convert))
            else:
                value = bind.effective_value
                self._binds.append((None, convert(value) if convert else value))
        self._given = len(given)
        columns = statement.exported_columns
        row: Any = namedtuple("Row", list(columns.keys()), rename=True)  # type: ignore[misc]
        self._row = row._make
        converts = (column.type.dialect_impl(dialect).result_processor(dialect, None) for column in columns)
        self._convert: list[tuple[int, Convert]] = [(n, convert) for n, convert in enumerate(converts) if convert]

    def bind(self, values: Mapping[str, Any]) -> list[Any]:
        """The values in the order of the parameters."""
        if len(values) != self._given:
            raise TypeError(f"{len(values)} values given, {self._given} wanted: {self.text}")
        bound = []
        for name, convert in self._binds:
            if name is None:
                bound.append(convert)
            elif convert is None:
                bound.append(values[name])
            else:
                bound.append(convert(values[name]))
        return bound

    def rows(self, found: Iterable[tuple[Any, ...]]) -> list[Any]:
        """Rows as their readers see them."""
        if not self._convert:
            return [self._row(row) for row in found]
        rows = []
        for row in found:
            values = list(row)
            for position, convert in self._convert:
                values[position] = convert(values[position])
            rows.append(self._row(values))
        return rows


def _execute(conn: sa.Connection, compiled: _Compiled, bound: list[Any]) -> sqlite3.Cursor:
    driver: Any = conn.connection.driver_connection
    try:
        cursor: sqlite3.Cursor = driver.execute(compiled.text, bound)
    except sqlite3.Error as error:
        raise sa.exc.DBAPIError.instance(
            compiled.text, None, error, sqlite3.Error, dialect=conn.dialect
        ) from error
    return cursor
