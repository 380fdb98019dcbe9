"""A connection to libvirt that is lost while calls are under way."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import libvirt
import pytest

from kilonova.domain.clock import SystemClock
from kilonova.domain.errors import Retryable
from kilonova.hypervisor.libvirt import connection as module
from kilonova.hypervisor.libvirt.connection import Connection


class Remote:
    """A connection of the client library, which must not be used any more once it is closed."""

    def __init__(self) -> None:
        self.closed = threading.Event()
        self.misused = False
        self.lose: Callable[[], None] = lambda: None

    def setKeepAlive(self, _interval: int, _count: int) -> int:
        return 0

    def registerCloseCallback(self, closed: Callable[..., None], opaque: Any) -> None:
        self.lose = lambda: closed(self, 0, opaque)

    def unregisterCloseCallback(self) -> None:
        pass

    def isAlive(self) -> int:
        self.misused = self.misused or self.closed.is_set()
        return 1

    def close(self) -> None:
        self.closed.set()


class Daemon:
    uri = "test:///"

    async def start(self, _workers: Executor) -> None:
        pass


async def test_a_lost_connection_is_closed_when_its_last_call_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing it frees it, from under whoever still uses it."""
    made: list[Remote] = []

    def dial(_uri: str) -> Remote:
        made.append(Remote())
        return made[-1]

    monkeypatch.setattr(module.libvirt, "open", dial)
    monkeypatch.setattr(module, "_start_event_thread", lambda: None)
    begun, go_on = threading.Event(), threading.Event()

    def slow(remote: Remote) -> None:
        begun.set()
        go_on.wait(10)
        remote.misused = remote.misused or remote.closed.is_set()
        raise libvirt.libvirtError("end of file while reading data")

    with ThreadPoolExecutor(4) as workers:
        connection = Connection(
            Daemon(), workers, SystemClock(), on_open=lambda _c: None, on_close=lambda: None,  # type: ignore[arg-type]
            on_reopened=lambda: None,
        )
        await connection.open()
        [first] = made
        call = asyncio.create_task(connection.call(slow))  # type: ignore[arg-type]
        await asyncio.to_thread(begun.wait, 10)
        first.lose()
        await asyncio.sleep(0.2)
        assert not first.closed.is_set()
        go_on.set()
        with pytest.raises(Retryable, match="lost during a call"):
            await call
        assert await connection.call(lambda remote: remote) is made[-1]
        assert (first.closed.is_set(), first.misused) == (True, False)
        assert len(made) == 2
        await connection.close()
        assert made[-1].closed.is_set()
