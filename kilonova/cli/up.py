"""`kilonova up` and `kilonova down`: one-machine mode in the foreground or detached."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Annotated

import typer

from kilonova.config import Config, load
from kilonova.domain.errors import KilonovaError

DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Where everything is kept.")]


def configuration(data_dir: Path | None, overrides: dict[str, object] | None = None) -> Config:
    """The configuration of an installation: its own file, the environment, the command line."""
    base = data_dir or Path(os.environ.get("KILONOVA_DATA_DIR", "/var/lib/kilonova"))
    given = {"data_dir": str(base.absolute())} | {k: v for k, v in (overrides or {}).items() if v is not None}
    return load(base / "kilonova.toml", os.environ, given)


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
    config = configuration(data_dir, {
        "agent.driver": driver, "agent.hosts": hosts, "api.listen": listen, "api.port": port_base,
    })
    if detach:
        _detached(config, json=json)
    else:
        _serve(config, json=json, announce=sys.stdout.fileno())


def _serve(config: Config, *, json: bool, announce: int) -> None:
    import uvloop

    from kilonova.cli.startup import StartupLines, log_to

    lines = StartupLines(sys.stderr, quiet=json)
    log_to(sys.stderr, config.log_level)
    uvloop.run(_until_stopped(config, lines, announce, json=json))


async def _until_stopped(config: Config, lines: object, announce: int, *, json: bool) -> None:
    import msgspec

    from kilonova.cli.startup import StartupLines, summary
    from kilonova.roles.one_machine import OneMachine

    assert isinstance(lines, StartupLines)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    machine = OneMachine(config, lines.progress)
    running = await machine.start()
    lines.done()
    text = msgspec.json.encode(running).decode() + "\n" if json else summary(running)
    os.write(announce, text.encode())
    if announce > 2:
        os.close(announce)
    await stop.wait()
    await machine.close()


def _detached(config: Config, *, json: bool) -> None:
    """Fork: the child serves in a session of its own, the parent prints what it announces and leaves."""
    directory = config.directory
    directory.mkdir(parents=True, exist_ok=True)
    reader, writer = os.pipe()
    log = directory / "kilonova.log"
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.setsid()
        null, output = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(null, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        status = 0
        try:
            _serve(config, json=json, announce=writer)
        except BaseException as error:  # noqa: BLE001 - the child's last words go to its log, whatever ended it
            if not isinstance(error, KilonovaError):
                traceback.print_exc()
            print(f"kilonova: {error}", file=sys.stderr, flush=True)
            status = 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "r") as announced:
        text = announced.read()
    if text:
        sys.stdout.write(text)
        return
    os.waitpid(child, 0)
    tail = log.read_text(errors="replace").strip().splitlines()
    raise KilonovaError(tail[-1].removeprefix("kilonova: ") if tail else "It did not come up.", hint=f"see {log}")


def down(
    data_dir: DataDir = None,
    wait: Annotated[float, typer.Option("--wait", help="Seconds to wait for the end.")] = 20.0,
) -> None:
    """Stop the control plane of this machine. Guests keep running."""
    import msgspec

    from kilonova.roles.one_machine import Running

    state = configuration(data_dir).directory / "state.json"
    if not state.exists():
        print("kilonova is not running.")
        return
    pid = msgspec.json.decode(state.read_bytes(), type=Running).pids["kilonova"]
    try:
        os.kill(pid, signal.SIGTERM)
        give_up = time.monotonic() + wait
        while time.monotonic() < give_up:
            os.kill(pid, 0)
            time.sleep(0.05)
    except ProcessLookupError:
        state.unlink(missing_ok=True)
        print("kilonova has stopped.")
        return
    raise KilonovaError(f"Process {pid} has not stopped within {wait:.0f} s.", hint="its log tells why")
