"""What all schemas share: names of constraints, and column types (structures as JSON text, enums as values)."""

from __future__ import annotations

from enum import Enum
from typing import Any

import msgspec
import sqlalchemy as sa

Uuid = sa.String(36)
"""A UUID in its dashed text form."""

Timestamp = sa.Double
"""Seconds since the epoch, UTC."""


def new_metadata() -> sa.MetaData:
    """A set of tables whose constraints all have names: what has no name cannot be changed by a migration."""
    return sa.MetaData(naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    })


class Json(sa.types.TypeDecorator[Any]):
    """A msgspec-typed value stored as JSON text.

    Args:
        type_: the type the value has in Python; decoding validates it.
    """

    impl = sa.Text
    cache_ok = True

    def __init__(self, type_: Any) -> None:
        super().__init__()
        self.type_ = type_
        self._decode = msgspec.json.Decoder(type_).decode

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> str | None:
        return None if value is None else msgspec.json.encode(value).decode()

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> Any:
        return None if value is None else self._decode(value)


class EnumValue(sa.types.TypeDecorator[Any]):
    """An enum stored by value (text, or integer for an IntEnum)."""

    impl = sa.String(64)
    cache_ok = True

    def __init__(self, type_: type[Enum]) -> None:
        super().__init__()
        self.type_ = type_

    def load_dialect_impl(self, dialect: sa.Dialect) -> Any:
        integer = issubclass(self.type_, int)
        return dialect.type_descriptor(sa.Integer() if integer else sa.String(64))

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> Any:
        return None if value is None else self.type_(value).value

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Any:
        return None if value is None else self.type_(value)
