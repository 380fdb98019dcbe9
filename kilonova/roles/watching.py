"""The page of metrics of a process, on an address of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from time import perf_counter

import structlog
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from kilonova.config import Config
from kilonova.domain.errors import KilonovaError
from kilonova.metrics.measures import Metrics
from kilonova.metrics.readings import Readings
from kilonova.roles.assembly import Ground
from kilonova.roles.web import WebServer

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


class Timed:
    """Times the requests to an application. service: its name among the labels."""

    def __init__(self, application: ASGIApp, service: str, metrics: Metrics) -> None:
        self._application = application
        self._service = service
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        began, status = perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._application(scope, receive, watched)
        finally:
            self._metrics.answered(self._service, scope["method"], status, perf_counter() - began)
