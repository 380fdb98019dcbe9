"""The control API: its routes and the ASGI application. Every call needs the role admin."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import sqlalchemy as sa
import structlog
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from kilonova.audit.auditor import Auditor
from kilonova.cells.registry import Cells
from kilonova.control.documents import OperationList, OperationView
from kilonova.control.follow import Follower
from kilonova.control.journals import Journals, OneJournal
from kilonova.control.status import StatusReader
from kilonova.control.views import view
from kilonova.domain.clock import Clock
from kilonova.domain.errors import InvalidInput
from kilonova.domain.operation import OperationState
from kilonova.embedded.http import EmbeddedService, json_object, json_response, require_admin
from kilonova.engine import submit
from kilonova.engine.operation import Tx
from kilonova.services.identity import IdentityService

log = structlog.get_logger(__name__)

MOST_LISTED = 1000
KEEP_ALIVE = 10.0
"""Seconds without a change after which a follower is sent a sign of life."""

_encode = msgspec.json.Encoder().encode


class ControlApi:
    """The application, to be mounted at `/control`.

    Args:
        auditor: compares records with the world.
        down_time: seconds of silence after which a host counts as down.
    """

    def __init__(
        self, *, cells: Cells, journals: Journals, identity: IdentityService, identity_url: str, auditor: Auditor,
        clock: Clock, down_time: float,
    ) -> None:
        self._journals = journals
        self._status = StatusReader(cells, journals, clock, down_time)
        self._auditor = auditor
        self._auditing = asyncio.Lock()
        self._clock = clock
        self._closing = asyncio.Event()
        routes = [
            Route("/status", self._show_status), Route("/hosts", self._list_hosts),
            Route("/operations", self._list), Route("/operations/follow", self._follow),
            Route("/operations/{id}", self._show), Route("/audit", self._audit, methods=["GET"]),
            Route("/audit/heal", self._heal, methods=["POST"]),
        ]
        routes += [
            Route(f"/operations/{{id}}/{name}", self._act(name, act), methods=["POST"])
            for name, act in (("cancel", _cancel), ("resume", _resume), ("skip", _skip), ("force", _force))
        ]
        self._service = EmbeddedService(
            "control", routes, identity=identity, error_body=_error_body, public=r"(?!)", identity_url=identity_url
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._service(scope, receive, send)

    async def close(self) -> None:
        """Let followers go, so that a server that waits for its connections can end."""
        self._closing.set()

    async def _show_status(self, request: Request) -> Response:
        require_admin(request)
        return json_response(await self._status.read())

    async def _list_hosts(self, request: Request) -> Response:
        require_admin(request)
        return json_response({"hosts": await self._status.hosts()})

    async def _list(self, request: Request) -> Response:
        """Query: state (may be repeated), subject, limit. Newest first."""
        require_admin(request)
        found = await self._journals.select(
            states=[_state(text) for text in request.query_params.getlist("state")],
            subject=request.query_params.get("subject"), limit=_limit(request.query_params.get("limit")),
        )
        return json_response(OperationList(tuple(view(journal, row) for journal, row in found)))

    async def _show(self, request: Request) -> Response:
        require_admin(request)
        journal, row = await self._journals.find(request.path_params["id"])
        return json_response(view(journal, row, whole=True))

    def _act(self, name: str, act: Action) -> Callable[[Request], Any]:
        async def handler(request: Request) -> Response:
            caller = require_admin(request)
            journal, row = await self._journals.find(request.path_params["id"])
            reason = await _reason(request)
            operation = row.record.id

            def unit(conn: sa.Connection) -> None:
                act(Tx(conn, self._clock.now()), journal, operation, reason or f"asked by {caller.user_name}")

            await journal.database.write(unit)
            log.info("operator acted on operation", action=name, operation=operation, user=caller.user_id)
            journal.wake(operation if name == "cancel" else None)
            return json_response(view(*await self._journals.find(operation), whole=True), 202)

        return handler

    async def _follow(self, request: Request) -> Response:
        """Server-sent events: first the active operations, then every change of any operation."""
        require_admin(request)
        follower = Follower(self._journals, self._clock, self._closing)
        headers = {"Cache-Control": "no-store"}
        return StreamingResponse(self._events(follower), 200, headers, "text/event-stream")

    async def _events(self, follower: Follower) -> AsyncIterator[bytes]:
        for operation in await follower.begin():
            yield _event("operation", operation)
        yield b"event: now\ndata: {}\n\n"
        silent_since = self._clock.monotonic()
        async for changed in follower.changes():
            for operation in changed:
                yield _event("operation", operation)
            now = self._clock.monotonic()
            if changed:
                silent_since = now
            elif now - silent_since > KEEP_ALIVE:
                silent_since = now
                yield b": nothing new\n\n"

    async def _audit(self, request: Request) -> Response:
        require_admin(request)
        async with self._auditing:
            return json_response(await self._auditor.audit())

    async def _heal(self, request: Request) -> Response:
        caller = require_admin(request)
        log.info("operator heals", user=caller.user_id)
        async with self._auditing:
            return json_response(await self._auditor.heal())


Action = Callable[[Tx, OneJournal, str, str], None]


def _cancel(tx: Tx, journal: OneJournal, operation: str, reason: str) -> None:
    submit.cancel(tx, journal.journal, journal.definitions, operation, reason)


def _resume(tx: Tx, journal: OneJournal, operation: str, _reason: str) -> None:
    submit.resume(tx, journal.journal, operation)


def _skip(tx: Tx, journal: OneJournal, operation: str, _reason: str) -> None:
    submit.skip(tx, journal.journal, operation)


def _force(tx: Tx, journal: OneJournal, operation: str, _reason: str) -> None:
    submit.force(tx, journal.journal, journal.definitions, operation)


async def _reason(request: Request) -> str:
    """`reason` in an optional body. Raises InvalidInput."""
    if not await request.body():
        return ""
    reason = (await json_object(request)).get("reason", "")
    if not isinstance(reason, str) or len(reason) > 255:
        raise InvalidInput("reason must be a text of at most 255 characters.")
    return reason


def _state(text: str) -> OperationState:
    try:
        return OperationState(text)
    except ValueError as error:
        states = ", ".join(OperationState)
        raise InvalidInput(f"There is no state {text!r} of operations.", hint=f"there are: {states}") from error


def _limit(text: str | None) -> int:
    if text is None:
        return 100
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= MOST_LISTED):
        raise InvalidInput(f"limit must be a whole number from 1 to {MOST_LISTED}.")
    return int(text)


def _event(name: str, operation: OperationView) -> bytes:
    return b"event: " + name.encode() + b"\ndata: " + _encode(operation) + b"\n\n"


def _error_body(status: int, title: str, message: str) -> dict[str, object]:
    return {"error": {"code": status, "title": title, "message": message}}
