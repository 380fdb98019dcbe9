"""What the service says of itself: versions, import methods, stores, usage, schemas.

Spec: EMI-15 to EMI-17, EMG-06, EMG-20.
"""

from __future__ import annotations

from functools import partial

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from kilonova.domain.errors import NotFound
from kilonova.embedded.http import caller, json_response, root_url
from kilonova.embedded.image import json_schemas
from kilonova.embedded.image.core import Core
from kilonova.embedded.image.records import STORE, ImportMethod

VERSIONS = ("2.17", "2.16", "2.15", "2.13", "2.12", "2.11", "2.10", "2.9", "2.8", "2.7", "2.6", "2.5", "2.4",
            "2.3", "2.2", "2.1", "2.0")
"""Newest first; the first one is the current one. 2.14 stands for a cache that is not offered."""

IMPORT_METHODS = (ImportMethod.GLANCE_DIRECT.value, ImportMethod.WEB_DOWNLOAD.value)


def routes(core: Core) -> list[BaseRoute]:
    return [
        Route("/", _choices, methods=["GET"]),
        Route("/v2", _choices, methods=["GET"]),
        Route("/v2/", _choices, methods=["GET"]),
        Route("/versions", _versions, methods=["GET"]),
        Route("/versions/", _versions, methods=["GET"]),
        Route("/v2/info/import", _import_info, methods=["GET"]),
        Route("/v2/info/stores", _stores, methods=["GET"]),
        Route("/v2/info/usage", partial(_usage, core), methods=["GET"]),
        Route("/v2/schemas/{name}", _schema, methods=["GET"]),
        Route("/v2/metadefs/namespaces", _namespaces, methods=["GET"]),
        Route("/v2/metadefs/resource_types", _resource_types, methods=["GET"]),
    ]


async def _choices(request: Request) -> Response:
    return json_response(_version_list(request), 300)


async def _versions(request: Request) -> Response:
    return json_response(_version_list(request))


def _version_list(request: Request) -> dict[str, object]:
    link = {"rel": "self", "href": f"{root_url(request)}/v2/"}
    return {"versions": [
        {"id": f"v{version}", "status": "CURRENT" if version == VERSIONS[0] else "SUPPORTED", "links": [link]}
        for version in VERSIONS
    ]}


async def _import_info(request: Request) -> Response:
    return json_response({"import-methods": {
        "description": "Import methods available.", "type": "array", "value": IMPORT_METHODS,
    }})


async def _stores(request: Request) -> Response:
    return json_response({"stores": [{"id": STORE, "description": "A directory of this machine", "default": "true"}]})


async def _usage(core: Core, request: Request) -> Response:
    """The quotas of the caller's project and what it has of each; empty where there are no quotas."""
    quota = await core.quotas.of(caller(request).project_id)
    used = await core.database.read(quota.usage)
    return json_response({"usage": {
        resource.value: {"usage": used[resource], "limit": limit} for resource, limit in quota.limits.items()
    }})


async def _schema(request: Request) -> Response:
    schema = json_schemas.schemas().get(request.path_params["name"])
    if schema is None:
        raise NotFound("There is no such schema.")
    return json_response(schema)


async def _namespaces(request: Request) -> Response:
    return json_response({"namespaces": [], "first": "/v2/metadefs/namespaces",
                          "schema": "/v2/schemas/metadefs/namespaces"})


async def _resource_types(request: Request) -> Response:
    return json_response({"resource_types": []})
