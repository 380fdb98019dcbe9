"""A connection to libvirt that comes back: calls in threads, events from a thread, errors of this product.

libvirt's client library wants an event loop. It gets its own, in one thread per process, rather than a place in
an asyncio loop: keep-alive answers then do not wait for our loop, and callbacks cost the loop one wake-up.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from typing import Any, TypeVar

import libvirt  # type: ignore[import-untyped]
import structlog

from kilonova.domain.clock import Clock
from kilonova.domain.errors import InstanceNotFound, KilonovaError, Retryable, TryElsewhere, Unreachable
from kilonova.hypervisor.libvirt.daemon import Daemon

log = structlog.get_logger(__name__)

T = TypeVar("T")

GAP_LIMIT = 10.0
"""Seconds that a call waits for a lost connection to come back."""
CALL_LIMIT = 120.0
"""Seconds that one call into libvirt may take."""
LAST_CALLS_LIMIT = 30.0
"""Seconds that calls on a connection may take to end when it is to be closed. A lost one ends them at once."""
KEEPALIVE_INTERVAL, KEEPALIVE_COUNT = 5, 3
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0

CONNECTION_LOST = frozenset(
    {libvirt.VIR_ERR_NO_CONNECT, libvirt.VIR_ERR_INVALID_CONN, libvirt.VIR_ERR_RPC, libvirt.VIR_ERR_AUTH_CANCELLED}
)
BUSY = frozenset({libvirt.VIR_ERR_OPERATION_TIMEOUT, libvirt.VIR_ERR_RESOURCE_BUSY})


class Connection:
    """One connection, opened again whenever it is lost.

    The client library frees a connection that is closed, also from under a call that still uses it: from the moment it
    is lost nothing begins to use it, and it is closed when the last call has ended.

    Args:
        workers: threads for the calls.
        on_open: called in a worker thread with each new connection, to register for events.
        on_close: called in a worker thread before a connection is closed, lost or not, to undo that.
        on_reopened: called on the event loop after a connection that replaces a lost one is in place.
    """

    def __init__(
        self, daemon: Daemon, workers: Executor, clock: Clock, *,
        on_open: Callable[[libvirt.virConnect], None], on_close: Callable[[], None],
        on_reopened: Callable[[], None],
    ) -> None:
        self._daemon = daemon
        self._workers = workers
        self._clock = clock
        self._on_open = on_open
        self._on_close = on_close
        self._on_reopened = on_reopened
        self._open: libvirt.virConnect | None = None
        self._calls: set[Future[Any]] = set()
        self._ready = asyncio.Event()
        self._reconnecting: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def open(self) -> None:
        """Connect. Raises KilonovaError with a hint when that is not possible."""
        _start_event_thread()
        self._loop = asyncio.get_running_loop()
        await self._connect()

    async def call(
        self, fn: Callable[[libvirt.virConnect], T], *, uuid: str = "", limit: float = CALL_LIMIT
    ) -> T:
        """Run `fn(connection)` in a thread.

        Args:
            uuid: the guest that it is about.
            limit: seconds; a call that takes longer is given up, though its thread may go on.

        Raises:
            Retryable: the connection is lost and did not come back in time, or was lost during the call.
            Unreachable: the call took too long; it may still take effect.
            InstanceNotFound, TryElsewhere: from what libvirt says.
        """
        connection = await self._connection()
        try:
            return await asyncio.wait_for(asyncio.wrap_future(self._begin(fn, connection)), limit)
        except libvirt.libvirtError as error:
            if connection is not self._open:
                raise Retryable("The connection to libvirt was lost during a call.") from error
            raise _translate(error, connection, uuid) from error
        except TimeoutError as error:
            raise Unreachable(f"libvirt did not answer within {limit:.0f} s.") from error

    def _begin(self, fn: Callable[[libvirt.virConnect], T], connection: libvirt.virConnect) -> Future[T]:
        """Call in a thread. What is no longer waited for may still be under way."""
        calls, call = self._calls, self._workers.submit(fn, connection)
        calls.add(call)
        call.add_done_callback(calls.discard)
        return call

    async def close(self) -> None:
        """Disconnect."""
        task, self._reconnecting = self._reconnecting, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        connection, self._open = self._open, None
        self._ready.clear()
        if connection is not None:
            await self._hang_up(connection)

    async def _connection(self) -> libvirt.virConnect:
        try:
            async with asyncio.timeout(GAP_LIMIT):
                while self._open is None:  # it may be lost again before this waiter runs
                    await self._ready.wait()
        except TimeoutError as error:
            raise Retryable("The connection to libvirt is lost.", hint="see the log of libvirtd") from error
        return self._open

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        await self._daemon.start(self._workers)
        try:
            connection = await asyncio.wait_for(loop.run_in_executor(self._workers, self._dial), CALL_LIMIT)
        except (libvirt.libvirtError, TimeoutError) as error:
            raise Retryable(
                f"Cannot connect to libvirt at {self._daemon.uri}: {error}.",
                hint="check that libvirtd runs and that this process may use its socket",
            ) from error
        self._open = connection
        self._ready.set()
        if not await asyncio.wrap_future(self._begin(_is_alive, connection)):
            self._lost(connection)  # it went before anybody could be told

    def _dial(self) -> libvirt.virConnect:
        connection = libvirt.open(self._daemon.uri)
        if connection.setKeepAlive(KEEPALIVE_INTERVAL, KEEPALIVE_COUNT) != 0:
            log.debug("this connection has no keep-alive", uri=self._daemon.uri)
        connection.registerCloseCallback(self._closed, None)
        self._on_open(connection)
        return connection

    async def _hang_up(self, connection: libvirt.virConnect) -> None:
        """Close a connection that nobody gets any more."""
        calls, self._calls = self._calls, set()
        await asyncio.get_running_loop().run_in_executor(self._workers, self._close, connection, tuple(calls))

    def _close(self, connection: libvirt.virConnect, calls: tuple[Future[Any], ...]) -> None:
        left = wait(calls, LAST_CALLS_LIMIT).not_done
        if left:
            log.warning("calls to libvirt do not end; their connection stays open", calls=len(left))
            return
        for step in (self._on_close, connection.unregisterCloseCallback, connection.close):
            try:
                step()
            except libvirt.libvirtError as error:  # of a lost connection little can be undone
                log.debug("closing a connection to libvirt failed", error=str(error))

    def _closed(self, connection: libvirt.virConnect, _reason: int, _opaque: None) -> None:
        assert self._loop is not None
        _post(self._loop, self._lost, connection)

    def _lost(self, connection: libvirt.virConnect) -> None:
        if connection is not self._open:
            return
        log.warning("connection to libvirt lost", uri=self._daemon.uri)
        self._open = None
        self._ready.clear()
        self._reconnecting = asyncio.get_running_loop().create_task(self._reconnect(connection))

    async def _reconnect(self, lost: libvirt.virConnect) -> None:
        await self._hang_up(lost)
        pause = FIRST_PAUSE
        while True:
            try:
                await self._connect()
            except KilonovaError as error:
                log.warning("cannot connect to libvirt; trying again", error=str(error), pause=pause)
                await self._clock.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
            else:
                log.info("connected to libvirt again", uri=self._daemon.uri)
                self._on_reopened()
                return


def _translate(error: libvirt.libvirtError, connection: libvirt.virConnect, uuid: str) -> KilonovaError:
    code = error.get_error_code()
    if code == libvirt.VIR_ERR_NO_DOMAIN:
        return InstanceNotFound(uuid)
    if code in CONNECTION_LOST or not _is_alive(connection):
        return Retryable("The connection to libvirt was lost during a call.")
    if code in BUSY:
        return Retryable(f"The guest is busy: {_said(error)}.")
    return TryElsewhere(f"The hypervisor refused: {_said(error)}.", hint="libvirt's log of the guest tells more")


def _said(error: libvirt.libvirtError) -> str:
    return str(error.get_error_message() or error).strip().rstrip(".")


def _is_alive(connection: libvirt.virConnect) -> bool:
    try:
        return bool(connection.isAlive() == 1)
    except libvirt.libvirtError:
        return False


def _post(loop: asyncio.AbstractEventLoop, fn: Callable[..., Any], *arguments: Any) -> None:
    """Call on the loop from a thread; a loop that has been closed has no use for it."""
    try:
        loop.call_soon_threadsafe(fn, *arguments)
    except RuntimeError:
        log.debug("an event of libvirt came after the event loop was closed")


_event_thread_lock = threading.Lock()
_event_thread: threading.Thread | None = None


def _start_event_thread() -> None:
    global _event_thread
    with _event_thread_lock:
        if _event_thread is None:
            libvirt.registerErrorHandler(_ignore, None)  # errors are raised; printing them as well helps nobody
            libvirt.virEventRegisterDefaultImpl()
            _event_thread = threading.Thread(target=_run_events, name="libvirt-events", daemon=True)
            _event_thread.start()


def _run_events() -> None:
    while True:
        libvirt.virEventRunDefaultImpl()


def _ignore(_opaque: None, _error: tuple[Any, ...]) -> None:
    return
