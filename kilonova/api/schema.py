"""What a body may hold, declared once for all microversions.

A schema checks a decoded JSON value and returns it normalised (booleans from their words, integers from their
digits), or raises InvalidInput with the text that clients know. It also gives the JSON Schema of a microversion.
docs/reference/adding-a-route.md has an example. Spec: API-023 to API-028.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from kilonova.api.microversions import FIRST, LATEST
from kilonova.domain.errors import InvalidInput

SHOWN = 1024
"""Characters of a refused value that an error repeats at most."""


class Reading(msgspec.Struct, frozen=True):
    """How to read: the microversion, and whether the lenient rules of `/v2` hold. Spec: API-007."""

    version: int
    lenient: bool = False
    query: bool = False


class Invalid(Exception):
    """A value does not fit. `field` is set by the innermost container that knows the name."""

    def __init__(self, value: Any, message: str) -> None:
        super().__init__(message)
        self.value = value
        self.message = message
        self.field: str | None = None

    def inside(self, name: str) -> Invalid:
        if self.field is None:
            self.field = name
        return self

    def as_input_error(self, *, query: bool) -> InvalidInput:
        """Spec: API-028."""
        if self.field is None:
            return InvalidInput(self.message)
        what = "query parameters" if query else "field/attribute"
        value = str(self.value)[:SHOWN]
        return InvalidInput(f"Invalid input for {what} {self.field}. Value: {value}. {self.message}")


class Schema:
    """What every kind of schema can do."""

    def read(self, value: Any, reading: Reading) -> Any:
        """The normalised value. Raises Invalid."""
        raise NotImplementedError

    def describe(self, version: int) -> dict[str, Any]:
        """As JSON Schema."""
        raise NotImplementedError


def read_body(schema: Schema, value: Any, reading: Reading) -> Any:
    """Check a whole body. Raises InvalidInput."""
    try:
        return schema.read(value, reading)
    except Invalid as invalid:
        raise invalid.as_input_error(query=reading.query) from None


def _shown(value: Any) -> str:
    return repr(value)[:SHOWN]


def _wrong_type(value: Any, *types: str) -> Invalid:
    return Invalid(value, f"{_shown(value)} is not of type {', '.join(repr(t) for t in types)}")


class Anything(Schema):
    """Any JSON value."""

    def read(self, value: Any, reading: Reading) -> Any:
        return value

    def describe(self, version: int) -> dict[str, Any]:
        return {}


class Null(Schema):
    def read(self, value: Any, reading: Reading) -> Any:
        if value is not None:
            raise _wrong_type(value, "null")
        return None

    def describe(self, version: int) -> dict[str, Any]:
        return {"type": "null"}


class Text(Schema):
    """A string.

    Args:
        shortest, longest: allowed length in characters. pattern: a regular expression all of it must match.
        format: name and test of a form that no expression describes (uuid, ipv4, base64).
        trimmed_when_lenient: the `/v2` endpoint takes spaces at the ends off first.
    """

    def __init__(self, shortest: int = 0, longest: int | None = None, pattern: str | None = None,
                 format: tuple[str, Callable[[str], bool]] | None = None, *,
                 trimmed_when_lenient: bool = False) -> None:
        self.shortest, self.longest, self.pattern, self.format = shortest, longest, pattern, format
        self._matches = re.compile(pattern).fullmatch if pattern else None
        self._trim = trimmed_when_lenient

    def read(self, value: Any, reading: Reading) -> Any:
        if type(value) is not str:
            raise _wrong_type(value, "string")
        if self._trim and reading.lenient:
            value = value.strip()
        if len(value) < self.shortest:
            raise Invalid(value, f"{_shown(value)} is too short")
        if self.longest is not None and len(value) > self.longest:
            raise Invalid(value, f"{_shown(value)} is too long")
        if self._matches is not None and not self._matches(value):
            raise Invalid(value, f"{_shown(value)} does not match '^{self.pattern}$'")
        if self.format is not None and not self.format[1](value):
            raise Invalid(value, f"{_shown(value)} is not a '{self.format[0]}'")
        return value

    def describe(self, version: int) -> dict[str, Any]:
        found: dict[str, Any] = {"type": "string"}
        if self.shortest:
            found["minLength"] = self.shortest
        if self.longest is not None:
            found["maxLength"] = self.longest
        if self.pattern:
            found["pattern"] = f"^{self.pattern}$"
        if self.format:
            found["format"] = self.format[0]
        return found


class Enum(Schema):
    """One of some values."""

    def __init__(self, *values: Any) -> None:
        self.values = values

    def read(self, value: Any, reading: Reading) -> Any:
        if not any(type(value) is type(allowed) and value == allowed for allowed in self.values):
            raise Invalid(value, f"{_shown(value)} is not one of {list(self.values)!r}")
        return value

    def describe(self, version: int) -> dict[str, Any]:
        return {"enum": list(self.values)}


TRUE_WORDS = ("True", "TRUE", "true", "1", "ON", "On", "on", "YES", "Yes", "yes")
FALSE_WORDS = ("False", "FALSE", "false", "0", "OFF", "Off", "off", "NO", "No", "no")


class Boolean(Schema):
    """A boolean or one of its words; read as bool. Spec: API-026."""

    _words: Mapping[str, bool] = {**dict.fromkeys(TRUE_WORDS, True), **dict.fromkeys(FALSE_WORDS, False)}

    def read(self, value: Any, reading: Reading) -> Any:
        if type(value) is bool:
            return value
        found = self._words.get(value) if type(value) is str else None
        if found is None:
            words = [True, *TRUE_WORDS, False, *FALSE_WORDS]
            raise Invalid(value, f"{_shown(value)} is not one of {words!r}")
        return found

    def describe(self, version: int) -> dict[str, Any]:
        return {"enum": [True, *TRUE_WORDS, False, *FALSE_WORDS]}


class Integer(Schema):
    """An integer or its digits; read as int. Spec: API-027."""

    def __init__(self, least: int | None = 0, most: int = 0x7FFFFFFF) -> None:
        self.least, self.most = least, most

    def read(self, value: Any, reading: Reading) -> Any:
        if type(value) is str and re.fullmatch(r"-?[0-9]{1,12}", value):
            number = int(value)
        elif type(value) is int:
            number = value
        elif type(value) is str:
            raise Invalid(value, f"{_shown(value)} does not match '^-?[0-9]+$'")
        else:
            raise _wrong_type(value, "integer", "string")
        if self.least is not None and number < self.least:
            raise Invalid(value, f"{number} is less than the minimum of {self.least}")
        if number > self.most:
            raise Invalid(value, f"{number} is greater than the maximum of {self.most}")
        return number

    def describe(self, version: int) -> dict[str, Any]:
        bounds = {"maximum": self.most} | ({} if self.least is None else {"minimum": self.least})
        return {"anyOf": [{"type": "integer", **bounds}, {"type": "string", "pattern": "^-?[0-9]{1,12}$"}]}


class OneOf(Schema):
    """The first of several schemas that fits; `OneOf(Null(), X)` is a nullable X."""

    def __init__(self, *schemas: Schema) -> None:
        self.schemas = schemas

    def read(self, value: Any, reading: Reading) -> Any:
        failure: Invalid | None = None
        for schema in self.schemas:
            try:
                return schema.read(value, reading)
            except Invalid as invalid:
                failure = invalid
        if len(self.schemas) == 2 and isinstance(self.schemas[0], Null) and failure is not None:
            raise failure
        raise Invalid(value, f"{_shown(value)} is not valid under any of the given schemas")

    def describe(self, version: int) -> dict[str, Any]:
        return {"anyOf": [schema.describe(version) for schema in self.schemas]}


def nullable(schema: Schema) -> OneOf:
    """null or what the schema takes."""
    return OneOf(Null(), schema)


class ListOf(Schema):
    """An array of one kind of item; `fewest` and `most` bound its length."""

    def __init__(
        self, item: Schema, fewest: int = 0, most: int | None = None, *, unique: bool = False
    ) -> None:
        self.item, self.fewest, self.most, self.unique = item, fewest, most, unique

    def read(self, value: Any, reading: Reading) -> Any:
        if type(value) is not list:
            raise _wrong_type(value, "array")
        if len(value) < self.fewest:
            raise Invalid(value, f"{_shown(value)} is too short")
        if self.most is not None and len(value) > self.most:
            raise Invalid(value, f"{_shown(value)} is too long")
        found = []
        for index, item in enumerate(value):
            try:
                found.append(self.item.read(item, reading))
            except Invalid as invalid:
                raise invalid.inside(str(index)) from None
        if self.unique and any(item in found[:index] for index, item in enumerate(found)):
            raise Invalid(value, f"{_shown(value)} has non-unique elements")
        return found

    def describe(self, version: int) -> dict[str, Any]:
        found: dict[str, Any] = {"type": "array", "items": self.item.describe(version)}
        if self.fewest:
            found["minItems"] = self.fewest
        if self.most is not None:
            found["maxItems"] = self.most
        if self.unique:
            found["uniqueItems"] = True
        return found


class Field(msgspec.Struct, frozen=True):
    """A property of an object. required_since: the microversion from which it must be there, or None."""

    schema: Schema
    since: int = FIRST
    until: int = LATEST
    required_since: int | None = None


def required(schema: Schema, *, since: int = FIRST, until: int = LATEST) -> Field:
    return Field(schema, since, until, since)


def optional(schema: Schema, *, since: int = FIRST, until: int = LATEST,
             required_since: int | None = None) -> Field:
    return Field(schema, since, until, required_since)


Fields = Mapping[str, Field | tuple[Field, ...]]
"""Properties by name; one whose form changed over time has several fields with ranges that do not overlap."""


class Object(Schema):
    """An object with known properties. Spec: API-024, API-025.

    Args:
        fields: its properties. others: what unknown properties may hold, None to refuse them.
        fewest: the least number of properties, or 0.
    """

    def __init__(self, fields: Fields, *, others: Schema | None = None, fewest: int = 0) -> None:
        self._fields = {n: f if isinstance(f, tuple) else (f,) for n, f in fields.items()}
        self._others = others
        self._fewest = fewest
        self._by_version: dict[int, tuple[dict[str, Schema], tuple[str, ...]]] = {}

    def at(self, version: int) -> tuple[dict[str, Schema], tuple[str, ...]]:
        """The properties that exist in a microversion, and the names of those that must be there."""
        found = self._by_version.get(version)
        if found is None:
            fields = {
                name: field
                for name, ranges in self._fields.items()
                for field in ranges
                if field.since <= version <= field.until
            }
            needed = tuple(n for n, f in fields.items() if f.required_since and version >= f.required_since)
            found = {name: field.schema for name, field in fields.items()}, needed
            self._by_version[version] = found
        return found

    def read(self, value: Any, reading: Reading) -> Any:
        if type(value) is not dict:
            raise _wrong_type(value, "object")
        schemas, needed = self.at(reading.version)
        found = {}
        unknown = []
        for name, item in value.items():
            schema = schemas.get(name, self._others)
            if schema is None:
                unknown.append(name)
                continue
            try:
                found[name] = schema.read(item, reading)
            except Invalid as invalid:
                raise invalid.inside(name) from None
        if unknown and not reading.lenient:
            names = ", ".join(repr(name) for name in unknown)
            verb = "was" if len(unknown) == 1 else "were"
            raise Invalid(value, f"Additional properties are not allowed ({names} {verb} unexpected)")
        for name in needed:
            if name not in found:
                raise Invalid(value, f"{name!r} is a required property")
        if len(found) < self._fewest:
            raise Invalid(value, f"{_shown(value)} does not have enough properties")
        return found

    def describe(self, version: int) -> dict[str, Any]:
        schemas, needed = self.at(version)
        found: dict[str, Any] = {
            "type": "object",
            "properties": {name: schema.describe(version) for name, schema in schemas.items()},
            "additionalProperties": self._others.describe(version) if self._others else False,
        }
        if needed:
            found["required"] = list(needed)
        if self._fewest:
            found["minProperties"] = self._fewest
        return found


class MapOf(Schema):
    """An object with free keys of one pattern and values of one kind."""

    def __init__(self, key_pattern: str, value: Schema, *, fewest: int = 0, most: int | None = None) -> None:
        self._pattern = key_pattern
        self._key = re.compile(key_pattern).fullmatch
        self._value = value
        self._fewest, self._most = fewest, most

    def read(self, value: Any, reading: Reading) -> Any:
        if type(value) is not dict:
            raise _wrong_type(value, "object")
        if len(value) < self._fewest:
            raise Invalid(value, f"{_shown(value)} does not have enough properties")
        if self._most is not None and len(value) > self._most:
            raise Invalid(value, f"{_shown(value)} has too many properties")
        found = {}
        for name, item in value.items():
            if not self._key(name):
                raise Invalid(value, f"{_shown(name)} does not match any of the regexes: '^{self._pattern}$'")
            try:
                found[name] = self._value.read(item, reading)
            except Invalid as invalid:
                raise invalid.inside(name) from None
        return found

    def describe(self, version: int) -> dict[str, Any]:
        found: dict[str, Any] = {
            "type": "object",
            "patternProperties": {f"^{self._pattern}$": self._value.describe(version)},
            "additionalProperties": False,
        }
        if self._fewest:
            found["minProperties"] = self._fewest
        if self._most is not None:
            found["maxProperties"] = self._most
        return found
