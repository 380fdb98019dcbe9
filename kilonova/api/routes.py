"""Routes, each declared once with all that the edge and the API description need, and finding one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import msgspec

from kilonova.api.call import Answer, Call
from kilonova.api.faults import Gone
from kilonova.api.microversions import FIRST, LATEST
from kilonova.api.policy import Rule
from kilonova.api.query import Query
from kilonova.api.schema import Schema

Handler = Callable[[Call], Awaitable[Any]]
LookUp = Callable[[Call], Awaitable[None]]

ANY_QUERY = Query(strict_since=None)
STRICT_QUERY = Query()


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One route in one range of microversions.

    Args:
        path: after the version, `{name}` for a variable segment, e.g. `/servers/{server_id}/tags`.
        action: the key of the body, for the actions of an object; None for plain routes.
        rule: checked by the edge after the look-up; None: the handler checks, or nobody does.
        rules: further rules the handler checks.
        look_up: finds the object the route is about before its rule is checked, sets `call.server`.
        body: schema of the body (of the whole body, also for actions); None: a body is not read.
        query: None means: unknown parameters are ignored before 2.102 on GET, always on others.
        status: success code. other_status: another one that the handler may choose, or None.
        answer: schema of what a success answers; None: nothing, or not described.
        errors: codes of refusals beyond those that every route of its kind may give.
        retired: the route answers 410 at every microversion. Spec: API-018.
    """

    method: str
    path: str
    handler: Handler
    action: str | None = None
    rule: Rule | None = None
    rules: tuple[Rule, ...] = ()
    look_up: LookUp | None = None
    body: Schema | None = None
    query: Query | None = None
    since: int = FIRST
    until: int = LATEST
    status: int = 200
    other_status: int | None = None
    answer: Schema | None = None
    errors: tuple[int, ...] = ()
    retired: bool = False

    def reading_query(self) -> Query:
        return self.query or (STRICT_QUERY if self.method == "GET" else ANY_QUERY)


async def _gone(call: Call) -> Answer:
    raise Gone("This API is no longer available.")


def retired(method: str, path: str, action: str | None = None) -> Route:
    """A route that answers 410. Spec: API-018."""
    return Route(method=method, path=path, action=action, handler=_gone, retired=True)


def also_at(routes: Iterable[Route], old: str, new: str, *, until: int) -> list[Route]:
    """The same routes under another path, up to a microversion."""
    return [
        msgspec.structs.replace(route, path=route.path.replace(old, new, 1), until=min(route.until, until))
        for route in routes
    ]


class Endpoint(msgspec.Struct):
    """All routes of one method and path: plain ones by range, or actions by name and range."""

    plain: list[Route] = []
    actions: dict[str, list[Route]] = {}

    def add(self, route: Route) -> None:
        if route.action is None:
            self.plain.append(route)
        else:
            self.actions.setdefault(route.action, []).append(route)


def in_range(routes: list[Route], version: int) -> Route | None:
    """The one that answers in this microversion."""
    for route in routes:
        if route.retired or route.since <= version <= route.until:
            return route
    return None


class _Node:
    __slots__ = ("endpoints", "literal", "variable")

    def __init__(self) -> None:
        self.literal: dict[str, _Node] = {}
        self.variable: _Node | None = None
        self.endpoints: dict[str, tuple[Endpoint, tuple[str, ...]]] = {}


class Router:
    """Finds the endpoint of a method and path: a walk over a tree of segments, literal ones first."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._root = _Node()
        for route in routes:
            self._add(route)

    def _add(self, route: Route) -> None:
        node = self._root
        names = []
        for segment in route.path.strip("/").split("/"):
            if segment.startswith("{"):
                names.append(segment[1:-1])
                node.variable = node.variable or _Node()
                node = node.variable
            else:
                node = node.literal.setdefault(segment, _Node())
        endpoint, _ = node.endpoints.setdefault(route.method, (Endpoint(), tuple(names)))
        endpoint.add(route)

    def knows(self, segment: str) -> bool:
        """Whether some route begins with this segment."""
        return segment in self._root.literal

    def find(self, method: str, segments: list[str]) -> tuple[Endpoint, dict[str, str]] | None:
        """The endpoint and the values of its variable segments. Spec: API-008."""
        return _walk(self._root, method, segments, 0, ())


def _walk(
    node: _Node, method: str, segments: list[str], at: int, values: tuple[str, ...]
) -> tuple[Endpoint, dict[str, str]] | None:
    if at == len(segments):
        found = node.endpoints.get(method)
        return (found[0], dict(zip(found[1], values, strict=True))) if found else None
    segment = segments[at]
    if not segment:
        return None
    child = node.literal.get(segment)
    if child is not None:
        hit = _walk(child, method, segments, at + 1, values)
        if hit is not None:
            return hit
    if node.variable is not None:
        return _walk(node.variable, method, segments, at + 1, (*values, segment))
    return None
