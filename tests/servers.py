"""Real servers that tests start for themselves, on private paths, and stop again.

`postgres_server()` is a context manager; the fixtures at the end start one server for the test session
(`postgres`) and give each test a database of its own (`postgres_url`).
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

START_LIMIT = 60.0
"""Seconds a server may take to answer."""


class ServerNotStarted(Exception):
    """A server that a test needs could not be started; the message says why."""


@dataclass(frozen=True)
class PostgresServer:
    """A running PostgreSQL cluster, reached through its unix socket.

    Args:
        socket_dir: directory of the socket. process: the postmaster, for tests that kill it.
    """

    socket_dir: Path
    process: subprocess.Popen[bytes]

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://kilonova@/{database}?host={self.socket_dir}"

    def connect(self, database: str = "postgres") -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(host=str(self.socket_dir), user="kilonova", dbname=database, autocommit=True)

    def create_database(self) -> str:
        """Make an empty database with a name of its own and return that name."""
        name = f"t{uuid.uuid4().hex}"
        with self.connect() as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return name

    def drop_database(self, name: str) -> None:
        with self.connect() as connection:
            connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@contextmanager
def postgres_server(*, durable: bool = False) -> Iterator[PostgresServer]:
    """Run a private PostgreSQL cluster for the length of the block.

    Args:
        durable: keep fsync on, for tests about crashes of the server itself.

    Raises:
        ServerNotStarted: PostgreSQL is not installed or does not come up.
    """
    binaries = _postgres_binaries()
    with tempfile.TemporaryDirectory(prefix="kn-pg-", dir="/tmp") as temporary:
        directory = Path(temporary)
        as_user = _unprivileged(directory)
        data = directory / "data"
        _run([*as_user, str(binaries / "initdb"), "-D", str(data), "-U", "kilonova", "-A", "trust",
              "-E", "UTF8", "--no-locale", "--no-sync"])
        flush = "on" if durable else "off"
        with (directory / "log").open("wb") as log:
            process = subprocess.Popen(
                [*as_user, str(binaries / "postgres"), "-D", str(data), "-k", str(directory),
                 "-c", "listen_addresses=", "-c", "max_connections=200", "-c", f"fsync={flush}",
                 "-c", f"full_page_writes={flush}"],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd="/",
            )
        server = PostgresServer(directory, process)
        try:
            _wait_until_ready(server, directory / "log")
            yield server
        finally:
            _stop(process)


def _postgres_binaries() -> Path:
    by_version = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    installed = sorted(by_version, key=lambda path: int(path.parts[4]))
    found = installed[-1] if installed else shutil.which("postgres")
    if found is None:
        raise ServerNotStarted("PostgreSQL is not installed: install the package `postgresql`.")
    return Path(found).parent


def _unprivileged(directory: Path) -> list[str]:
    """The prefix that runs a command as another user: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return []
    for name in ("postgres", "nobody"):
        try:
            account = pwd.getpwnam(name)
        except KeyError:
            continue
        os.chown(directory, account.pw_uid, account.pw_gid)
        return ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups",
                "--pdeathsig=SIGQUIT", "--"]
    raise ServerNotStarted("There is no unprivileged user (postgres or nobody) to run PostgreSQL as.")


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, timeout=START_LIMIT, cwd="/", check=False)
    if done.returncode != 0:
        raise ServerNotStarted(f"{command[-1]}: {done.stderr.decode(errors='replace')}")


def _wait_until_ready(server: PostgresServer, log: Path) -> None:
    give_up = time.monotonic() + START_LIMIT
    while True:
        try:
            server.connect().close()
        except psycopg.OperationalError as error:
            if server.process.poll() is not None or time.monotonic() > give_up:
                raise ServerNotStarted(f"PostgreSQL does not answer: {log.read_text()}") from error
            time.sleep(0.05)
        else:
            return


def _stop(process: subprocess.Popen[bytes]) -> None:
    for stop in (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL):  # fast, immediate, last resort
        if process.poll() is None:
            process.send_signal(stop)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                continue
        return


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One PostgreSQL server for the test session."""
    with postgres_server() as server:
        yield server


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """The SQLAlchemy URL of an empty database, dropped after the test."""
    name = postgres.create_database()
    yield postgres.url(name)
    postgres.drop_database(name)
