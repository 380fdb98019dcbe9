"""The `kilonova` command. Each command imports what it needs when it runs, so that `--help` is quick."""

from __future__ import annotations

import sys

import typer

from kilonova.domain.errors import KilonovaError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="A compute service that speaks the OpenStack Compute API.")


def _register() -> None:
    from kilonova.cli import up

    app.command("up")(up.up)
    app.command("down")(up.down)


def main() -> None:
    """Run a command; errors raised on purpose are told in one line."""
    _register()
    try:
        app()
    except KilonovaError as error:
        print(f"kilonova: {error}", file=sys.stderr)
        raise SystemExit(1) from None
