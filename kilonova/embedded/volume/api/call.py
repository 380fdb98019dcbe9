"""One call: its version, who may make it, its body, and how errors look.

A group of calls declares each as a method and a path with a handler. What holds for every call (negotiation of the
version, the project in the path, roles, error bodies) is done here once.

Spec: EMI-06, EMI-22, EMI-27, EMI-28.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from kilonova.domain.context import RequestContext
from kilonova.domain.errors import Conflict, Forbidden, InvalidInput, KilonovaError, NotFound
from kilonova.embedded.http import caller, empty_response, is_vouched_for, json_object, json_response, root_url
from kilonova.embedded.volume.service import EmbeddedVolumes
from kilonova.services.identity import SERVICE_ROLE

OLDEST, NEWEST = "3.0", 71
"""The first version, and N of the newest, 3.N."""
HEADER = "OpenStack-API-Version"
_VERSION = re.compile(r"volume\s+(latest|[0-9]+\.[0-9]+)\Z")

KINDS = {
    400: "badRequest", 401: "unauthorized", 403: "forbidden", 404: "itemNotFound", 405: "badMethod",
    409: "conflictingRequest", 413: "overLimit", 415: "badMediaType", 501: "notImplemented",
    503: "serviceUnavailable",
}

T = TypeVar("T")


class NotAcceptable(KilonovaError):
    """A version that is not offered."""

    status = 406


class Access(Enum):
    """Who may make a call."""

    READER = "reader"
    MEMBER = "member"
    ADMIN = "admin"
    SERVICE = "service"
    """Services, and administrators."""


WRITERS = frozenset({"admin", "manager", "member", SERVICE_ROLE})


@dataclass(frozen=True)
class Call:
    """A request on its way through a handler.

    Args:
        version: N of version 3.N.
    """

    request: Request
    version: int
    volumes: EmbeddedVolumes

    @property
    def who(self) -> RequestContext:
        return caller(self.request)

    @property
    def by_service(self) -> bool:
        """Whether a service asks, or vouches for who does. Spec: EMV-22, EMV-23."""
        return is_vouched_for(self.request) or SERVICE_ROLE in self.who.roles

    def now(self) -> float:
        return self.volumes.clock.now()

    def path(self, name: str = "id") -> str:
        """A parameter of the path."""
        return str(self.request.path_params[name])

    def asks(self, name: str) -> bool:
        """Whether a parameter of the query is set and true."""
        value = self.request.query_params.get(name)
        return value is not None and (value == "" or flag(name, value))

    async def body(self, key: str, type_: type[T]) -> T:
        """The object in the body under a key, checked. Raises InvalidInput."""
        return check(type_, (await json_object(self.request)).get(key), key)

    async def read(self, unit: Callable[[sa.Connection], T]) -> T:
        return await self.volumes.database.read(unit)

    async def write(self, unit: Callable[[sa.Connection], T]) -> T:
        return await self.volumes.database.write(unit)

    def href(self, path: str) -> str:
        """The absolute URL of a resource, with the project if the caller's path has it."""
        return f"{root_url(self.request)}/v3{self.request.path_params['project']}{path}"

    def links(self, path: str) -> list[dict[str, str]]:
        bookmark = f"{root_url(self.request)}{self.request.path_params['project']}{path}"
        return [{"rel": "self", "href": self.href(path)}, {"rel": "bookmark", "href": bookmark}]


Handler = Callable[[Call], Awaitable[Response]]


@dataclass(frozen=True)
class Method:
    """One call of the API.

    Args:
        path: below `/v3` and the project. since: N of the version 3.N that brought it; before it is not found.
    """

    verb: str
    path: str
    handler: Handler
    access: Access = Access.READER
    since: int = 0


class _InPath(StringConvertor):
    """A project in the path, with the slash before it, or nothing. Spec: EMI-11."""

    regex = r"(?:/(?:[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}))?"


register_url_convertor("project", _InPath())


def routes(methods: list[Method], volumes: EmbeddedVolumes) -> list[BaseRoute]:
    """What serves these calls."""
    return [Route(f"/v3{{project:project}}{one.path}", _endpoint(one, volumes), methods=[one.verb])
            for one in methods]


def _endpoint(method: Method, volumes: EmbeddedVolumes) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        version: int | None = None
        try:
            version = negotiate(request.headers.get(HEADER))
            _check_caller(request, method.access)
            if version < method.since:
                raise NotFound("The resource could not be found.")
            response = await method.handler(Call(request, version, volumes))
        except sa.exc.IntegrityError:
            response = refuse(Conflict("Another request changed the same objects.", hint="read them and try again"))
        except KilonovaError as error:
            response = refuse(error)
        response.headers["Vary"] = HEADER
        response.headers[HEADER] = f"volume 3.{version}" if version is not None else f"volume {OLDEST}"
        return response

    return endpoint


def _check_caller(request: Request, access: Access) -> None:
    """Raises InvalidInput: it speaks of another project. Forbidden: its roles do not allow the call."""
    who, project = caller(request), request.path_params["project"].removeprefix("/")
    if project and project != who.project_id:
        raise InvalidInput("Malformed request url")
    check_access(who, access)


def check_access(who: RequestContext, access: Access) -> None:
    """Raises Forbidden."""
    allowed = {
        Access.READER: True, Access.MEMBER: bool(WRITERS.intersection(who.roles)), Access.ADMIN: who.is_admin,
        Access.SERVICE: who.is_admin or SERVICE_ROLE in who.roles,
    }
    if not allowed[access]:
        raise Forbidden(f"Policy doesn't allow this to be performed: role {access.value} is needed.")


def negotiate(header: str | None) -> int:
    """N of the version 3.N that the caller asks for.

    Raises:
        InvalidInput: not a version. NotAcceptable: one that is not offered.
    """
    asked = [part.strip() for part in (header or "").split(",") if part.strip().lower().startswith("volume")]
    if not asked:
        return 0
    match = _VERSION.match(asked[-1])
    if match is None:
        raise InvalidInput(f"API Version String {asked[-1]} is of invalid format. Must be of format MajorNum.MinorNum.")
    if match[1] == "latest":
        return NEWEST
    major, minor = map(int, match[1].split("."))
    if major != 3 or minor > NEWEST:
        raise NotAcceptable(
            f"Version {match[1]} is not supported by the API. Minimum is {OLDEST} and maximum is 3.{NEWEST}."
        )
    return minor


def error_body(status: int, title: str, message: str) -> dict[str, Any]:
    return {KINDS.get(status, "computeFault"): {"code": status, "message": message}}


def refuse(error: KilonovaError) -> Response:
    return json_response(error_body(error.status, "", str(error)), error.status)


def accepted() -> Response:
    """What was asked for is being done."""
    return empty_response(202)


# --- bodies --------------------------------------------------------------------------------------


def check(type_: type[T], value: object, name: str) -> T:
    """A value of a body as what it must be. Raises InvalidInput. Spec: EMI-13."""
    if value is None:
        raise InvalidInput(f"Missing required element '{name}' in request body.")
    try:
        return msgspec.convert(value, type=type_)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"Invalid input for {name}: {error}.") from error


_TRUE = frozenset({"true", "1", "on", "yes", "t", "y"})
_FALSE = frozenset({"false", "0", "off", "no", "f", "n"})

Flag = bool | str
Whole = int | str


def flag(name: str, value: Flag) -> bool:
    """A truth value, which clients also send as text. Raises InvalidInput."""
    text = str(value).lower()
    if text not in _TRUE | _FALSE:
        raise InvalidInput(f"Invalid input for {name}: {value!r} is neither true nor false.")
    return text in _TRUE


LARGEST = 2**31 - 1


def whole(name: str, value: Whole, least: int = 0) -> int:
    """A number, which clients also send as text. Raises InvalidInput: it is none, or smaller than `least`."""
    text = str(value)
    if not re.fullmatch(r"-?[0-9]{1,10}", text) or isinstance(value, bool) or not least <= int(text) <= LARGEST:
        raise InvalidInput(f"Invalid input for {name}: {value!r} is not a whole number of at least {least}.")
    return int(text)


def text(name: str, value: str | None, most: int = 255, least: int = 0) -> str | None:
    """A name or description, without white space around it. Raises InvalidInput: it is too long or short."""
    if value is None:
        return None
    value = value.strip()
    if not least <= len(value) <= most or "\0" in value:
        raise InvalidInput(f"Invalid input for {name}: it must have {least} to {most} characters.")
    return value


def texts(name: str, value: dict[str, str]) -> dict[str, str]:
    """Metadata. Raises InvalidInput: a key or value is too long."""
    for key, one in value.items():
        if not 1 <= len(key) <= 255 or len(one) > 255 or "\0" in key + one:
            raise InvalidInput(f"Invalid input for {name}: a key has 1 to 255 characters, a value at most 255.")
    return value
