"""An identity service for tests of clients: a token for everybody, and a catalogue of the services under test."""

from __future__ import annotations

from collections.abc import Callable

from image_cloud import PEOPLE
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


def stand_in_keystone(root: Callable[[], str], *offered: tuple[str, str, str]) -> Starlette:
    """Gives everybody in PEOPLE a token (the name) for any password.

    Args:
        root: the URL of the cloud. offered: services of the catalogue, each its name, type and path.
    """

    async def version(request: Request) -> JSONResponse:
        links = [{"rel": "self", "href": f"{root()}/identity/v3/"}]
        return JSONResponse({"version": {"id": "v3.14", "status": "stable", "links": links, "media-types": []}})

    async def token(request: Request) -> JSONResponse:
        user = (await request.json())["auth"]["identity"]["password"]["user"]["name"]
        project, roles = PEOPLE[user]
        domain = {"id": "default", "name": "Default"}
        services = [("keystone", "identity", "/identity/v3"), *offered]
        return JSONResponse({"token": {
            "methods": ["password"], "user": {"id": f"{user}-id", "name": user, "domain": domain},
            "project": {"id": project, "name": user, "domain": domain},
            "roles": [{"id": role, "name": role} for role in roles],
            "issued_at": "2026-01-01T00:00:00.000000Z", "expires_at": "2099-01-01T00:00:00.000000Z",
            "catalog": [{"id": type_, "type": type_, "name": name, "endpoints": [
                {"id": f"{type_}-{interface}", "interface": interface, "region": "RegionOne",
                 "region_id": "RegionOne", "url": root() + path}
                for interface in ("public", "internal", "admin")
            ]} for name, type_, path in services],
        }}, 201, {"X-Subject-Token": user})

    return Starlette(routes=[Route("/v3", version), Route("/v3/", version),
                             Route("/v3/auth/tokens", token, methods=["POST"])])
