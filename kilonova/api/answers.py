"""What an answer holds, declared like bodies are: one declaration for all microversions.

Answers are not checked while serving. The API description tells clients what to expect, and tests hold the service
to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kilonova.api.schema import Field, ListOf, Object, Schema, nullable, optional, required


class Shown(Schema):
    """A value of an answer, given as JSON Schema."""

    def __init__(self, **keywords: Any) -> None:
        self._keywords = keywords

    def describe(self, version: int) -> dict[str, Any]:
        return dict(self._keywords)


STRING = Shown(type="string")
INTEGER = Shown(type="integer")
NUMBER = Shown(type="number")
BOOLEAN = Shown(type="boolean")
VALUE = Shown()
UUID = Shown(type="string", format="uuid")
SECONDS = Shown(type="string", pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$")
"""The times of servers. Spec: API-055."""
MICROSECONDS = Shown(
    type="string", pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}$"
)
"""All other times. Spec: API-055."""
STRING_OR_NULL = nullable(STRING)
TIME_OR_NULL = nullable(MICROSECONDS)


Fields = Mapping[str, Schema | Field | tuple[Field, ...]]


def shown(fields: Fields) -> Object:
    """An object whose properties are all there, unless a field says otherwise."""
    return Object({
        name: required(field) if isinstance(field, Schema) else field for name, field in fields.items()
    })


def mapping(value: Schema) -> Object:
    """An object with free names and one kind of value."""
    return Object({}, others=value)


LINK = shown({"rel": STRING, "href": STRING, "type": optional(STRING)})
LINKS = ListOf(LINK)
STRINGS = mapping(STRING)


def page(key: str, entry: Schema, links: str | None = None) -> Object:
    """A list under its name, with the link to the next page where the list has pages."""
    more = {} if links is None else {links: optional(LINKS)}
    return shown({key: ListOf(entry), **more})
