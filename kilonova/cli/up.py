"""`kilonova up`: one-machine mode in the foreground or detached."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kilonova.cli.installation import DataDir, configuration
from kilonova.domain.errors import KilonovaError

if TYPE_CHECKING:
    from kilonova.cli.startup import Announcer
    from kilonova.config import Config

INTERRUPTED = 130
"""The exit status of a command that Ctrl-C ended."""

ONE_SIGNAL = 0.5
"""Seconds in which signals count as one: some programs send them to the process and to its group."""


def up(
    detach: Annotated[bool, typer.Option("--detach", help="Return once everything is up.")] = False,
    data_dir: DataDir = None,
    driver: Annotated[str | None, typer.Option("--driver", help="libvirt or fake.")] = None,
    hosts: Annotated[int | None, typer.Option("--hosts", help="Simulated hosts, with --driver fake.")] = None,
    listen: Annotated[str | None, typer.Option("--listen", help="Address to listen on.")] = None,
    port_base: Annotated[int | None, typer.Option("--port-base", help="First port to use.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object when up.")] = False,
) -> None:
    """Bring up a cloud on this machine. Ctrl-C stops the control plane; guests keep running."""
    from kilonova.cli.startup import Console

    config = configuration(data_dir, {
        "agent.driver": driver, "agent.hosts": hosts, "api.listen": listen, "api.port": port_base,
    })
    console = Console(json=json)
    if detach:
        _detached(config, console)
    else:
        _serve(config, console)


def _serve(config: Config, announcer: Announcer) -> None:
    import uvloop

    from kilonova.cli.logs import log_to
    from kilonova.roles import allocator

    allocator.give_back_large_blocks()
    log_to(sys.stderr, config.log_level)
    uvloop.run(_until_stopped(config, announcer))


async def _until_stopped(config: Config, announcer: Announcer) -> None:
    from kilonova.roles import collector

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    asked_at = 0.0

    def interrupted() -> None:
        nonlocal asked_at
        if not stop.is_set():
            asked_at = loop.time()
            stop.set()
        elif loop.time() - asked_at > ONE_SIGNAL:  # at once: nothing is lost that the journals do not have
            os._exit(INTERRUPTED)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupted)
    with collector.resting():
        from kilonova.roles.one_machine import OneMachine

        machine = OneMachine(config, announcer.progress)
        starting = asyncio.create_task(machine.start())
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        announcer.progress("stopping", "before everything was up")
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        raise KilonovaError("Interrupted before everything was up.")
    try:
        announcer.running(await starting)
        await stopping
    finally:
        stopping.cancel()
    announcer.progress("stopping", "guests keep running")
    await machine.close()


def _detached(config: Config, console: Announcer) -> None:
    """Fork: the child serves in a session of its own, the parent tells what the child announces, and leaves."""
    from kilonova.cli.startup import Pipe, relay

    directory = config.directory
    directory.mkdir(parents=True, exist_ok=True)
    log = directory / "kilonova.log"
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os._exit(_child(config, log, Pipe(writer)))
    os.close(writer)
    try:
        with os.fdopen(reader, "rb") as announced:
            relay(announced, console, log)
    except KeyboardInterrupt:
        os.kill(child, signal.SIGTERM)
        os.waitpid(child, 0)
        raise SystemExit(INTERRUPTED) from None


def _child(config: Config, log: Path, pipe: Announcer) -> int:
    """Serve until the end; returns the exit status."""
    import traceback

    os.setsid()
    null, output = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor, stream in ((null, 0), (output, 1), (output, 2)):
        os.dup2(descriptor, stream)
    status = 1
    try:
        _serve(config, pipe)
        status = 0
    except KilonovaError as error:
        print(f"kilonova: {error}", file=sys.stderr)
        pipe.failed(error)
    except BaseException:  # noqa: BLE001 - the child's last words go to its log, whatever ended it
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    return status
