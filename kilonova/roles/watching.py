"""The page of metrics of a process, on an address of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import AsyncExitStack
from time import perf_counter
from typing import Any

import structlog
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kilonova.config import Config
from kilonova.domain import tracing
from kilonova.domain.errors import InvalidInput, KilonovaError
from kilonova.metrics.measures import Metrics
from kilonova.metrics.readings import Readings
from kilonova.roles.assembly import Ground, own_host
from kilonova.roles.web import WebServer

REQUEST_ID = b"x-openstack-request-id"

log = structlog.get_logger(__name__)


class MetricsPage:
    """The application: `/metrics`. refresh: reads what is not counted as it happens."""

    def __init__(self, metrics: Metrics, refresh: Callable[[], Awaitable[None]] | None) -> None:
        self._metrics = metrics
        self._refresh = refresh

    async def __call__(self, scope: Scope, _receive: Receive, send: Send) -> None:
        found = scope["type"] == "http" and scope["path"] == "/metrics"
        if found and self._refresh is not None:
            try:
                await self._refresh()
            except KilonovaError as error:  # what this process counts itself is told all the same
                log.warning("metrics of the databases not read", error=str(error))
        body = self._metrics.page() if found else b"see /metrics\n"
        headers = [(b"content-type", CONTENT_TYPE_LATEST.encode()), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200 if found else 404, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def serve(config: Config, stack: AsyncExitStack, metrics: Metrics, ground: Ground | None) -> None:
    """Serve the metrics of this process, if an operator wants them; the stack stops it.

    Args:
        ground: None for a process that reaches no database of the cloud.
    """
    options = config.metrics
    if not options.port:
        return
    refresh = None
    if ground is not None:
        refresh = Readings(
            metrics, ground.api, ground.cell, config.cell.name, ground.clock,
            down_time=config.scheduler.service_down_time,
        ).refresh
    web = WebServer(MetricsPage(metrics, refresh), options.listen, options.port)
    web.open()
    stack.push_async_callback(web.close)
    await web.start()


def trace(config: Config, stack: AsyncExitStack, role: str) -> None:
    """Send the traces of this process, if an operator wants them; the stack stops it.

    Raises:
        InvalidInput: the packages are missing.
    """
    if not config.tracing.endpoint:
        return
    try:
        from kilonova.roles import traces
    except ModuleNotFoundError as error:
        raise InvalidInput(
            f"Traces need a package that is not installed ({error.name}).",
            hint="install kilonova with the extra `tracing`, or leave tracing.endpoint empty",
        ) from error
    traces.start(config.tracing.endpoint, role, own_host(config), stack)


class Timed:
    """Times and traces the requests to an application. service: its name among the labels."""

    def __init__(self, application: ASGIApp, service: str, metrics: Metrics) -> None:
        self._application = application
        self._service = service
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        began, status, method = perf_counter(), 500, scope["method"]

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                span.note(http__response__status_code=status, kilonova__request_id=_header(message, REQUEST_ID))
                if status >= 500:
                    span.fail("")
            await send(message)

        with tracing.serve(
            f"{method} {self._service}", _header(scope, b"traceparent"), http__request__method=method,
            url__path=scope["path"], kilonova__service=self._service,
        ) as span:
            try:
                await self._application(scope, receive, watched)
            finally:
                self._metrics.answered(self._service, method, status, perf_counter() - began)


def _header(message: MutableMapping[str, Any], name: bytes) -> str:
    """Of a request or an answer, "" if it has none of that name."""
    value: bytes = next((value for key, value in message.get("headers", ()) if key == name), b"")
    return value.decode("latin-1")
