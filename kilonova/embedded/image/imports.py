"""Imports: data that the service fetches itself, in the background, from what was staged or from a URI.

An import is recorded before it begins, so a restart continues it. Spec: EMG-05, EMG-22, EMG-26.
"""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import sqlalchemy as sa
import structlog

from kilonova.domain.context import RequestContext
from kilonova.domain.errors import Conflict, InvalidInput, KilonovaError
from kilonova.domain.trail import Threads
from kilonova.embedded.image import import_tasks, queries
from kilonova.embedded.image.import_rules import ImportRules, check_uri
from kilonova.embedded.image.quotas import Quota, Resource
from kilonova.embedded.image.records import ImageRecord, ImportMethod, ImportRequest, Status, Task, TaskStatus
from kilonova.embedded.image.transfers import Transfers, check_described

log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

PARALLEL = 2
"""Imports that run at a time; others wait."""


class Imports:
    """All imports of one service."""

    def __init__(self, transfers: Transfers, rules: ImportRules) -> None:
        self._transfers = transfers
        self._rules = rules
        self._tasks: set[asyncio.Task[None]] = set()
        self._threads = Threads(PARALLEL, "image-import")

    async def begin(self, context: RequestContext, record: ImageRecord, request: ImportRequest) -> Task:
        """Record an import and start it.

        Raises:
            Conflict: the image is not in the status that the method needs. InvalidInput: formats are missing,
            or the rules do not allow the URI. TooLarge: the project has too much.
        """
        before = Status.UPLOADING if request.method is ImportMethod.GLANCE_DIRECT else Status.QUEUED
        staging = before is Status.UPLOADING and self._transfers.running(record.id)
        if record.status is not before or staging:
            raise Conflict(f"Image {record.id} is {record.status.value}; to import it with {request.method.value}"
                           f" it must be {before.value}.")
        check_described(record)
        if request.method is not ImportMethod.GLANCE_DIRECT:
            check_uri(request.uri or "", self._rules)
        now = self._transfers.clock.now()
        task = Task(id=str(uuid.uuid4()), image_id=record.id, owner=record.owner, user_id=context.user_id,
                    request_id=context.request_id, request=request, status=TaskStatus.PROCESSING, created_at=now,
                    updated_at=now)
        quota = await self._transfers.quotas.of(record.owner)

        def unit(conn: sa.Connection) -> None:
            if not import_tasks.begin(conn, task, before):
                raise Conflict(f"Image {record.id} changed its status meanwhile.")
            _check(conn, quota, record, request.method)

        await self._transfers.database.write(unit)
        self.start(task)
        return task

    def start(self, task: Task) -> None:
        """Run a recorded import in the background."""
        running = asyncio.create_task(self._run(task), name=f"import of image {task.image_id}")
        self._tasks.add(running)
        running.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Interrupt what runs. It goes on after the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _run(self, task: Task) -> None:
        try:
            async with self._transfers.transfer(task.image_id) as stopped:
                await self._import(task, stopped)
        except (KilonovaError, OSError) as error:
            await self._fail(task, str(error))
        except Exception as error:
            log.exception("image import failed", image=task.image_id, task=task.id)
            await self._fail(task, f"The import failed: {type(error).__name__}.")
        else:
            now = self._transfers.clock.now()
            await self._transfers.settle(lambda conn: import_tasks.succeed(conn, task, now))

    async def _import(self, task: Task, stopped: threading.Event) -> None:
        files = self._transfers.files
        record = await self._transfers.database.read(lambda conn: queries.get(conn, task.image_id))
        if record.status is Status.ACTIVE:
            return  # done by a process that ended before it could say so
        if task.request.method is ImportMethod.GLANCE_DIRECT:
            staged = files.staged(record.id)
            received = await self._in_thread(files.digest, staged, stopped)
            await self._transfers.activate(record, received, Status.IMPORTING)
            await files.run(staged.unlink, missing_ok=True)
        else:
            await self._fetch(task.request, record, stopped)

    async def _fetch(self, request: ImportRequest, record: ImageRecord, stopped: threading.Event) -> None:
        from kilonova.embedded.image.fetch import fetch  # with its HTTP client, which little else needs

        files = self._transfers.files
        incoming = await self._transfers.incoming(record)
        try:
            await self._in_thread(fetch, request.uri or "", self._rules, incoming.write, stopped)
            received = await files.run(incoming.finish)
            if request.sha512 not in (None, received.sha512):
                raise InvalidInput("The data does not have the hash that was given for it.")
            await self._transfers.activate(record, received, Status.IMPORTING)
        finally:
            await asyncio.shield(files.run(incoming.discard))

    async def _in_thread(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: fn(*args, **kwargs))

    async def _fail(self, task: Task, message: str) -> None:
        log.info("image not imported", image=task.image_id, task=task.id, reason=message)
        files, now = self._transfers.files, self._transfers.clock.now()
        await files.run(files.staged(task.image_id).unlink, missing_ok=True)
        await self._transfers.settle(lambda conn: import_tasks.fail(conn, task, message, now))


def _check(conn: sa.Connection, quota: Quota, record: ImageRecord, method: ImportMethod) -> None:
    """Raises TooLarge. What is staged counts as under way already, and how much it is is known."""
    quota.check(conn, Resource.SIZE_TOTAL, more=record.staged_size or 0)
    if method is not ImportMethod.GLANCE_DIRECT:
        quota.check(conn, Resource.COUNT_UPLOADING)
        quota.check(conn, Resource.STAGE_TOTAL)
