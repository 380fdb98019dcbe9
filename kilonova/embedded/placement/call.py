"""One call: its version, who may make it, and how errors look.

A resource of the API is a path with a handler for each method. What the versions of the protocol demand of every
call (negotiation, content types, cache headers, error bodies) is done here once.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kilonova.db.database import Database
from kilonova.db.placement.errors import ConcurrentUpdate
from kilonova.domain.clock import Clock
from kilonova.domain.errors import Forbidden, InvalidInput, KilonovaError, NotFound
from kilonova.embedded.http import TITLES, caller, json_response, root_url

NEWEST = 39
HEADER = "OpenStack-API-Version"
_VERSION = re.compile(r"placement\s+(latest|[0-9]+\.[0-9]+)\Z")

T = TypeVar("T")


class NotAcceptable(KilonovaError):
    """A version, or a form of answer, that is not offered."""

    status = 406


class MethodNotAllowed(KilonovaError):
    """The resource does not have this method."""

    status = 405


class UnsupportedMediaType(KilonovaError):
    """The body is not JSON."""

    status = 415


class BadQuery(InvalidInput):
    """A query parameter that cannot be. code: placement's name of the kind of mistake."""

    def __init__(self, message: str, code: str = "placement.query.bad_value") -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Call:
    """A request on its way through a handler.

    Args:
        version: N of version 1.N.
    """

    request: Request
    version: int
    db: Database
    clock: Clock

    def path(self, name: str) -> str:
        """A parameter of the path."""
        return str(self.request.path_params[name])

    def uuid(self) -> str:
        """The path parameter `uuid` in its dashed form. Raises NotFound for anything else."""
        try:
            return str(uuid.UUID(self.path("uuid")))
        except ValueError as error:
            raise NotFound(f"No resource provider with uuid {self.path('uuid')} found.") from error

    async def body(self, type_: type[T]) -> T:
        """The body, checked. Raises InvalidInput."""
        try:
            return msgspec.json.decode(await self.request.body(), type=type_)
        except msgspec.DecodeError as error:
            raise InvalidInput(f"JSON does not validate: {error}.") from error

    def url(self, path: str) -> str:
        """An absolute URL of this service, for Location."""
        return root_url(self.request) + path

    def href(self, path: str) -> str:
        """A path for links within bodies."""
        return f"{self.request.scope.get('root_path', '')}{path}"


Handler = Callable[[Call], Awaitable[Response]]


@dataclass(frozen=True)
class Method:
    """A handler and the version that brought it.

    Args:
        below: status for older versions.
        allow: the roles that may call; None leaves it to the handler.
        cached: from 1.15 on answers without a body carry cache headers too.
    """

    handler: Handler
    since: int = 0
    below: int = 404
    allow: frozenset[str] | None = frozenset({"admin", "service"})
    cached: bool = False


class Resource:
    """An ASGI application that answers for one path."""

    def __init__(self, methods: Mapping[str, Method], db: Database, clock: Clock) -> None:
        self._methods = methods
        self._db = db
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        version: int | None = None
        try:
            method = self._methods.get(request.method)
            if method is None:
                raise MethodNotAllowed(f"The method {request.method} is not allowed for this resource.")
            version = negotiate(request.headers.get(HEADER.lower()))
            response = await self._serve(method, Call(request, version, self._db, self._clock))
        except sa.exc.IntegrityError:
            conflict = ConcurrentUpdate("Another request changed the same objects.", hint="read them and try again")
            response = self._refuse(request, conflict, version)
        except KilonovaError as error:
            response = self._refuse(request, error, version)
        response.headers["Vary"] = HEADER
        if version is not None:
            response.headers[HEADER] = f"placement 1.{version}"
        await response(scope, receive, send)

    async def _serve(self, method: Method, call: Call) -> Response:
        if call.version < method.since:
            raise MethodNotAllowed("Not in this version.") if method.below == 405 else NotFound(
                "The resource could not be found."
            )
        if method.allow is not None and not method.allow.intersection(caller(call.request).roles):
            raise Forbidden("You are not authorized to perform the requested action.")
        _check_media_types(call.request, await call.request.body())
        response = await method.handler(call)
        if call.version >= 15 and (response.body or method.cached):
            response.headers["Cache-Control"] = "no-cache"
            response.headers.setdefault("Last-Modified", formatdate(call.clock.now(), usegmt=True))
        return response

    def _refuse(self, request: Request, error: KilonovaError, version: int | None) -> Response:
        headers = {"Allow": ", ".join(self._methods)} if isinstance(error, MethodNotAllowed) else None
        entry: dict[str, Any] = {}
        if version is not None and version >= 23:
            entry["code"] = getattr(error, "code", "placement.undefined_code")
        if error.status == 406:
            entry |= {"min_version": "1.0", "max_version": f"1.{NEWEST}"}
        body = error_body(request.scope, error.status, TITLES.get(error.status, "Error"), str(error), **entry)
        return json_response(body, error.status, headers)


def error_body(scope: Scope, status: int, title: str, detail: str, **more: Any) -> dict[str, Any]:
    """Spec: EMI-06, EMP-03, API-704, API-705."""
    request_id = scope["state"]["request_id"]
    return {"errors": [{"status": status, "title": title, "detail": detail, "request_id": request_id, **more}]}


def negotiate(header: str | None) -> int:
    """N of the version 1.N that the caller asks for. Spec: EMI-27, EMI-28, API-702.

    Raises:
        InvalidInput: not a version. NotAcceptable: one that is not offered.
    """
    asked = [part.strip() for part in (header or "").split(",") if part.strip().lower().startswith("placement")]
    if not asked:
        return 0
    match = _VERSION.match(asked[-1])
    if match is None:
        raise InvalidInput(f"invalid version string: {asked[-1]}")
    if match[1] == "latest":
        return NEWEST
    major, minor = map(int, match[1].split("."))
    if major != 1 or minor > NEWEST:
        raise NotAcceptable(f"Unacceptable version header: {match[1]}")
    return minor


def _check_media_types(request: Request, body: bytes) -> None:
    """Spec: API-707."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if body and content_type != "application/json":
        raise UnsupportedMediaType(f"The media type {content_type or 'none'} is not supported, use application/json.")
    accept = request.headers.get("accept", "*/*")
    offered = {part.partition(";")[0].strip().lower() for part in accept.split(",")}
    if not offered & {"*/*", "application/*", "application/json", ""}:
        raise NotAcceptable("Only application/json is provided.")
