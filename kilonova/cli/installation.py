"""Finding the installation that a command is about: its directory, whether it runs, and how to talk to it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from kilonova.domain.errors import KilonovaError

if TYPE_CHECKING:
    from kilonova.cli.session import Session
    from kilonova.config import Config

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Where everything is kept (by default $KILONOVA_DATA_DIR or /var/lib/kilonova)."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What commands read of `state.json`."""

    auth_url: str
    compute_url: str
    image_url: str
    network_url: str
    control_url: str
    clouds_yaml: str
    cloud: str
    data_dir: str
    driver: str
    pids: dict[str, int]


class _Secrets(msgspec.Struct, frozen=True, kw_only=True):
    """What commands read of `installation.json`."""

    admin_password: str


def directory(data_dir: Path | None) -> Path:
    """The data directory that a command is about."""
    return (data_dir or Path(os.environ.get("KILONOVA_DATA_DIR", "/var/lib/kilonova"))).absolute()


def configuration(data_dir: Path | None, overrides: dict[str, object] | None = None) -> Config:
    """The configuration of an installation: its own file, the environment, the command line."""
    from kilonova.cli import plain_structlog  # noqa: F401 - before the configuration, whose modules write logs
    from kilonova.config import load

    base = directory(data_dir)
    given = {"data_dir": str(base)} | {name: value for name, value in (overrides or {}).items() if value is not None}
    return load(base / "kilonova.toml", os.environ, given)


def is_served(base: Path) -> bool:
    """Whether a process serves the data directory: its lock cannot outlive it. Raises KilonovaError."""
    try:
        descriptor = os.open(base / "kilonova.pid", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except PermissionError as error:
        raise _unreadable(base) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def running_state(base: Path) -> State | None:
    """What runs on a data directory, None if nothing does or it is still coming up. Raises KilonovaError."""
    try:
        if not is_served(base):
            return None
        return msgspec.json.decode((base / "state.json").read_bytes(), type=State)
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise _unreadable(base) from error


def require_running(data_dir: Path | None) -> State:
    """Raises KilonovaError: nothing runs there."""
    base = directory(data_dir)
    state = running_state(base)
    if state is None:
        coming_up = " is still coming up, or going down" if is_served(base) else " does not run"
        raise KilonovaError(
            f"The installation in {base}{coming_up}.",
            hint="start it with `kilonova up --detach`, or name another --data-dir",
        )
    return state


def sign_in(state: State) -> Session:
    """A session of the administrator. Raises KilonovaError."""
    from kilonova.cli.session import Session

    base = Path(state.data_dir)
    try:
        made = msgspec.json.decode((base / "installation.json").read_bytes(), type=_Secrets)
    except PermissionError as error:
        raise _unreadable(base) from error
    return Session(state.auth_url, made.admin_password)


def _unreadable(base: Path) -> KilonovaError:
    return KilonovaError(f"{base} cannot be read.", hint="run this as the user who ran `kilonova up`, mostly root")
