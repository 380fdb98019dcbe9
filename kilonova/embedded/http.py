"""The HTTP edge that the embedded services share: authentication, request ids, errors, JSON.

A service is a list of Starlette routes plus the shape of its error body. Handlers are
`async def handler(request) -> Response`; they find the caller with `caller` and raise the errors
of `kilonova.domain.errors`, which become the service's own error body.

Spec: EMI-01 to EMI-06, EMI-48 to EMI-50.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kilonova.domain import trail
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import (
    BodyTooLarge,
    Forbidden,
    InvalidInput,
    KilonovaError,
    NotFound,
    ServiceUnavailable,
    Unauthorized,
)
from kilonova.services.identity import IdentityService, ServiceRequest, authenticate

log = structlog.get_logger(__name__)

ErrorBody = Callable[[int, str, str], Any]
"""Builds a service's error body from (status, title, message)."""

TITLES = {
    400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed",
    406: "Not Acceptable", 409: "Conflict", 413: "Request Entity Too Large", 415: "Unsupported Media Type",
    500: "Internal Server Error", 501: "Not Implemented", 503: "Service Unavailable",
}

LARGEST_BODY = 1 << 20
"""Bytes of a request's body that are read. Many ports or allocations in one request take a tenth of it."""

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON answer. Content may hold msgspec structs."""
    return Response(_encode(content), status, headers, "application/json")


def empty_response(status: int = 204, headers: dict[str, str] | None = None) -> Response:
    """An answer without a body. Spec: EMI-02."""
    return Response(None, status, headers)


async def json_object(request: Request) -> dict[str, Any]:
    """The request body as a JSON object. Raises InvalidInput for anything else."""
    try:
        value = _decode(await request.body())
    except msgspec.DecodeError as error:
        raise InvalidInput("The request body is not valid JSON.") from error
    if not isinstance(value, dict):
        raise InvalidInput("The request body must be a JSON object.")
    return value


def root_url(request: Request) -> str:
    """The URL under which the caller reached this service, without a trailing slash. Spec: EMI-16."""
    scheme = request.headers.get("x-forwarded-proto", request.url.scheme)
    return f"{scheme}://{request.headers.get('host', request.url.netloc)}{request.scope.get('root_path', '')}"


def caller(request: Request) -> RequestContext:
    """The authenticated caller."""
    context: RequestContext = request.state.caller
    return context


def is_vouched_for(request: Request) -> bool:
    """Whether a service vouches for the caller, whose own token may have expired. Spec: EMI-50."""
    vouched: bool = request.state.vouched_for
    return vouched


def require_admin(request: Request) -> RequestContext:
    """The caller, if it holds role admin. Raises Forbidden otherwise."""
    context = caller(request)
    if not context.is_admin:
        raise Forbidden("You are not authorized to perform the requested action: admin_required.")
    return context


class EmbeddedService:
    """An ASGI application around the routes of one service.

    Args:
        service: its type in the catalogue, by which access rules name it.
        routes: what Starlette is given.
        identity: validates `X-Auth-Token`; None while the identity service itself has no token to check.
        error_body: shape of this service's errors.
        public: matches (method, path) pairs that need no token, for example `r"GET /(v3/?)?$"`.
        identity_url: shown in `WWW-Authenticate`.
        streams: matches (method, path) pairs whose handlers read the body piece by piece and limit it themselves;
            of all others at most `LARGEST_BODY` is read.
    """

    def __init__(self, service: str, routes: Sequence[BaseRoute], *, identity: IdentityService, error_body: ErrorBody,
                 public: str, identity_url: str, streams: str = r"(?!)") -> None:
        self._service = service
        self._identity = identity
        self._error_body = error_body
        self._public = re.compile(public)
        self._streams = re.compile(streams)
        self._identity_url = identity_url
        self._app: ASGIApp = Starlette(
            routes=routes,
            exception_handlers={
                KilonovaError: self._kilonova_error,
                404: self._http_error,
                405: self._http_error,
                Exception: self._unexpected,
            },
        )
        self._app.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = f"req-{uuid.uuid4()}"
        scope.setdefault("state", {})["request_id"] = request_id

        async def with_request_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message.setdefault("headers", []).append((b"x-openstack-request-id", request_id.encode()))
            await send(message)

        global_id = trail.global_request_id(Request(scope).headers.get("x-openstack-request-id"))
        with trail.serving(request_id, global_id):
            await self._serve(scope, receive, with_request_id)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        called = f"{request.method} {path}"
        if not self._public.match(called):
            try:
                scope["state"]["caller"] = await self._authenticate(request, path)
            except KilonovaError as error:
                await self._answer(error)(scope, receive, send)
                return
        bounded = receive if self._streams.match(called) else _bounded(receive)
        await self._app(scope, bounded, send)

    async def _authenticate(self, request: Request, path: str) -> RequestContext:
        secret, vouching = request.headers.get("x-auth-token", ""), request.headers.get("x-service-token", "")
        asked = ServiceRequest(service=self._service, method=request.method, path=path)
        token = await authenticate(self._identity, secret, vouching, asked)
        request.scope["state"]["vouched_for"] = bool(vouching)
        return RequestContext(
            request_id=request.state.request_id,
            user_id=token.user_id,
            user_name=token.user_name,
            user_domain_id=token.user_domain_id,
            project_id=token.project_id,
            project_name=token.project_name or "",
            project_domain_id=token.project_domain_id or "default",
            roles=token.roles,
            system=token.system,
            is_admin="admin" in token.roles,
            token=secret,
            global_request_id=trail.global_request_id(request.headers.get("x-openstack-request-id")),
        )

    def _answer(self, error: KilonovaError) -> Response:
        headers = {}
        if isinstance(error, Unauthorized):
            headers["WWW-Authenticate"] = f'Keystone uri="{self._identity_url}"'
        title = TITLES.get(error.status, "Error")
        return json_response(self._error_body(error.status, title, str(error)), error.status, headers)

    async def _kilonova_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, KilonovaError)
        return self._answer(error)

    async def _http_error(self, request: Request, error: Exception) -> Response:
        return self._answer(NotFound("The resource could not be found."))

    async def _unexpected(self, request: Request, error: Exception) -> Response:
        log.exception("request failed", path=request.url.path, exc_info=error)
        failure = ServiceUnavailable(f"The service failed on this request: {type(error).__name__}.")
        return json_response(self._error_body(500, TITLES[500], failure.message), 500)


def _bounded(receive: Receive) -> Receive:
    """Receives until the body has become too large: then whoever reads it gets BodyTooLarge."""
    size = 0

    async def bounded() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > LARGEST_BODY:
            raise BodyTooLarge(LARGEST_BODY)
        return message

    return bounded
