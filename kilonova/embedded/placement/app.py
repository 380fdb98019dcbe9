"""The application: which resource answers which path."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from kilonova.db.database import Database
from kilonova.domain.clock import Clock
from kilonova.domain.errors import NotFound
from kilonova.embedded.http import EmbeddedService, json_response
from kilonova.embedded.placement import allocations, candidates, inventories, membership, providers, vocabulary
from kilonova.embedded.placement.call import NEWEST, Call, Method, Resource, error_body
from kilonova.services.identity import IdentityService

SERVICE_ONLY = frozenset({"service"})

PATHS: dict[str, dict[str, Method]] = {
    "/resource_providers": {"GET": Method(providers.index), "POST": Method(providers.create)},
    "/resource_providers/{uuid}": {
        "GET": Method(providers.show), "PUT": Method(providers.update), "DELETE": Method(providers.delete),
    },
    "/resource_providers/{uuid}/inventories": {
        "GET": Method(inventories.index), "POST": Method(inventories.create), "PUT": Method(inventories.replace),
        "DELETE": Method(inventories.clear, since=5, below=405),
    },
    "/resource_providers/{uuid}/inventories/{resource_class}": {
        "GET": Method(inventories.show), "PUT": Method(inventories.replace_one),
        "DELETE": Method(inventories.delete_one),
    },
    "/resource_providers/{uuid}/usages": {"GET": Method(inventories.usages)},
    "/resource_providers/{uuid}/aggregates": {
        "GET": Method(membership.aggregates, since=1), "PUT": Method(membership.set_aggregates, since=1),
    },
    "/resource_providers/{uuid}/traits": {
        "GET": Method(membership.traits, since=6), "PUT": Method(membership.set_traits, since=6),
        "DELETE": Method(membership.clear_traits, since=6),
    },
    "/resource_providers/{uuid}/allocations": {"GET": Method(allocations.of_provider)},
    "/allocations": {"POST": Method(allocations.replace_many, since=13)},
    "/allocations/{uuid}": {
        "GET": Method(allocations.show), "PUT": Method(allocations.replace), "DELETE": Method(allocations.delete),
    },
    "/allocation_candidates": {"GET": Method(candidates.index, since=10)},
    "/usages": {"GET": Method(allocations.usages, since=9, allow=None)},
    "/traits": {"GET": Method(vocabulary.traits, since=6)},
    "/traits/{name}": {
        "GET": Method(vocabulary.show_trait, since=6, cached=True),
        "PUT": Method(vocabulary.put_trait, since=6, cached=True), "DELETE": Method(vocabulary.delete_trait, since=6),
    },
    "/resource_classes": {
        "GET": Method(vocabulary.classes, since=2), "POST": Method(vocabulary.create_class, since=2),
    },
    "/resource_classes/{name}": {
        "GET": Method(vocabulary.show_class, since=2), "PUT": Method(vocabulary.put_class, since=2),
        "DELETE": Method(vocabulary.delete_class, since=2),
    },
    "/reshaper": {"POST": Method(allocations.reshape, since=30, allow=SERVICE_ONLY)},
}
VERSIONS = {"versions": [{
    "id": "v1.0", "status": "CURRENT", "min_version": "1.0", "max_version": f"1.{NEWEST}",
    "links": [{"rel": "self", "href": ""}],
}]}


class EmbeddedPlacement:
    """The placement API over the API database, an ASGI application.

    Args:
        identity: validates tokens. identity_url: shown to callers without one.
    """

    def __init__(self, db: Database, clock: Clock, *, identity: IdentityService, identity_url: str) -> None:
        anything = dict.fromkeys(("GET", "PUT", "POST", "DELETE", "PATCH", "HEAD"), Method(_unknown_path, allow=None))
        paths: Mapping[str, dict[str, Method]] = {**PATHS, "/{rest:path}": anything}
        self._scope: ContextVar[Scope] = ContextVar("placement_scope")
        self._service = EmbeddedService(
            "placement",
            [Route("/", _versions),
             *(Route(path, Resource(methods, db, clock)) for path, methods in paths.items())],
            identity=identity, error_body=self._error_body, public=r"GET /?$", identity_url=identity_url,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope.set(scope)
        await self._service(scope, receive, send)

    def _error_body(self, status: int, title: str, message: str) -> dict[str, Any]:
        """Of errors met before a resource was reached: no token, or a failure of the service itself."""
        return error_body(self._scope.get(), status, title, message)


async def _versions(request: Request) -> Response:
    """Spec: API-701, EMI-15, EMI-16."""
    return json_response(VERSIONS)


async def _unknown_path(call: Call) -> Response:
    raise NotFound("The resource could not be found.")
