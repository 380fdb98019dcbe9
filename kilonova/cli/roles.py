"""`kilonova api`, `conductor`, `scheduler`, `console` and `agent`: one role in a process, until it is told to stop."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from kilonova.cli.installation import DataDir, configuration

if TYPE_CHECKING:
    from kilonova.config import Config
    from kilonova.roles.assembly import Progress

    Start = Callable[[Config, AsyncExitStack, Progress], Awaitable[None]]

ReadyJson = Annotated[bool, typer.Option("--json", help="Print one JSON object, instead of `ready`, when it serves.")]


def api(data_dir: DataDir = None, json: ReadyJson = False) -> None:
    """Serve every API and the embedded services."""
    serve_role("api", configuration(data_dir), json=json)


def conductor(data_dir: DataDir = None, json: ReadyJson = False) -> None:
    """Drive the operations of a cell."""
    serve_role("conductor", configuration(data_dir), json=json)


def scheduler(data_dir: DataDir = None, json: ReadyJson = False) -> None:
    """Choose hosts for new servers."""
    serve_role("scheduler", configuration(data_dir), json=json)


def console(data_dir: DataDir = None, json: ReadyJson = False) -> None:
    """Serve the consoles of servers."""
    serve_role("console", configuration(data_dir), json=json)


def agent(
    data_dir: DataDir = None,
    host: Annotated[str | None, typer.Option("--host", help="Name of the host (by default the machine's).")] = None,
    json: ReadyJson = False,
) -> None:
    """Serve a hypervisor host."""
    serve_role("agent", configuration(data_dir, {"agent.host": host}), json=json)


def serve_role(role: str, config: Config, *, json: bool) -> None:
    """Run a role until a signal ends it."""
    import uvloop

    from kilonova.cli.logs import log_to
    from kilonova.roles import allocator

    allocator.give_back_large_blocks()
    log_to(sys.stderr, config.log_level)
    uvloop.run(_until_stopped(role, config, json=json))


async def _until_stopped(role: str, config: Config, *, json: bool) -> None:
    """A signal ends it in good order, also before it is up; what it was doing goes on with the next start."""
    import msgspec
    import structlog

    log = structlog.get_logger("kilonova.roles")
    start: Start = importlib.import_module(f"kilonova.roles.{role}").start
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    stopping = asyncio.create_task(stop.wait())
    async with AsyncExitStack() as stack:
        starting = asyncio.ensure_future(start(config, stack, lambda part, does: log.info(part, does=does)))
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return
        await starting
        ready = {"ready": True, "role": role, "pid": os.getpid()}
        print(msgspec.json.encode(ready).decode() if json else "ready", flush=True)
        await stopping
        log.info("stopping")
