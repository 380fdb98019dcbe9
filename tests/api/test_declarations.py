"""What the declarations of routes promise as a whole, and the schemas they are made of."""

from typing import Any

import pytest

from kilonova.api.compute.application import all_routes
from kilonova.api.routes import Router
from kilonova.api.schema import (
    Boolean,
    Enum,
    Integer,
    ListOf,
    MapOf,
    Object,
    OneOf,
    Reading,
    Schema,
    Text,
    nullable,
    optional,
    read_body,
    required,
)
from kilonova.domain.errors import InvalidInput

NEW = Reading(50)


def test_ranges_of_one_route_do_not_overlap() -> None:
    seen: dict[tuple[str, str, str | None, int], str] = {}
    for route in all_routes():
        for version in range(route.since, route.until + 1):
            key = (route.method, route.path, route.action, version)
            assert key not in seen, key
            seen[key] = route.path


def test_every_route_is_found() -> None:
    router = Router(all_routes())
    for route in all_routes():
        segments = ["x" if part.startswith("{") else part for part in route.path.strip("/").split("/")]
        found = router.find(route.method, segments)
        assert found is not None
        endpoint, values = found
        assert route in (endpoint.actions.get(route.action, []) if route.action else endpoint.plain)
        assert set(values.values()) <= {"x"}


REFUSED: list[tuple[Schema, Any, str]] = [
    (Text(), 1, "1 is not of type 'string'"),
    (Text(2), "x", "'x' is too short"),
    (Text(0, 2), "xxx", "'xxx' is too long"),
    (Text(pattern="a+"), "b", "'b' does not match '^a+$'"),
    (Text(pattern="a+"), "a\n", "'a\\n' does not match '^a+$'"),
    (Enum("a", "b"), "c", "'c' is not one of ['a', 'b']"),
    (Enum(1), True, "True is not one of [1]"),
    (Integer(1), 0, "0 is less than the minimum of 1"),
    (Integer(0), 2147483648, "2147483648 is greater than the maximum of 2147483647"),
    (Integer(0), "x", "'x' does not match '^-?[0-9]+$'"),
    (Integer(0), True, "True is not of type 'integer', 'string'"),
    (Integer(0), 1.0, "1.0 is not of type 'integer', 'string'"),
    (ListOf(Text()), {}, "{} is not of type 'array'"),
    (ListOf(Text(), 1), [], "[] is too short"),
    (ListOf(Text(), unique=True), ["a", "a"], "['a', 'a'] has non-unique elements"),
    (ListOf(Text()), ["a", 1], "Invalid input for field/attribute 1. Value: 1. 1 is not of type 'string'"),
    (Object({}), [], "[] is not of type 'object'"),
    (Object({"a": required(Text())}), {}, "'a' is a required property"),
    (Object({"a": required(Text())}), {"a": "", "b": 1, "c": 2},
     "Additional properties are not allowed ('b', 'c' were unexpected)"),
    (Object({"a": required(Object({"b": required(Text())}))}), {"a": {}},
     "Invalid input for field/attribute a. Value: {}. 'b' is a required property"),
    (Object({"a": optional(Text())}, fewest=1), {}, "{} does not have enough properties"),
    (MapOf("a+", Text(), most=1), {"a": "", "aa": ""}, "{'a': '', 'aa': ''} has too many properties"),
    (MapOf("a+", Text()), {"b": ""}, "'b' does not match any of the regexes: '^a+$'"),
    (OneOf(Integer(), ListOf(Text())), "x", "'x' is not valid under any of the given schemas"),
    (nullable(Text()), 1, "1 is not of type 'string'"),
    (Object({"a": optional(Text(), since=51)}), {"a": ""},
     "Additional properties are not allowed ('a' was unexpected)"),
    (Object({"a": optional(Text(), until=49)}), {"a": ""},
     "Additional properties are not allowed ('a' was unexpected)"),
]


@pytest.mark.spec("API-024", "API-025", "API-027", "API-028")
@pytest.mark.parametrize(("schema", "value", "text"), REFUSED)
def test_refusals(schema: Schema, value: Any, text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_body(schema, value, NEW)
    assert caught.value.message == text


@pytest.mark.spec("API-026", "API-027")
def test_normalisation() -> None:
    for word in ("True", "TRUE", "true", "1", "ON", "On", "on", "YES", "Yes", "yes", True):
        assert Boolean().read(word, NEW) is True
    for word in ("False", "FALSE", "false", "0", "OFF", "Off", "off", "NO", "No", "no", False):
        assert Boolean().read(word, NEW) is False
    for word in ("TrUe", "t", 1, 0, None, ""):
        with pytest.raises(InvalidInput):
            read_body(Boolean(), word, NEW)
    assert Integer(None).read("-7", NEW) == -7
    assert Object({"a": optional(Integer(0), required_since=51)}).read({}, NEW) == {}


@pytest.mark.spec("API-007")
def test_lenient_reading() -> None:
    lenient = Reading(1, lenient=True)
    schema = Object({"name": required(Text(1, trimmed_when_lenient=True))})
    assert schema.read({"name": " x ", "other": 1}, lenient) == {"name": "x"}
