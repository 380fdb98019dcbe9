"""A step that takes the service of its host down again and again."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from kilonova.db.database import Database
from kilonova.domain.clock import SystemClock
from kilonova.engine.commands import Command, Reply
from kilonova.engine.host import MAX_CRASHES, HostExecutor, host_metadata
from kilonova.engine.operation import HostStep


class Nothing(msgspec.Struct):
    """No arguments."""


class Service:
    """The service of a host that dies in the middle of a step as often as it is told to."""

    def __init__(self, journal: Database) -> None:
        self._journal = journal
        self._deadly = True
        self._begun = asyncio.Event()

    async def _do(self, _environment: None, _args: Nothing) -> None:
        self._begun.set()
        if self._deadly:
            await asyncio.Event().wait()

    def _executor(self) -> HostExecutor:
        steps = {"guest.work": HostStep("guest.work", self._do, Nothing)}
        return HostExecutor("h", steps, None, self._journal, SystemClock())

    async def die(self, command: Command) -> None:
        executor = self._executor()
        asking = asyncio.create_task(executor.handle("", msgspec.msgpack.encode(command)))
        await self._begun.wait()
        self._begun.clear()
        asking.cancel()
        await executor.close()

    async def answer(self, command: Command) -> Reply:
        self._deadly = False
        executor = self._executor()
        reply = msgspec.msgpack.decode(await executor.handle("", msgspec.msgpack.encode(command)), type=Reply)
        await executor.close()
        return reply


@pytest.mark.spec("INI-150")
async def test_it_is_given_up_until_an_operator_wants_another_try() -> None:
    journal = Database.open("sqlite://")
    await journal.write(host_metadata.create_all)
    service = Service(journal)
    command = Command(key="o/0/work/do", fence="o", epoch=1, subject="s", step="guest.work", args=b"{}")
    for _ in range(MAX_CRASHES + 1):
        await service.die(command)
    again = msgspec.structs.replace(command, attempt=2, forgive=True)
    await service.die(again)  # this one counts anew
    reply = await service.answer(msgspec.structs.replace(command, attempt=2))
    assert reply.state == "done"
    for _ in range(MAX_CRASHES + 1):
        service = Service(journal)
        await service.die(msgspec.structs.replace(command, key="o/0/other/do"))
    given_up = await service.answer(msgspec.structs.replace(command, key="o/0/other/do"))
    assert given_up.state == "failed"
    assert given_up.failure is not None
    assert "stopped 6 times" in given_up.failure.message
    await journal.close()
