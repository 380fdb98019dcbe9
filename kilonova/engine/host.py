"""The host side of the engine: runs steps for conductors, once each, and remembers them in a journal of its own.

The journal is a small SQLite database on the host. A command is written down before it runs; its result is
written before it is answered. After a crash of the agent, a command that had begun runs its `after_crash`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import sqlalchemy as sa
import structlog

from kilonova.db.columns import Json, Timestamp, new_metadata
from kilonova.db.database import Database
from kilonova.db.prepared import Prepared
from kilonova.domain import tracing, trail
from kilonova.domain.clock import Clock
from kilonova.domain.errors import Fenced, InvalidInput, Unfinished
from kilonova.domain.operation import Failure
from kilonova.engine.commands import HOLD, Command, Reply
from kilonova.engine.failure import crash_loop, describe
from kilonova.engine.operation import HostStep

log = structlog.get_logger(__name__)

MAX_CRASHES = 5
"""How often a step may take the agent down before it counts as failed."""

host_metadata = new_metadata()

commands = sa.Table(
    "commands",
    host_metadata,
    sa.Column("host", sa.String(255), primary_key=True),
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("fence", sa.String(36), nullable=False),
    sa.Column("epoch", sa.Integer, nullable=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("crashes", sa.Integer, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("output", sa.Text, nullable=False),
    sa.Column("failure", Json(Failure)),
    sa.Column("updated_at", Timestamp, nullable=False),
    sa.Index("commands_fence", "host", "fence"),
    sa.Index("commands_age", "updated_at"),
)

_encode_reply = msgspec.msgpack.Encoder().encode
_decode_command = msgspec.msgpack.Decoder(Command).decode

_LOOK_UP = Prepared(
    sa.select(commands).where(commands.c.host == sa.bindparam("host"), commands.c.key == sa.bindparam("key"))
)
_FENCE = Prepared(sa.select(sa.func.max(commands.c.epoch)).where(
    commands.c.host == sa.bindparam("host"), commands.c.fence == sa.bindparam("fence")
))
_INSERT = Prepared(sa.insert(commands).values({c.name: sa.bindparam(c.name) for c in commands.columns}))
_BEGIN_AGAIN = Prepared(
    sa.update(commands)
    .where(commands.c.host == sa.bindparam("b_host"), commands.c.key == sa.bindparam("b_key"))
    .values(epoch=sa.bindparam("epoch"), attempt=sa.bindparam("attempt"), crashes=sa.bindparam("crashes"),
            state="started", fence=sa.bindparam("fence"), updated_at=sa.bindparam("now"))
)
_FINISH = Prepared(
    sa.update(commands)
    .where(commands.c.host == sa.bindparam("b_host"), commands.c.key == sa.bindparam("b_key"))
    .values(state=sa.bindparam("state"), output=sa.bindparam("output"), failure=sa.bindparam("failure"),
            updated_at=sa.bindparam("now"))
)


class HostExecutor:
    """Runs the steps of one host.

    Args:
        host: its name. steps: what it can run. environment: handed to every step function.
        journal: the host's own database. max_heavy: concurrent heavy steps, 0 for no limit. Spec: FND-54.
        max_disk_work: concurrent steps of heavy work on disks, 0 for no limit. Spec: INI-004.
        max_snapshots: concurrent steps of snapshots, 0 or less for no limit. Spec: FND-55, SNP-07.
        checkpoint: called after every effect, before it is journaled, with the step's name, for crash tests.
        observe: called with every attempt at a step: its name, `done` or `failed`, and how many seconds it took.
    """

    def __init__(self, host: str, steps: Mapping[str, HostStep], environment: Any, journal: Database, clock: Clock,
                 *, max_heavy: int = 10, max_disk_work: int = 0, max_snapshots: int = 0,
                 checkpoint: Callable[[str], None] = lambda _place: None,
                 observe: Callable[[str, str, float], None] = lambda _step, _outcome, _seconds: None) -> None:
        for option, limit in (("max_concurrent_builds", max_heavy), ("max_concurrent_disk_ops", max_disk_work)):
            if limit < 0:
                raise InvalidInput(f"{option} must not be negative", hint="0 means no limit")
        self.host = host
        self._steps = steps
        self._environment = environment
        self._journal = journal
        self._clock = clock
        self._running: dict[str, asyncio.Task[Reply]] = {}
        self._subjects: dict[str, asyncio.Lock] = {}
        self._heavy = asyncio.Semaphore(max_heavy) if max_heavy else None
        self._disk_work = asyncio.Semaphore(max_disk_work) if max_disk_work else None
        self._snapshots = asyncio.Semaphore(max_snapshots) if max_snapshots > 0 else None
        self._closing = False
        self._checkpoint = checkpoint
        self._observe = observe

    async def handle(self, _subject: str, payload: bytes) -> bytes:
        """Answer one command message."""
        return _encode_reply(await self._answer(_decode_command(payload)))

    async def _answer(self, command: Command) -> Reply:
        step = self._steps.get(command.step)
        if step is None:
            return Reply(state="failed", failure=Failure(
                kind="NotSupported", message=f"Host {self.host} runs a version without the step {command.step}.",
                status=501,
            ))
        task = self._running.get(command.key)
        if task is None:
            try:
                decided = await self._journal.write(lambda conn: self._begin(conn, command))
            except Fenced:
                return Reply(state="fenced")
            if isinstance(decided, Reply):
                return decided
            if command.undo and step is not None:
                self._cut_short(command.opposite)
            task = self._running.get(command.key)
            if task is None:
                task = asyncio.create_task(self._run(command, step, crashed=decided))
                self._running[command.key] = task
        if command.interrupt and step.interruptible:
            task.cancel()
        done, _ = await asyncio.wait({task}, timeout=HOLD)
        if not done:
            return Reply(state="running")
        return task.result() if not task.cancelled() else Reply(state="running")

    def _begin(self, conn: sa.Connection, command: Command) -> Reply | bool:
        """Decide what a command needs: an answer from the journal, or to run (True: its run crashed before).

        A step that takes the agent down again and again counts as failed; an undo is tried for ever. Spec: INI-150.

        Raises:
            Fenced: its epoch is older than one seen, or its step was undone already.
        """
        seen = _FENCE.scalar(conn, host=self.host, fence=command.fence)
        if seen is not None and seen > command.epoch:
            raise Fenced(command.fence)
        if not command.undo and command.opposite:
            undone = _LOOK_UP.first(conn, host=self.host, key=command.opposite)
            if undone is not None:
                raise Fenced(command.opposite)
        known = _LOOK_UP.first(conn, host=self.host, key=command.key)
        if known is None:
            _INSERT.run(
                conn, host=self.host, key=command.key, fence=command.fence, epoch=command.epoch,
                attempt=command.attempt, crashes=0, state="started", output="null", failure=None,
                updated_at=self._clock.now(),
            )
            return False
        if known.state == "done":
            return Reply(state="done", output=known.output.encode())
        if known.state == "failed" and known.attempt >= command.attempt:
            return Reply(state="failed", failure=known.failure)
        crashed = bool(known.state == "started")
        crashes = 0 if command.forgive else known.crashes + crashed
        if crashes > MAX_CRASHES and crashed:
            failure = crash_loop(f"The service of host {self.host}", crashes, command.step)
            looping = Reply(state="failed", failure=failure)
            self._finish(conn, command, looping)
            return looping
        _BEGIN_AGAIN.run(
            conn, b_host=self.host, b_key=command.key, epoch=command.epoch, attempt=command.attempt,
            crashes=crashes, fence=command.fence, now=self._clock.now(),
        )
        return crashed

    def _cut_short(self, key: str) -> None:
        """A step that is about to be undone need not be finished if it can be interrupted."""
        running = self._running.get(key)
        if running is not None:
            step = self._steps.get(running.get_name())
            if step is not None and step.interruptible:
                running.cancel()

    async def _run(self, command: Command, step: HostStep, *, crashed: bool) -> Reply:
        task = asyncio.current_task()
        assert task is not None
        task.set_name(step.name)
        trail.on_host(self.host, step.name, command.fence)
        try:
            lock = self._subjects.setdefault(command.subject, asyncio.Lock())
            try:
                async with lock:
                    began = self._clock.monotonic()
                    with tracing.span(step.name, host__name=self.host, kilonova__attempt=command.attempt) as span:
                        reply = await self._attempt(command, step, crashed=crashed)
                        if reply.failure is not None:
                            span.fail(reply.failure.message)
                    self._observe(step.name, reply.state, self._clock.monotonic() - began)
            finally:
                if not lock.locked() and not getattr(lock, "_waiters", None):
                    self._subjects.pop(command.subject, None)
            self._checkpoint(f"{command.key.split('/', 2)[2]}/effect")
            await self._journal.write(lambda conn: self._finish(conn, command, reply))
            return reply
        finally:
            self._running.pop(command.key, None)

    async def _attempt(self, command: Command, step: HostStep, *, crashed: bool) -> Reply:
        function = step.after_crash if crashed and step.after_crash is not None else step.do
        try:
            args = msgspec.json.decode(command.args, type=step.args)
            async with AsyncExitStack() as slots:
                if step.heavy and self._heavy is not None:
                    await slots.enter_async_context(self._heavy)
                if step.disk_work and self._disk_work is not None:
                    await slots.enter_async_context(self._disk_work)
                if step.snapshot and self._snapshots is not None:
                    await slots.enter_async_context(self._snapshots)
                result = await function(self._environment, args)
        except asyncio.CancelledError as error:
            if self._closing:
                raise
            return Reply(state="failed", failure=describe(error, step.name))
        except Exception as error:  # noqa: BLE001 - every failure of a step is answered and journaled
            failure = describe(error, step.name)
            if isinstance(error, Unfinished):
                log.debug("host step goes on", progress=failure.message)
            else:
                log.warning("host step failed", error=failure.message, details=failure.details)
            return Reply(state="failed", failure=failure)
        return Reply(state="done", output=msgspec.json.encode(result))

    def _finish(self, conn: sa.Connection, command: Command, reply: Reply) -> None:
        _FINISH.run(
            conn, b_host=self.host, b_key=command.key, state=reply.state, output=reply.output.decode(),
            failure=reply.failure, now=self._clock.now(),
        )

    async def forget(self, before: float) -> int:
        """Drop finished commands older than `before`; returns how many."""
        finished = commands.c.state.in_(("done", "failed"))
        return await self._journal.write(
            lambda conn: conn.execute(
                sa.delete(commands).where(commands.c.host == self.host, finished, commands.c.updated_at < before)
            ).rowcount
        )

    async def close(self) -> None:
        """Stop at once; what runs is found as begun by the next start."""
        self._closing = True
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


