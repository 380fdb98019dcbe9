"""The HTTP edge of the Compute API: an ASGI application over declared routes.

A versioned request passes these stages, each of which may answer: token, route, microversion, project id in
the URL, range of the route, body and query, look-up, policy, handler. Spec: API-044.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
import structlog
from starlette.types import Receive, Scope, Send

from kilonova.api import microversions, openapi
from kilonova.api.call import Answer, Call
from kilonova.api.cloud import Cloud
from kilonova.api.faults import NotAcceptable, UnknownPath, UnsupportedMediaType, fault
from kilonova.api.links import Links, prefixed
from kilonova.api.policy import Policy, with_implied
from kilonova.api.query import QueryValues
from kilonova.api.routes import Endpoint, Route, Router, in_range
from kilonova.api.schema import Reading, read_body
from kilonova.domain import tracing, trail
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import BodyTooLarge, InvalidInput, KilonovaError, NotFound, Unauthorized
from kilonova.services.identity import ServiceRequest, authenticate

log = structlog.get_logger(__name__)

JSON_TYPES = frozenset({"", "application/json", "application/vnd.openstack.compute+json", "text/plain"})
WITH_BODY = frozenset({"POST", "PUT"})
PROJECT_ID = re.compile(r"[0-9a-f-]+")

Headers = list[tuple[bytes, bytes]]
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


class Documents(Protocol):
    """The answers that need no token. Each returns (status, body)."""

    def root(self, base: str) -> tuple[int, Any]: ...

    def version(self, base: str, version: str) -> tuple[int, Any]: ...

    def choices(self, base: str, path: str) -> tuple[int, Any]: ...


class Request:
    """The parts of an ASGI scope that the edge looks at."""

    __slots__ = ("base", "global_id", "headers", "method", "path", "query", "receive")

    def __init__(self, scope: Scope, receive: Receive, link_prefix: str) -> None:
        root: str = scope.get("root_path", "")
        self.method: str = scope["method"]
        self.path: str = scope["path"].removeprefix(root) or "/"
        self.query: bytes = scope["query_string"]
        self.receive = receive
        self.headers: dict[bytes, str] = {}
        for name, value in scope["headers"]:
            text = value.decode("latin-1")
            self.headers[name] = f"{self.headers[name]},{text}" if name in self.headers else text
        self.global_id = trail.global_request_id(self.headers.get(b"x-openstack-request-id"))
        scheme = self.headers.get(b"x-forwarded-proto", scope.get("scheme", "http"))
        server = scope.get("server") or ("localhost",)
        host = self.headers.get(b"host") or ":".join(str(part) for part in server)
        self.base = prefixed(link_prefix, f"{scheme}://{host}{root}")

    async def body(self, most: int) -> bytes:
        """All of the body. Raises BodyTooLarge. Spec: API-022."""
        chunks = []
        size = 0
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise InvalidInput("The connection was closed before the whole body had come.")
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > most:
                raise BodyTooLarge(most)
            chunks.append(chunk)
            if not message.get("more_body"):
                return b"".join(chunks)

    async def json(self, most: int) -> Any:
        """The decoded body, None for an empty one. Spec: API-020, API-021."""
        content_type = self.headers.get(b"content-type", "").partition(";")[0].strip().lower()
        if content_type not in JSON_TYPES:
            raise UnsupportedMediaType("Unsupported Content-Type")
        raw = await self.body(most)
        if not raw.strip():
            return None
        try:
            return _decode(raw)
        except (msgspec.DecodeError, RecursionError, ValueError) as error:
            raise InvalidInput("Malformed request body") from error


class Application:
    """Serves declared routes.

    Args:
        routes: all of them. cloud: what handlers work with. policy: judges the rules.
        documents: the version documents. identity_url: told to callers without a token.
    """

    def __init__(self, routes: Sequence[Route], *, cloud: Cloud, policy: Policy, documents: Documents,
                 identity_url: str) -> None:
        self.routes = tuple(routes)
        self._router = Router(routes)
        self._cloud = cloud
        self._policy = policy
        self._documents = documents
        self._descriptions = openapi.Descriptions(routes)
        self._challenge = f'Keystone uri="{identity_url}"'.encode("latin-1")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive, self._cloud.options.compute_link_prefix)
        segments = request.path[1:].split("/")
        if segments[0] in ("v2.1", "v2"):
            status, headers, body = await self._versioned(request, segments[0], segments[1:])
        elif request.path == "/":
            status, headers, body = _document(self._documents.root(request.base), request)
        else:
            status, content = self._documents.choices(request.base, request.path)
            headers, body = [], _encode(content)
        if body:
            headers.append((b"content-type", b"application/json"))
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _versioned(
        self, request: Request, root: str, segments: list[str]
    ) -> tuple[int, Headers, bytes]:
        request_id = f"req-{uuid.uuid4()}"
        headers: Headers = [
            (b"x-openstack-request-id", request_id.encode()), (b"x-compute-request-id", request_id.encode())
        ]
        with trail.serving(request_id, request.global_id):
            return await self._checked(request, request_id, root, segments, headers)

    async def _checked(
        self, request: Request, request_id: str, root: str, segments: list[str], headers: Headers
    ) -> tuple[int, Headers, bytes]:
        compatible = root == "v2"
        try:
            version: int | KilonovaError = microversions.FIRST if compatible else _negotiate(request)
        except KilonovaError as error:
            version = error
        try:
            return await self._answer(request, request_id, root, segments, version, headers)
        except UnknownPath as error:
            body = {"message": error.message, "code": "404 Not Found", "title": "Not Found"}
            return 404, headers, _encode(body)
        except KilonovaError as error:
            status, body_, more = error.status, fault(error.status, str(error)), []
            if isinstance(error, Unauthorized):
                more = [(b"www-authenticate", self._challenge)]
                body_ = _encode({"error": {"code": 401, "title": "Unauthorized", "message": error.message}})
            return status, headers + more + _version_headers(version, compatible), body_
        except Exception as error:
            log.exception("request failed", path=request.path, method=request.method)
            text = f"The service failed on this request: {type(error).__name__}."
            return 500, headers + _version_headers(version, compatible), fault(500, text)

    async def _answer(
        self, request: Request, request_id: str, root: str, segments: list[str],
        version: int | KilonovaError, headers: Headers,
    ) -> tuple[int, Headers, bytes]:
        if segments in ([], [""]):
            status, _, body = _document(self._documents.version(request.base, root), request)
            return status, headers + _version_headers(_settled(version), root == "v2"), body
        if segments == [openapi.NAME] and request.method == "GET" and root != "v2":
            body = self._descriptions.answer(request.query, f"{request.base}/{root}")
            return 200, headers + _version_headers(_settled(version), compatible=False), body
        context = await self._authenticate(request, request_id)
        project = ""
        if not self._router.knows(segments[0]):
            project, segments = segments[0], segments[1:]
        if project and segments == [""]:
            _check_project(project, context)
            status, _, body = _document(self._documents.version(request.base, root), request)
            return status, headers + _version_headers(_settled(version), root == "v2"), body
        found = self._router.find(request.method, segments)
        if found is None:
            raise UnknownPath("The resource could not be found.")
        number = _settled(version)
        if project:
            _check_project(project, context)
        call_path = found[1]
        reading = Reading(number, lenient=root == "v2")
        route, content = await self._route(found[0], request, reading)
        tracing.present().rename(f"{route.method} {route.path} {route.action or ''}".rstrip())
        if route.retired:
            await route.handler(None)  # type: ignore[arg-type]
        call = Call(
            version=number, context=context, cloud=self._cloud, policy=self._policy,
            links=self._links(request, root, project), path=call_path,
            query=_read_query(route, request, reading), body=content, compatible=root == "v2",
        )
        answer = await self._handle(route, call)
        headers += _version_headers(number, root == "v2")
        headers += [(name.lower().encode(), value.encode()) for name, value in answer.headers]
        body = b"" if answer.content is None else _encode(answer.content)
        return answer.status or route.status, headers, body

    async def _route(self, endpoint: Endpoint, request: Request, reading: Reading) -> tuple[Route, Any]:
        """The route that answers, and the normalised body."""
        if endpoint.actions:
            return await self._action(endpoint, request, reading)
        route = in_range(endpoint.plain, reading.version)
        if route is None:
            raise NotFound("The resource could not be found.")
        if route.retired or route.body is None or request.method not in WITH_BODY:
            return route, None
        content = await request.json(self._cloud.options.max_request_body_size)
        return route, read_body(route.body, content, reading)

    async def _action(self, endpoint: Endpoint, request: Request, reading: Reading) -> tuple[Route, Any]:
        """Spec: API-023."""
        content = await request.json(self._cloud.options.max_request_body_size)
        if not isinstance(content, dict) or len(content) != 1:
            raise InvalidInput("Malformed request body")
        (name,) = content
        routes = endpoint.actions.get(name)
        if routes is None:
            raise InvalidInput(f"There is no such action: {name[:255]}")
        route = in_range(routes, reading.version)
        if route is None:
            raise NotFound("The resource could not be found.")
        if route.retired or route.body is None:
            return route, content
        return route, read_body(route.body, content, reading)

    async def _handle(self, route: Route, call: Call) -> Answer:
        if route.look_up is not None:
            await route.look_up(call)
        if route.rule is not None:
            call.require(route.rule)
        found = await route.handler(call)
        return found if isinstance(found, Answer) else Answer(found)

    async def _authenticate(self, request: Request, request_id: str) -> RequestContext:
        secret, vouching = request.headers.get(b"x-auth-token", ""), request.headers.get(b"x-service-token", "")
        asked = ServiceRequest(service="compute", method=request.method, path=request.path)
        token = await authenticate(self._cloud.identity, secret, vouching, asked)
        roles = with_implied(token.roles)
        context = RequestContext(
            request_id=request_id,
            user_id=token.user_id,
            user_name=token.user_name,
            user_domain_id=token.user_domain_id,
            project_id=token.project_id,
            project_name=token.project_name or "",
            project_domain_id=token.project_domain_id or "default",
            roles=roles,
            system=token.system,
            token=secret,
            global_request_id=request.global_id,
        )
        return msgspec.structs.replace(context, is_admin=self._policy.is_admin(context))

    def _links(self, request: Request, root: str, project: str) -> Links:
        images = prefixed(self._cloud.options.glance_link_prefix, request.base)
        return Links(request.base, root, f"/{project}" if project else "", images)


def _negotiate(request: Request) -> int:
    openstack = request.headers.get(b"openstack-api-version")
    return microversions.negotiate(openstack, request.headers.get(b"x-openstack-nova-api-version"))


def _settled(version: int | KilonovaError) -> int:
    if isinstance(version, KilonovaError):
        raise version
    return version


def _version_headers(version: int | KilonovaError, compatible: bool) -> Headers:
    """Spec: API-013 to API-015, API-007, API-012."""
    if compatible or (isinstance(version, KilonovaError) and not isinstance(version, NotAcceptable)):
        return []
    text = (microversions.text(version) if isinstance(version, int) else version.version).encode("latin-1")
    return [
        (b"openstack-api-version", b"compute " + text), (b"x-openstack-nova-api-version", text),
        (b"vary", b"OpenStack-API-Version"), (b"vary", b"X-OpenStack-Nova-API-Version"),
    ]


def _check_project(project: str, context: RequestContext) -> None:
    """Spec: API-006."""
    if not PROJECT_ID.fullmatch(project) or project != context.project_id:
        raise InvalidInput(
            f"Malformed request URL: its project_id '{project}' is not the token's, '{context.project_id}'"
        )


def _read_query(route: Route, request: Request, reading: Reading) -> QueryValues:
    return route.reading_query().read(request.query, reading)


def _document(found: tuple[int, Any], request: Request) -> tuple[int, Headers, bytes]:
    if request.method != "GET":
        body = {"message": "The resource could not be found.", "code": "404 Not Found", "title": "Not Found"}
        return 404, [], _encode(body)
    return found[0], [], _encode(found[1])
