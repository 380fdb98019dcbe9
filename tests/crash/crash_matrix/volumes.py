"""The volume service of the matrix: the embedded one over a pool whose state is a file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec
import sqlalchemy as sa

from crash_matrix.clock import FastClock
from kilonova.cells.registry import Cells
from kilonova.db.database import Database
from kilonova.domain.context import RequestContext
from kilonova.embedded.image.service import EmbeddedImage
from kilonova.embedded.volume import attachments, schema, snapshots, volumes
from kilonova.embedded.volume.client import VolumeClient
from kilonova.embedded.volume.records import Snapshot
from kilonova.embedded.volume.service import EmbeddedVolumes, NewVolume
from kilonova.embedded.volume.states import (
    FAILED,
    MIGRATING,
    SUCCESS,
    TARGET,
    AttachStatus,
    SnapshotStatus,
    VolumeStatus,
)
from kilonova.hypervisor.fake import FakeHypervisor
from kilonova.hypervisor.volumes import NbdSource, VolumeSource
from kilonova.roles.volumes import Deliver, Servers
from kilonova.storage.pool import GIB, Export
from kilonova.storage.simulated import SimulatedPool, SimulatedStorage, SimulatedVolume

POOL = "machine@one#one"
VOLUME, SPARE_VOLUME = "55555555-1111-4555-8555-555555555555", "55555555-2222-4555-8555-555555555555"
"""Volumes of the user's."""
NEW_VOLUME = "55555555-3333-4555-8555-555555555555"
"""The hidden one that the user's is migrated to."""
READY = VolumeStatus.AVAILABLE


class Stored(msgspec.Struct, frozen=True):
    """What a pool has."""

    volumes: dict[str, SimulatedVolume] = {}
    exports: dict[str, Export] = {}


class Storage(SimulatedStorage):
    """Its state is a file, so that it outlives the process."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._file = directory / "pool.json"
        self._written = self._file.read_bytes() if self._file.exists() else b""
        if self._written:
            stored = msgspec.json.decode(self._written, type=Stored)
            self.volumes, self.exports = stored.volumes, stored.exports

    def keep(self) -> None:
        """Write down what has changed."""
        state = msgspec.json.encode(Stored(self.volumes, self.exports))
        if state != self._written:
            temporary = self._file.with_suffix(".new")
            temporary.write_bytes(state)
            temporary.replace(self._file)
            self._written = state

    def served(self, host_of: Callable[[str], str], host: str, source: VolumeSource) -> int | None:
        """How many bytes a volume has, None if it is not served to this host. host_of: by attachment."""
        export = self.exports.get(source.export) if isinstance(source, NbdSource) else None
        if export is None or host_of(export.id) != host:
            return None
        return self.volumes[export.volume_id].size * GIB


class Pool(SimulatedPool):
    """Args: ends: told of each export before it goes."""

    def __init__(self, storage: Storage, clock: FastClock, ends: Callable[[str], Awaitable[None]]) -> None:
        super().__init__(POOL, storage, clock)
        self._kept = storage
        self._ends = ends

    @asynccontextmanager
    async def _call(self, name: str) -> AsyncIterator[None]:
        async with super()._call(name):
            yield
        self._kept.keep()

    async def remove_export(self, export_id: str, *, force: bool = False) -> None:
        await self._ends(export_id)
        await super().remove_export(export_id, force=force)


class Client(VolumeClient):
    """As compute calls a service that waits to hear that guests have seen larger volumes, as Cinder does, that a volume
    was migrated, and that the hypervisor has done its part of a snapshot, which all end with that."""

    def __init__(self, of: EmbeddedVolumes) -> None:
        super().__init__(of)
        self._of = of

    async def extend_completed(self, volume_id: str, *, error: bool) -> None:
        await super().extend_completed(volume_id, error=error)
        await self._end(VolumeStatus.IN_USE)

    async def migration_completed(self, volume_id: str, new_volume_id: str, *, error: bool) -> str:
        def unit(conn: sa.Connection) -> None:
            if volumes.find(conn, new_volume_id) is None:
                return
            if not error:
                attachments.give(conn, new_volume_id, volume_id, 0.0)
            volumes.delete(conn, new_volume_id)
            if not error:
                volumes.change(conn, volume_id, 0.0, name_id=new_volume_id)
            volumes.change(conn, volume_id, 0.0, migration_status=FAILED if error else SUCCESS)
            attachments.follow(conn, volume_id, 0.0)

        await self._of.database.write(unit)
        return volume_id

    async def report_snapshot(self, snapshot_id: str, status: str) -> None:
        await super().report_snapshot(snapshot_id, status)

        def unit(conn: sa.Connection) -> None:
            of = schema.snapshots.c
            if status == "creating":
                taken = schema.snapshots.update().where(of.id == snapshot_id, of.status == SnapshotStatus.CREATING)
                conn.execute(taken.values(status=SnapshotStatus.AVAILABLE))
            elif status == "deleting":
                conn.execute(schema.snapshots.delete().where(of.id == snapshot_id))

        await self._of.database.write(unit)

    async def give_up(self) -> None:
        """It has waited long enough."""
        await self._end(VolumeStatus.ERROR_EXTENDING)

    async def _end(self, status: VolumeStatus) -> None:
        column = schema.volumes.c.status
        waits = schema.volumes.update().where(column == VolumeStatus.EXTENDING).values(status=status)
        await self._of.database.write(lambda conn: conn.execute(waits))


def service(
    database: Database, directory: Path, storage: Storage, clock: FastClock, images: EmbeddedImage, cells: Cells,
    wake: Callable[[str], None], deliver: Deliver, ends: Callable[[str], Awaitable[None]],
) -> EmbeddedVolumes:
    """The service of a cloud. ends: told of each export before it goes."""
    pool, servers = Pool(storage, clock, ends), Servers(cells, clock, wake, deliver)
    return EmbeddedVolumes(database, {POOL: pool}, directory / "volumes", clock, images, servers, poll=1.0)


def uses(hypervisors: Iterable[FakeHypervisor], export: str) -> bool:
    """Whether a running guest has a volume from there."""
    return any(
        isinstance(one.running, NbdSource) and one.running.export == export
        for hypervisor in hypervisors for guest in hypervisor.guests.values() for one in guest.volumes.values()
    )


async def delete_snapshots(of: EmbeddedVolumes, user: RequestContext) -> None:
    """A user deletes all that are there: an image that is complete keeps its snapshots, and they keep a volume from
    going with its server."""
    column = schema.snapshots.c
    there = sa.select(column.id).where(column.status == SnapshotStatus.AVAILABLE)
    for id_ in await of.database.read(lambda conn: conn.execute(there).scalars().all()):
        await of.delete_snapshot(user, id_)


async def make_volumes(of: EmbeddedVolumes, user: RequestContext) -> None:
    """Those of the user."""
    made = [await of.create(user, NewVolume(size=1, id=id_)) for id_ in (VOLUME, SPARE_VOLUME)]
    async with asyncio.timeout(5):
        for one in made:
            while (await of.database.read(partial(volumes.get, id_=one.id))).status is not READY:  # noqa: ASYNC110
                await asyncio.sleep(0.005)


async def begin_migration(of: EmbeddedVolumes) -> None:
    """A volume of the user is to get the data of a hidden one."""
    await of.environment.pool(POOL).create(NEW_VOLUME, 1)

    def unit(conn: sa.Connection) -> None:
        old = volumes.get(conn, VOLUME)
        volumes.insert(conn, msgspec.structs.replace(
            old, id=NEW_VOLUME, name_id=NEW_VOLUME, status=READY, attach_status=AttachStatus.DETACHED,
            migration_status=f"{TARGET}{VOLUME}",
        ))
        volumes.change(conn, VOLUME, old.updated_at, migration_status=MIGRATING)

    await of.database.write(unit)


async def have_taken(of: EmbeddedVolumes, snapshot_id: str, status: SnapshotStatus) -> None:
    """A snapshot of the user's volume that the hypervisor is to take, or to delete."""
    def unit(conn: sa.Connection) -> None:
        volume = volumes.get(conn, VOLUME)
        snapshots.insert(conn, Snapshot(
            id=snapshot_id, volume_id=VOLUME, project_id=volume.project_id, user_id=volume.user_id, size=volume.size,
            status=status,
        ))

    await of.database.write(unit)
