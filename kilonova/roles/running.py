"""What a running installation tells of itself, and the directory that it alone may use."""

from __future__ import annotations

import fcntl
import os
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from kilonova.config import Config
from kilonova.domain.errors import KilonovaError
from kilonova.roles import credentials


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """A running installation, as `kilonova up --json` prints it and `state.json` keeps it."""

    auth_url: str
    compute_url: str
    image_url: str
    network_url: str
    placement_url: str
    control_url: str
    clouds_yaml: str
    openrc: str
    cloud: str
    data_dir: str
    driver: str
    pids: dict[str, int]


def take_directory(directory: Path, stack: AsyncExitStack) -> None:
    """Only one process may use a data directory; the stack lets it go.

    Raises:
        KilonovaError: another one has it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o711)  # guests run as another user and must reach their disks
    lock = (directory / "kilonova.pid").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise KilonovaError(
            f"Another kilonova already runs on {directory}.",
            hint="`kilonova status` shows it; use another --data-dir for a second one",
        ) from error
    stack.callback(lock.close)
    lock.truncate(0)
    lock.write(f"{os.getpid()}\n")
    lock.flush()


def public_url(config: Config) -> str:
    """Where clients reach the APIs."""
    return config.api.public_url or f"http://{config.api.listen}:{config.api.port}"


def announce(config: Config, made: credentials.Installation, stack: AsyncExitStack) -> Running:
    """Write down where everything is, for clients and commands, until the stack is closed."""
    directory, url = config.directory, public_url(config)
    clouds, openrc = credentials.client_files(directory, made, url)
    running = Running(
        auth_url=f"{url}/identity/v3", compute_url=f"{url}/compute/v2.1", image_url=f"{url}/image",
        network_url=f"{url}/network", placement_url=f"{url}/placement", control_url=f"{url}/control",
        clouds_yaml=str(clouds), openrc=str(openrc), cloud=credentials.CLOUD, data_dir=str(directory),
        driver=config.agent.driver, pids={"kilonova": os.getpid()},
    )
    state = directory / "state.json"
    credentials.write_private(state, msgspec.json.encode(running).decode())
    stack.callback(state.unlink, missing_ok=True)
    return running
