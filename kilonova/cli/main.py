"""The `kilonova` command. Each command imports what it needs when it runs, so that `--help` is quick."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from kilonova.domain.errors import KilonovaError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="A compute service that speaks the OpenStack Compute API.")


def _version(asked: bool) -> None:
    if asked:
        import kilonova

        print(f"kilonova {kilonova.__version__}")
        raise typer.Exit


@app.callback()
def options(
    _show: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """A compute service that speaks the OpenStack Compute API."""


def _register() -> None:
    from kilonova.cli import (
        audit,
        bus,
        configuration,
        database,
        demo,
        doctor,
        down,
        images,
        operations,
        roles,
        status,
        up,
    )

    app.command("up")(up.up)
    app.command("down")(down.down)
    for role in (roles.api, roles.conductor, roles.scheduler, roles.console, roles.agent):
        app.command(role.__name__)(role)
    app.add_typer(bus.app, name="bus")
    app.command("status")(status.status)
    app.add_typer(operations.app, name="ops")
    app.command("audit")(audit.audit)
    app.command("doctor")(doctor.doctor)
    app.command("demo")(demo.demo)
    app.add_typer(configuration.app, name="config")
    app.add_typer(database.app, name="db")
    app.add_typer(images.app, name="image")


def main() -> None:
    """Run a command; errors raised on purpose are told in one line."""
    _register()
    try:
        app()
    except KilonovaError as error:
        print(f"kilonova: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:  # whoever read the output has seen enough
        sys.stderr.close()
        raise SystemExit(1) from None
