"""The OpenAPI description of one microversion, made from the declared routes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from kilonova.api import microversions
from kilonova.api.routes import Route
from kilonova.api.schema import Anything, Schema


def describe_api(routes: Iterable[Route], version: int) -> dict[str, Any]:
    """An OpenAPI 3.1 document of the routes that answer in a microversion, retired ones left out.

    Args:
        version: minor microversion.
    """
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        if route.retired or not route.since <= version <= route.until:
            continue
        operations = paths.setdefault(route.path, {})
        operation = operations.setdefault(route.method.lower(), _operation(route, version))
        operation["responses"][str(route.status)] = {"description": "done"}
        if route.action is not None:
            operation["requestBody"]["content"]["application/json"]["schema"]["oneOf"].append(_action(route, version))
    return {
        "openapi": "3.1.0",
        "info": {"title": "Kilonova Compute API", "version": microversions.text(version)},
        "servers": [{"url": "/v2.1"}],
        "paths": paths,
        "components": {"securitySchemes": {"token": {"type": "apiKey", "in": "header", "name": "X-Auth-Token"}}},
        "security": [{"token": []}],
    }


def _operation(route: Route, version: int) -> dict[str, Any]:
    names = re.findall(r"{(\w+)}", route.path)
    parameters = [{"name": n, "in": "path", "required": True, "schema": {"type": "string"}} for n in names]
    for name, param in route.reading_query().params.items():
        if param.since <= version <= param.until:
            schema = param.schema.describe(version)
            parameters.append({"name": name, "in": "query", "required": False, "schema": schema})
    operation: dict[str, Any] = {"parameters": parameters, "responses": {}}
    if route.rule is not None:
        operation["x-policy"] = [rule.name for rule in (route.rule, *route.rules)]
    if route.action is not None:
        operation["requestBody"] = _body({"oneOf": []})
    elif route.body is not None:
        operation["requestBody"] = _body(route.body.describe(version))
    return operation


def _action(route: Route, version: int) -> dict[str, Any]:
    if route.body is not None:
        return route.body.describe(version)
    anything: Schema = Anything()
    name = str(route.action)
    return {"type": "object", "properties": {name: anything.describe(version)}, "required": [name]}


def _body(schema: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": schema}}}
