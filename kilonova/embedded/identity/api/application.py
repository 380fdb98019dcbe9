"""All routes of the identity service, and its version documents. Spec: EMI-15, EMI-16, EMI-19."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from kilonova.embedded.http import EmbeddedService, json_response, root_url
from kilonova.embedded.identity.api.application_credentials import ApplicationCredentials
from kilonova.embedded.identity.api.assignments import Assignments
from kilonova.embedded.identity.api.auth import Auth
from kilonova.embedded.identity.api.bodies import Attributes
from kilonova.embedded.identity.api.domains import Domains
from kilonova.embedded.identity.api.groups import Groups
from kilonova.embedded.identity.api.limits import Limits, RegisteredLimits
from kilonova.embedded.identity.api.projects import Projects
from kilonova.embedded.identity.api.roles import Roles
from kilonova.embedded.identity.api.services import Endpoints, Regions, Services
from kilonova.embedded.identity.api.users import Users
from kilonova.embedded.identity.realm import Realm
from kilonova.services.identity import IdentityService

WITHOUT_TOKEN = r"(GET|HEAD) /(v3/?)?$|POST /v3/auth/tokens$"

RESOURCES = (
    Auth, Users, Projects, Roles, Assignments, Domains, Groups, Services, Endpoints, Regions, ApplicationCredentials,
    RegisteredLimits, Limits,
)


def application(realm: Realm, identity: IdentityService, identity_url: str) -> ASGIApp:
    """The HTTP API.

    Args:
        identity: validates the callers' tokens.
        identity_url: where clients are told to authenticate.
    """
    routes = [Route("/", versions), Route("/v3", version), Route("/v3/", version)]
    for resource in RESOURCES:
        routes += resource(realm).routes()
    return EmbeddedService(
        "identity", routes, identity=identity, error_body=_error_body, public=WITHOUT_TOKEN, identity_url=identity_url
    )


async def versions(request: Request) -> Response:
    return json_response({"versions": {"values": [_version(request)]}}, 300)


async def version(request: Request) -> Response:
    return json_response({"version": _version(request)})


def _version(request: Request) -> Attributes:
    return {
        "id": "v3.14", "status": "stable", "updated": "2020-04-07T00:00:00Z",
        "links": [{"rel": "self", "href": f"{root_url(request)}/v3/"}],
        "media-types": [{"base": "application/json", "type": "application/vnd.openstack.identity-v3+json"}],
    }


def _error_body(status: int, title: str, message: str) -> Attributes:
    return {"error": {"code": status, "title": title, "message": message}}
