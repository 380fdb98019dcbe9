"""The OpenAPI description of one microversion, made from the declared routes.

Served without a token as `/v2.1/openapi.json`; the query `microversion=2.79` asks for another one than the latest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import msgspec

from kilonova.api import microversions
from kilonova.api.faults import fault_name
from kilonova.api.query import Param, Query
from kilonova.api.routes import Route
from kilonova.api.schema import Anything, Reading, Schema, Text

JSON = "application/json"
NAME = "openapi.json"
QUERY = Query({"microversion": Param(Text(1))}, strict_since=microversions.FIRST)
KEPT = 8
"""Encoded descriptions that are kept; each takes some hundred kilobytes."""

_EVERYWHERE = (400, 401, 403, 404, 406, 500, 503)
_WITH_BODY = (413, 415)
_OF_CHANGES = (409,)
_OF_SERVERS = (409, 501)
"""A request about a server may meet it in a state, or on a hypervisor, that does not allow it."""

_MEANINGS = {
    400: "The request does not fit its description, or contradicts itself.", 401: "There is no valid token.",
    403: "A policy rule or a quota refuses.", 404: "There is no such object, or the caller may not know of it.",
    406: "There is no such microversion.", 409: "The state of the object does not allow this.",
    413: "The body is too long.", 415: "The body is not JSON.", 500: "The service failed.",
    501: "The hypervisor cannot do this.", 503: "A service that is needed does not answer.",
}


class Descriptions:
    """Encoded descriptions, made when they are first asked for."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes = tuple(routes)
        self._encoded = lru_cache(KEPT)(self._encode)

    def answer(self, query: bytes, url: str) -> bytes:
        """The document for a query string.

        Args:
            url: of the version root.

        Raises:
            InvalidInput: the query or the microversion in it is malformed. NotAcceptable: it is out of range.
        """
        asked = QUERY.read(query, Reading(microversions.LATEST)).last("microversion", "latest")
        return self._encoded(microversions.negotiate(None, asked), url)

    def _encode(self, version: int, url: str) -> bytes:
        return msgspec.json.encode(describe_api(self._routes, version, url))


def describe_api(routes: Iterable[Route], version: int, url: str = "/v2.1") -> dict[str, Any]:
    """An OpenAPI 3.1 document of the routes that answer in a microversion, retired ones left out.

    Args:
        version: minor microversion. url: of the version root.
    """
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        if route.retired or not route.since <= version <= route.until:
            continue
        operations = paths.setdefault(route.path, {})
        operation = operations.get(route.method.lower())
        if operation is None:
            operation = operations[route.method.lower()] = _operation(route, version)
        _add_responses(operation["responses"], route, version)
        if route.action is not None:
            operation["requestBody"]["content"][JSON]["schema"]["anyOf"].append(_action(route, version))
            operation["x-policy"] += [name for name in _rules(route) if name not in operation["x-policy"]]
    text = microversions.text(version)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Kilonova Compute API", "version": text,
            "description": f"The OpenStack Compute API v2.1 in microversion {text}.",
        },
        "servers": [{"url": url}],
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "apiKey", "in": "header", "name": "X-Auth-Token"}},
            "parameters": {"microversion": _microversion(version)},
            "headers": _headers(version),
            "schemas": _error_schemas(),
            "responses": {f"error{status}": _error(status) for status in _MEANINGS},
        },
        "security": [{"token": []}],
    }


def _operation(route: Route, version: int) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"{(\w+)}", route.path)
    ]
    for name, param in route.reading_query().params.items():
        if param.since <= version <= param.until:
            schema = param.schema.describe(version)
            parameters.append({"name": name, "in": "query", "required": False, "schema": schema})
    words = re.findall(r"\w+", route.path)
    operation: dict[str, Any] = {
        "operationId": "_".join([route.method.lower(), *words]),
        "tags": [words[0]],
        "parameters": [*parameters, {"$ref": "#/components/parameters/microversion"}],
        "responses": {},
        "x-policy": _rules(route),
    }
    if route.action is not None:
        operation["requestBody"] = _body({"anyOf": []})
    elif route.body is not None:
        operation["requestBody"] = _body(route.body.describe(version))
    return operation


def _rules(route: Route) -> list[str]:
    return [rule.name for rule in (route.rule, *route.rules) if rule is not None]


def _action(route: Route, version: int) -> dict[str, Any]:
    if route.body is not None:
        return route.body.describe(version)
    anything: Schema = Anything()
    name = str(route.action)
    return {
        "type": "object", "properties": {name: anything.describe(version)}, "required": [name],
        "additionalProperties": False,
    }


def _body(schema: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {JSON: {"schema": schema}}}


# --- answers ------------------------------------------------------------------------------------------------


def _add_responses(responses: dict[str, Any], route: Route, version: int) -> None:
    """Put in what one route answers; the actions of an object share one table of responses."""
    for status in (route.status, route.other_status):
        if status is not None:
            _add_success(responses, str(status), route.answer, version)
    for status in _errors(route):
        responses.setdefault(str(status), {"$ref": f"#/components/responses/error{status}"})


def _add_success(responses: dict[str, Any], status: str, answer: Schema | None, version: int) -> None:
    response = responses.setdefault(status, {
        "description": "Accepted." if status == "202" else "Done.",
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in _headers(version)},
    })
    if answer is not None:
        content = response.setdefault("content", {JSON: {"schema": {"anyOf": []}}})
        content[JSON]["schema"]["anyOf"].append(answer.describe(version))


def _errors(route: Route) -> list[int]:
    found = {*_EVERYWHERE, *route.errors}
    if route.body is not None or route.action is not None:
        found.update(_WITH_BODY)
    if route.method != "GET":
        found.update(_OF_CHANGES)
    if "{server_id}" in route.path:
        found.update(_OF_SERVERS)
    return sorted(found)


def _error(status: int) -> dict[str, Any]:
    name = "Unauthorized" if status == 401 else f"fault{status}"
    schema = {"$ref": f"#/components/schemas/{name}"}
    return {"description": _MEANINGS[status], "content": {JSON: {"schema": schema}}}


def _error_schemas() -> dict[str, Any]:
    """Spec: API-034, API-035, API-038."""
    found = {f"fault{status}": _fault(status) for status in _MEANINGS if status != 401}
    title = {"code": {"const": 401}, "title": {"type": "string"}, "message": {"type": "string"}}
    found["Unauthorized"] = _object({"error": _object(title)})
    return found


def _fault(status: int) -> dict[str, Any]:
    fields: dict[str, Any] = {"code": {"const": status}, "message": {"type": "string"}}
    if status in (413, 429):
        fields["retryAfter"] = {"type": "string"}
    return _object({fault_name(status): _object(fields)})


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False,
    }


def _microversion(version: int) -> dict[str, Any]:
    """The header without which a request is served in the first microversion. Spec: API-010."""
    return {
        "name": "OpenStack-API-Version", "in": "header", "required": version != microversions.FIRST,
        "schema": {"const": f"compute {microversions.text(version)}"},
    }


def _headers(version: int) -> dict[str, Any]:
    """Spec: API-014, API-031."""
    return {
        "OpenStack-API-Version": {
            "required": True, "schema": {"const": f"compute {microversions.text(version)}"},
        },
        "X-OpenStack-Request-Id": {
            "required": True, "schema": {"type": "string", "pattern": "^req-[0-9a-f-]{36}$"},
        },
    }
