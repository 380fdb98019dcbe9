"""The daemon of a pool: one qemu-storage-daemon, started detached, found again, and started anew when it dies.

It outlives this process, so that guests keep their volumes while the control plane is replaced. Whether it runs is
told by its control socket alone. It is noticed at once when it dies, because the connection to that socket ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import structlog
from qemu.qmp import ConnectError, ExecInterruptedError, ExecuteError, QMPClient, QMPError, Runstate, StateError

from kilonova.domain.clock import Clock
from kilonova.domain.errors import KilonovaError, Retryable, StoragePoolFull
from kilonova.storage.pool import Address

log = structlog.get_logger(__name__)
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)  # what it would log arrives here as errors, too

PROGRAM = "qemu-storage-daemon"
SEARCH_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/bin", "/usr/local/bin"))
START_LIMIT = 30.0
"""Seconds in which a daemon must accept commands."""
ANSWER_LIMIT = 60.0
"""Seconds in which it must answer one; what copies data is a job, whose command is answered at once."""
STOP_LIMIT = 20.0
POLL = 0.01
SHORTEST_PAUSE, LONGEST_PAUSE = 0.05, 5.0
"""Seconds between attempts to start one that does not start."""
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}
"""How the C library of a daemon keeps memory: a buffer is taken for every request, of up to 32 MiB. Unless told so, the
library gives large ones back at once, and a daemon spends half of its time on getting them from the kernel again."""
LONGEST_SOCKET_PATH = 107
ONLY_OWNER_AND_GROUP = 0o117
NO_SPACE = "No space left on device"


class DaemonRefused(KilonovaError):
    """The daemon says no to a command."""


class StorageDaemon:
    """Runs and commands the daemon of one pool.

    Args:
        directory: for its control socket, number and log; made when missing.
        address: what it serves exports at. certificates: the directory of those, if the address has TLS.
        group: number of the group that may connect to a Unix socket; None for the one that this process has.
        connected: awaited whenever a daemon was found or started, before others may command it.
    """

    def __init__(
        self, pool: str, directory: Path, address: Address, clock: Clock, *, certificates: str, group: int | None,
        connected: Callable[[], Awaitable[None]],
    ) -> None:
        self._pool = pool
        self._directory = directory
        self._address = address
        self._clock = clock
        self._certificates = certificates
        self._group = group
        self._connected = connected
        self._client: QMPClient | None = None
        self._ready = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def control(self) -> Path:
        """The control socket."""
        return self._directory / "control.sock"

    async def start(self) -> None:
        """Find it running or start it, and look after it from now on.

        Raises:
            KilonovaError: something it needs is missing, or it does not start. Retryable: it does not answer.
        """
        for path in (str(self.control), self._address.socket):
            if len(os.fsencode(path)) > LONGEST_SOCKET_PATH:
                raise KilonovaError(f"The path {path} is too long for a socket.", hint="choose a shorter directory")
        if self._watch is None:
            await self._bring_up()
            self._watch = asyncio.create_task(self._look_after())

    async def close(self) -> None:
        """Look after it no longer. It runs on."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
            self._watch = None
        await self._forget()

    async def stop(self) -> None:
        """End it, whoever started it; its clients lose their connections."""
        await self.close()
        client = await self._connection()
        if client is None:
            return
        with contextlib.suppress(QMPError):
            await client.execute("quit")
        await _disconnect(client)
        deadline = self._clock.monotonic() + STOP_LIMIT
        while (again := await self._connection()) is not None:
            await _disconnect(again)
            if self._clock.monotonic() > deadline:
                raise self._failure(f"did not end within {STOP_LIMIT:.0f} s")
            await self._clock.sleep(POLL)
        if self._process is not None:
            await asyncio.to_thread(self._process.wait)

    async def command(self, name: str, arguments: Mapping[str, object] | None = None) -> Any:
        """Have it do something; while it is being started again, wait for that.

        Raises:
            DaemonRefused: it does not do that. StoragePoolFull. Retryable: it died or does not answer.
        """
        await self.alive()
        return await self.command_now(name, arguments)

    async def alive(self) -> None:
        """Wait while it is being started again. Raises Retryable: that takes too long."""
        try:
            async with asyncio.timeout(START_LIMIT):
                await self._ready.wait()
        except TimeoutError as error:
            raise Retryable(f"The daemon of storage pool {self._pool} does not start.", hint="see its log") from error

    async def command_now(self, name: str, arguments: Mapping[str, object] | None = None) -> Any:
        """As `command`, for what is done before others may."""
        client = self._client
        try:
            if client is None:
                raise EOFError
            async with asyncio.timeout(ANSWER_LIMIT):
                return await client.execute(name, arguments)
        except ExecuteError as error:
            if NO_SPACE in str(error):
                raise StoragePoolFull(self._pool) from error
            raise DaemonRefused(f"The daemon of storage pool {self._pool} refuses {name}: {error}") from error
        except TimeoutError as error:
            raise Retryable(f"The daemon of storage pool {self._pool} does not answer.") from error
        except (EOFError, OSError, StateError, ExecInterruptedError) as error:
            raise Retryable(f"The daemon of storage pool {self._pool} ended.") from error

    async def _look_after(self) -> None:
        pause = SHORTEST_PAUSE
        while True:
            client = self._client
            while client is not None and client.runstate is Runstate.RUNNING:
                await client.runstate_changed()
            await self._forget()
            log.warning("the daemon of a storage pool ended; starting it again", pool=self._pool)
            try:
                await self._bring_up()
                pause = SHORTEST_PAUSE
            except (KilonovaError, OSError) as error:
                log.error("the daemon of a storage pool does not start", pool=self._pool, error=str(error))
                await self._clock.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)

    async def _forget(self) -> None:
        self._ready.clear()
        client, self._client = self._client, None
        if client is not None:
            await _disconnect(client)

    async def _bring_up(self) -> None:
        client = await self._connection()
        if client is None:
            await asyncio.to_thread(self._launch)
            client = await self._first_connection()
        self._client = client
        try:
            await self._connected()
        except BaseException:
            await self._forget()
            raise
        self._ready.set()

    async def _connection(self) -> QMPClient | None:
        """A connection that takes commands; None if nobody listens."""
        client = QMPClient(self._pool)
        try:
            async with asyncio.timeout(START_LIMIT):
                await client.connect(str(self.control))
        except ConnectError as error:
            if isinstance(error.exc, OSError) and error.exc.errno in (errno.ENOENT, errno.ECONNREFUSED):
                return None
            if isinstance(error.exc, (EOFError, ConnectionError)):
                return None  # it ended while it was asked
            raise Retryable(f"The daemon of storage pool {self._pool} cannot be commanded: {error}") from error
        except TimeoutError as error:
            raise Retryable(f"The daemon of storage pool {self._pool} does not answer.") from error
        return client

    async def _first_connection(self) -> QMPClient:
        deadline = self._clock.monotonic() + START_LIMIT
        while (client := await self._connection()) is None:
            if self._process is not None and self._process.poll() is not None:
                raise self._failure("ended at once")
            if self._clock.monotonic() > deadline:
                raise self._failure(f"did not take commands within {START_LIMIT:.0f} s")
            await self._clock.sleep(POLL)
        return client

    def _launch(self) -> None:
        program = shutil.which(PROGRAM, path=SEARCH_PATH)
        if program is None:
            raise KilonovaError(
                f"{PROGRAM} is not installed.", hint="install it (Debian: qemu-system-common qemu-utils)"
            )
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._process is not None:
            try:
                self._process.wait(STOP_LIMIT)
            except subprocess.TimeoutExpired as error:
                raise self._failure(f"runs, as process {self._process.pid}, and takes no commands") from error
        self.control.unlink(missing_ok=True)
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                [program, *self._arguments()], stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd="/",
                start_new_session=True, umask=ONLY_OWNER_AND_GROUP, group=self._group, env={**os.environ, **ALLOCATOR},
            )

    def _arguments(self) -> list[str]:
        arguments = [
            "--chardev", f"socket,id=control,path={_escaped(self.control)},server=on,wait=off",
            "--monitor", "chardev=control",
            "--pidfile", str(self._directory / "daemon.pid"),
        ]
        if self._address.socket:
            server = f"addr.type=unix,addr.path={_escaped(self._address.socket)}"
        else:
            server = f"addr.type=inet,addr.host={self._address.host},addr.port={self._address.port}"
        if self._address.tls:
            certificates = _escaped(self._certificates)
            arguments += [
                "--object", f"tls-creds-x509,id=tls,dir={certificates},endpoint=server,verify-peer=on",
            ]
            server += ",tls-creds=tls"
        return [*arguments, "--nbd-server", f"{server},max-connections=0"]

    @property
    def _log(self) -> Path:
        return self._directory / "daemon.log"

    def _failure(self, what: str) -> KilonovaError:
        lines = self._log.read_text(errors="replace").splitlines()[-3:] if self._log.exists() else []
        return KilonovaError(
            f"The daemon of storage pool {self._pool} {what}.",
            hint=f"see {self._log}; its last lines: {' '.join(lines).strip()}",
        )


async def _disconnect(client: QMPClient) -> None:
    with contextlib.suppress(EOFError, OSError, QMPError):  # how the connection ended
        await client.disconnect()


def _escaped(path: str | Path) -> str:
    """As a value in QEMU's lists of options."""
    return str(path).replace(",", ",,")
