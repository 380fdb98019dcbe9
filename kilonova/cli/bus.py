"""`kilonova bus`: the message bus of a cloud of several processes, and who may use it."""

from __future__ import annotations

from typing import Annotated

import typer

from kilonova.cli.installation import DataDir, configuration, directory
from kilonova.cli.roles import ReadyJson, serve_role

app = typer.Typer(help="The message bus between processes.", no_args_is_help=True)

HostName = Annotated[str, typer.Argument(metavar="HOST", help="Name of the host, as its agent gives it.")]


@app.command("serve")
def serve(
    data_dir: DataDir = None,
    listen: Annotated[str | None, typer.Option("--listen", help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option("--port", help="Port to listen on.")] = None,
    json: ReadyJson = False,
) -> None:
    """Run the message bus."""
    serve_role("bus", configuration(data_dir, {"bus.listen": listen, "bus.port": port}), json=json)


@app.command("add-host")
def add_host(host: HostName, data_dir: DataDir = None) -> None:
    """Make credentials for the agent of a host and print the file that it needs. Earlier ones end."""
    from kilonova.bus import credentials
    from kilonova.bus.server import BusServer
    from kilonova.bus.subjects import host_token

    bus = directory(data_dir) / "bus"
    made = BusServer(bus).issue(host)
    file = bus / f"host.{host_token(host)}.json"
    credentials.store(file, made)
    print(file)


@app.command("remove-host")
def remove_host(host: HostName, data_dir: DataDir = None) -> None:
    """End the credentials of a host; its agent is cut off."""
    from kilonova.bus.server import BusServer
    from kilonova.bus.subjects import host_token

    bus = directory(data_dir) / "bus"
    BusServer(bus).remove_host(host)
    (bus / f"host.{host_token(host)}.json").unlink(missing_ok=True)
