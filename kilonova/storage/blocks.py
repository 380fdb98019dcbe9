"""The daemon's view of volumes: nodes, which hold the file of a volume open, and the exports on them.

A node is there as long as it has an export or something is done to its volume. Both are found in the daemon again,
so that a new service goes on where the last one ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import structlog

from kilonova.domain.clock import Clock
from kilonova.domain.errors import Conflict, ExportInUse, KilonovaError, Retryable, StoragePoolFull
from kilonova.storage.daemon import NO_SPACE, DaemonRefused, StorageDaemon
from kilonova.storage.files import PoolFiles, VolumeFile
from kilonova.storage.pool import Export

log = structlog.get_logger(__name__)

NODE_DIGITS = 30
"""Hexadecimal digits of a UUID that fit into the 31 characters that QEMU allows, with a letter in front."""
VOLUME, FILE = "v", "f"
"""Letters in front: of what is in a volume, and of its file below that, which comes and goes with it."""
POLL = 0.005
JOB_POLL = 0.05
GONE_LIMIT = 30.0
"""Seconds in which a removed export or a cancelled job must be gone: requests that it has begun are finished first."""


class Blocks:
    """Opens, exports and copies volumes in the daemon of one pool."""

    def __init__(self, pool: str, files: PoolFiles, clock: Clock) -> None:
        self._pool = pool
        self._files = files
        self._clock = clock
        self._daemon: StorageDaemon
        self._wanted: dict[str, Export] = {}
        self._users: Counter[str] = Counter()
        """By volume, what is being done to it through its node."""
        self._doors: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """By volume: whoever opens, closes, exports it, or needs it closed."""
        self._filled: set[str] = set()
        """Volumes whose data go past the cache of the host when they are opened."""
        self._daemons = 0
        """How many were found or started."""

    def serve(self, daemon: StorageDaemon) -> None:
        """Which daemon it is."""
        self._daemon = daemon

    def want(self, exports: Iterable[Export]) -> None:
        """The exports that the daemon should have whenever it is found or started."""
        self._wanted.update((export.id, export) for export in exports)

    async def adopt(self) -> None:
        """After the daemon was found or started: end what a service that is gone had begun, and bring back the exports
        that it should have."""
        self._daemons += 1
        await self._end_jobs()
        nodes = await self._daemon.command_now("query-named-block-nodes", {"flat": True})
        opened = {each["node-name"] for each in nodes if each["node-name"][0] not in ("#", FILE)}
        there = {export.id: export for export in await self._exports()}
        used = {node_of(export.volume_id) for export in there.values()}
        for node in opened - used:
            try:
                await self._close(node)
            except DaemonRefused as error:
                log.error("a volume cannot be closed", pool=self._pool, node=node, error=str(error))
        for export in self._wanted.values():
            if export.id not in there:
                try:
                    await self._add(export)
                except Retryable:
                    raise
                except KilonovaError as error:
                    log.error("a volume cannot be exported", pool=self._pool, export=export.id, error=str(error))

    async def exports(self) -> list[Export]:
        """Those in the daemon."""
        await self._daemon.alive()
        return await self._exports()

    async def serves(self) -> bool:
        """Whether the daemon has exports now. Raises KilonovaError: it does not say."""
        return bool(await self._daemon.command_now("query-block-exports"))

    async def add_export(self, export: Export) -> None:
        """Raises Conflict: there is one of that id that is another."""
        async with self._doors[export.volume_id]:
            known = next((each for each in await self.exports() if each.id == export.id), None)
            if known is None:
                await self._add(export)
            elif known != export:
                raise Conflict(f"Export {export.id} exists, of another volume or mode.")
            self._wanted[export.id] = export

    async def remove_export(self, export_id: str, *, force: bool) -> None:
        """Raises ExportInUse."""
        known = next((each for each in await self.exports() if each.id == export_id), None)
        if known is None:
            self._wanted.pop(export_id, None)
            return
        async with self._doors[known.volume_id]:
            await self._remove(known, "hard" if force else "safe")
            self._wanted.pop(export_id, None)
            await self._close_if_unused(known.volume_id)

    def begin_filling(self, volume_id: str) -> None:
        """For when it is opened next: nobody who has it open would know how to read and write now."""
        self._filled.add(volume_id)

    async def end_filling(self, volume: VolumeFile) -> None:
        """Now: what holds for data past the cache holds for others, too."""
        async with self._doors[volume.volume_id]:
            self.forget_filling(volume.volume_id)
            try:
                await self._daemon.command("blockdev-reopen", {"options": [self._file(volume)]})
            except DaemonRefused as error:
                if "Failed to find node" not in error.message:  # it is closed
                    raise

    def forget_filling(self, volume_id: str) -> None:
        """A volume that is gone, or closed."""
        self._filled.discard(volume_id)

    @asynccontextmanager
    async def opened(self, volume: VolumeFile) -> AsyncIterator[str]:
        """The name of the node of a volume, which stays open meanwhile."""
        async with self._doors[volume.volume_id]:
            await self._daemon.alive()
            await self._open_node(volume)
            self._users[volume.volume_id] += 1
            daemon = self._daemons
        try:
            yield node_of(volume.volume_id)
        except DaemonRefused as error:
            if daemon != self._daemons:  # another one than that in which the node was opened
                raise Retryable(f"The daemon of storage pool {self._pool} was started again.") from error
            raise
        finally:
            self._users[volume.volume_id] -= 1
            async with self._doors[volume.volume_id]:
                with contextlib.suppress(Retryable):  # a daemon that ended has no nodes, nor will the next one
                    await self._close_if_unused(volume.volume_id)

    @asynccontextmanager
    async def closed(self, volume_id: str, why: str) -> AsyncIterator[None]:
        """Nobody opens a volume meanwhile. Raises Conflict: it is exported."""
        async with self._doors[volume_id]:
            if any(export.volume_id == volume_id for export in await self.exports()):
                raise Conflict(f"Volume {volume_id} is exported and cannot be {why}.", hint="detach it first")
            await self._close_if_unused(volume_id)
            yield

    async def extend(self, volume: VolumeFile, size: int) -> None:
        """Make a volume larger. Its exports must be away for a moment, because each forbids it; size: bytes."""
        async with self.opened(volume) as node, self._doors[volume.volume_id]:
            exports = [export for export in await self.exports() if export.volume_id == volume.volume_id]
            try:
                for export in exports:
                    await self._remove(export, "hard")
                await self._daemon.command("block_resize", {"node-name": node, "size": size})
            finally:
                there = await self.exports()
                for export in exports:
                    if export not in there:
                        await self._add(export)

    async def snapshot(self, volume: VolumeFile, name: str) -> None:
        """Take a snapshot inside a qcow2."""
        async with self.opened(volume) as node:
            await self._daemon.command("blockdev-snapshot-internal-sync", {"device": node, "name": name})

    async def delete_snapshot(self, volume: VolumeFile, name: str) -> None:
        """Remove a snapshot inside a qcow2."""
        async with self.opened(volume) as node:
            await self._daemon.command("blockdev-snapshot-delete-internal-sync", {"device": node, "name": name})

    async def copy(self, volume: VolumeFile, target: Path) -> None:
        """Write what a volume holds at the beginning of the call to a raw file of the same size that is there."""
        copy = f"c{uuid.uuid4().hex[:NODE_DIGITS]}"
        async with self.opened(volume) as node:
            try:
                await self._daemon.command("blockdev-add", {
                    "driver": "raw", "node-name": copy, "discard": "unmap", "detect-zeroes": "unmap",
                    "file": {"driver": "file", "filename": str(target), "discard": "unmap"},
                })
                await self._daemon.command("blockdev-backup", {
                    "job-id": copy, "device": node, "target": copy, "sync": "full", "auto-dismiss": False,
                })
                await self._concluded(copy)
            finally:
                with contextlib.suppress(Retryable):  # jobs and nodes end with the daemon
                    await self._end_job(copy)
                    await self._close(copy)

    async def _concluded(self, job: str) -> None:
        while True:
            found = next((each for each in await self._daemon.command("query-jobs") if each["id"] == job), None)
            if found is None:
                raise Retryable(f"The daemon of storage pool {self._pool} ended while it copied a volume.")
            if found["status"] == "concluded":
                break
            await self._clock.sleep(JOB_POLL)
        if error := found.get("error"):
            if NO_SPACE in error:
                raise StoragePoolFull(self._pool)
            raise KilonovaError(f"Storage pool {self._pool} cannot copy a volume: {error}.")

    async def _end_jobs(self) -> None:
        for job in await self._daemon.command_now("query-jobs"):
            await self._end_job(job["id"])

    async def _end_job(self, job: str) -> None:
        """Cancel it if it runs, and wait until it is gone."""
        deadline = self._clock.monotonic() + GONE_LIMIT
        while True:
            found = next((each for each in await self._daemon.command_now("query-jobs") if each["id"] == job), None)
            if found is None:
                return
            with contextlib.suppress(DaemonRefused):  # it changed just now
                done = found["status"] == "concluded"
                await self._daemon.command_now("job-dismiss" if done else "job-cancel", {"id": job})
            if self._clock.monotonic() > deadline:
                raise Retryable(f"Storage pool {self._pool} does not end copying within {GONE_LIMIT:.0f} s.")
            await self._clock.sleep(POLL)

    async def _exports(self) -> list[Export]:
        found = await self._daemon.command_now("query-block-exports")
        return [_export(each["id"]) for each in found if not each["shutting-down"]]

    async def _add(self, export: Export) -> None:
        """Raises VolumeNotFound."""
        volume = await asyncio.to_thread(self._files.volume, export.volume_id)
        await self._open_node(volume)
        try:
            await self._daemon.command_now("block-export-add", {
                "type": "nbd", "id": _name(export), "name": export.id, "node-name": node_of(export.volume_id),
                "writable": export.writable,
            })
        except DaemonRefused:
            await self._close_if_unused(export.volume_id)
            raise

    async def _remove(self, export: Export, mode: str) -> None:
        try:
            await self._daemon.command("block-export-del", {"id": _name(export), "mode": mode})
        except DaemonRefused as error:
            if "still in use" in error.message:
                raise ExportInUse(export.id) from error
            if "is already shutting down" not in error.message:
                raise
        deadline = self._clock.monotonic() + GONE_LIMIT
        while any(each["id"] == _name(export) for each in await self._daemon.command("query-block-exports")):
            if self._clock.monotonic() > deadline:
                raise Retryable(f"Export {export.id} does not end within {GONE_LIMIT:.0f} s.")
            await self._clock.sleep(POLL)

    async def _open_node(self, volume: VolumeFile) -> None:
        """Through the cache of the host where its file system knows no other way."""
        try:
            await self._open_file(volume)
        except DaemonRefused as error:
            if "O_DIRECT" not in error.message:
                raise
            self.forget_filling(volume.volume_id)
            await self._open_file(volume)

    async def _open_file(self, volume: VolumeFile) -> None:
        try:
            await self._daemon.command_now("blockdev-add", {
                "driver": volume.format, "node-name": node_of(volume.volume_id), "discard": "unmap",
                "file": self._file(volume),
            })
        except DaemonRefused as error:
            if "Duplicate nodes" not in error.message:  # it is open
                raise

    def _file(self, volume: VolumeFile) -> dict[str, object]:
        """How the file of a volume is opened."""
        return {
            "driver": "file", "node-name": FILE + node_of(volume.volume_id)[1:], "filename": str(volume.path),
            "discard": "unmap", "cache": {"direct": volume.volume_id in self._filled},
        }

    async def _close_if_unused(self, volume_id: str) -> None:
        if self._users[volume_id] or any(export.volume_id == volume_id for export in await self._exports()):
            return
        await self._close(node_of(volume_id))

    async def _close(self, node: str) -> None:
        try:
            await self._daemon.command_now("blockdev-del", {"node-name": node})
        except DaemonRefused as error:
            if "Failed to find node" not in error.message:  # it is closed
                raise


def node_of(volume_id: str) -> str:
    """The name of the node of a volume."""
    return f"{VOLUME}{uuid.UUID(volume_id).hex[:NODE_DIGITS]}"


def _name(export: Export) -> str:
    """The id of an export in the daemon, which tells all about it."""
    return f"{'rw' if export.writable else 'ro'}.{export.id}.{export.volume_id}"


def _export(name: str) -> Export:
    mode, export_id, volume_id = name.split(".")
    return Export(id=export_id, volume_id=volume_id, writable=mode == "rw")
