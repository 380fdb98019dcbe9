"""`kilonova down`: stop the control plane; with --purge, remove the whole installation."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from kilonova.cli.installation import DataDir, configuration, directory, is_served
from kilonova.cli.progress import busy
from kilonova.domain.errors import KilonovaError


def down(
    data_dir: DataDir = None,
    wait: Annotated[float, typer.Option("--wait", help="Seconds to wait for the end.")] = 30.0,
    purge: Annotated[
        bool, typer.Option("--purge", help="Then remove its servers, network devices and all of its data.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="With --purge: do not ask.")] = False,
) -> None:
    """Stop the control plane of this machine. Guests keep running, with their volumes, unless --purge removes them."""
    base = directory(data_dir)
    if purge:
        _confirm(base, yes=yes)
    _stop(base, wait)
    if purge:
        _purge(data_dir)


def _confirm(base: Path, *, yes: bool) -> None:
    """Raises KilonovaError: there is nothing to remove, or nobody has agreed."""
    if not (base / "installation.json").exists():
        raise KilonovaError(f"{base} holds no installation.", hint="name another --data-dir")
    if yes:
        return
    if not sys.stdin.isatty():
        raise KilonovaError(f"This removes all servers and data of {base}.", hint="repeat it with --yes")
    if not typer.confirm(f"Remove all servers, images, networks and data of {base}?"):
        raise KilonovaError("Nothing was removed.")


def _stop(base: Path, wait: float) -> None:
    if not is_served(base):
        print(f"The installation in {base} does not run.")
        return
    pid = _process(base)
    os.kill(pid, signal.SIGTERM)
    give_up = time.monotonic() + wait
    with busy("stop"):
        while is_served(base):
            if time.monotonic() > give_up:
                raise KilonovaError(f"Process {pid} has not stopped within {wait:.0f} s.", hint="its log tells why")
            time.sleep(0.05)
    print("Kilonova has stopped.")


def _process(base: Path) -> int:
    """Who serves the directory: the number is in the lock file, written by whoever holds the lock."""
    text = (base / "kilonova.pid").read_text().strip()
    if not text.isdigit():
        raise KilonovaError(f"The process that serves {base} is not known.", hint=f"`fuser {base}/lock` finds it")
    return int(text)


def _purge(data_dir: Path | None) -> None:
    import asyncio

    from kilonova.cli.startup import StartupLines
    from kilonova.roles.purge import purge

    config = configuration(data_dir)
    left = asyncio.run(purge(config, StartupLines(sys.stderr, quiet=False).progress))
    print(f"{config.directory} is removed." if not left else f"Removed; left in {config.directory}: {', '.join(left)}.")
    for which, url in (("api", config.database.api), ("cell", config.database.cell)):
        if url:
            print(f"The {which} database is kept: it is not in the data directory.")
