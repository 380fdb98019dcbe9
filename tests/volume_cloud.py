"""A volume service for tests: the real one over two simulated pools, with stand-ins for images and compute.

It can be killed at every boundary of its journal and at every call of a pool, and told what must hold at rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import sqlalchemy as sa

from kilonova.db.database import Database
from kilonova.domain.clock import SystemClock
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import Fenced, ImageNotFound, KilonovaError
from kilonova.domain.image import Image
from kilonova.domain.operation import TERMINAL, OperationRecord, OperationState
from kilonova.embedded.volume import attachments, messages, schema, volume_types, volumes
from kilonova.embedded.volume.new_volumes import NewVolume
from kilonova.embedded.volume.operations.environment import VolumeKeys
from kilonova.embedded.volume.records import Volume
from kilonova.embedded.volume.service import EmbeddedVolumes, recorded_exports
from kilonova.embedded.volume.states import AttachStatus, BackupStatus, SnapshotStatus, VolumeStatus
from kilonova.services.image import NewImage
from kilonova.storage.simulated import SimulatedPool, SimulatedStorage

ONE, TWO = "machine@one#one", "machine@two#two"
USER = RequestContext(request_id="req-u", user_id="u", project_id="a" * 32, roles=("member",))
ADMIN = RequestContext(request_id="req-a", user_id="root", project_id="c" * 32, roles=("admin",), is_admin=True)
SERVER, OTHER_SERVER = str(uuid.uuid4()), str(uuid.uuid4())
IMAGE = "11111111-2222-3333-4444-555555555555"
LIMIT = 20.0

AT_REST = {
    *(VolumeStatus(s) for s in ("available", "reserved", "attaching", "in-use", "awaiting-transfer")),
    *(s for s in VolumeStatus if s.value.startswith("error")),
}


class Killed(Fenced):
    """The process is gone."""


class Images:
    """Images in memory, as files where they have data."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        self.images: dict[str, Image] = {}
        self.refuse: list[KilonovaError] = []

    def add(self, content: bytes, **more: Any) -> None:
        (self.directory / IMAGE).write_bytes(content)
        self.images[IMAGE] = Image(**{
            "id": IMAGE, "name": "cirros", "disk_format": "raw", "size": len(content), "checksum": "c",
            "properties": {"os_distro": "cirros"},
        } | more)

    async def show(self, _context: RequestContext | None, image_id: str) -> Image:
        if image_id not in self.images:
            raise ImageNotFound(image_id)
        return self.images[image_id]

    async def data(self, image_id: str) -> AsyncIterator[bytes]:
        yield (self.directory / image_id).read_bytes()

    def local_path(self, _image_id: str) -> Path | None:
        return None

    async def create(self, new: NewImage) -> None:
        self.images.setdefault(new.id, Image(
            id=new.id, name=new.name, status="queued", disk_format=new.disk_format, properties=new.properties
        ))

    async def upload(self, image_id: str, data: AsyncIterator[bytes]) -> None:
        if self.refuse:
            raise self.refuse.pop()
        content = b"".join([chunk async for chunk in data])
        (self.directory / image_id).write_bytes(content)
        self.images[image_id] = msgspec.structs.replace(self.images[image_id], status="active", size=len(content))

    async def backups(self, _owner: str, _instance: str, _backup_type: str) -> list[Image]:
        return []

    async def delete(self, image_id: str) -> None:
        self.images.pop(image_id, None)


class Compute:
    """Servers that obey: they hear events, and swap volumes as a real compute service does."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, str, str, str]] = []
        self.refuse: KilonovaError | None = None
        self.swap_fails = False
        self.swap_refused: KilonovaError | None = None
        self.uses: set[str] = set()
        self.service: EmbeddedVolumes | None = None
        self.swaps: dict[asyncio.Task[None], tuple[str, str, str]] = {}
        """Those that go on."""

    async def tell(self, event: str, server: str, *, volume: str, status: str = "completed") -> None:
        if self.refuse is not None:
            raise self.refuse
        self.heard.append((event, server, volume, status))

    async def holds(self, _server: str, _volume: str, attachment: str) -> bool:
        return attachment in self.uses

    async def swap_volume(self, server: str, old: str, new: str) -> None:
        if self.swap_refused is not None:
            raise self.swap_refused
        if (server, old, new) not in self.swaps.values():
            self._begin(server, old, new)

    def _begin(self, *swap: str) -> None:
        server, old, new = swap
        task = asyncio.create_task(self._swap(server, old, new))
        self.swaps[task] = (server, old, new)
        task.add_done_callback(lambda ended: self.swaps.pop(ended, None))

    def service_died(self) -> None:
        """What was asked of it gets no answer, and is asked again of the next one."""
        for task, swap in list(self.swaps.items()):
            task.cancel()
            del self.swaps[task]
            self._begin(*swap)

    async def _swap(self, server: str, old: str, new: str) -> None:
        """The order of calls of the contract. What meets a killed service is tried again."""
        while True:
            service = self.service
            assert service is not None
            with contextlib.suppress(KilonovaError):
                await self._swap_once(service, server, old, new)
                return
            if await self._over(old, new):
                return
            await asyncio.sleep(0.02)

    async def _over(self, old: str, new: str) -> bool:
        assert self.service is not None
        return await self.service.database.read(lambda conn: volumes.find(conn, new)) is None

    async def _swap_once(self, service: EmbeddedVolumes, server: str, old: str, new: str) -> None:
        attaching = service.attachments
        await attaching.begin_detaching(USER, old)
        held = await service.database.read(lambda conn: attachments.of_volume(conn, new))
        if self.swap_fails:
            for one in held:
                await attaching.delete(USER, one.id)
            await attaching.roll_detaching(USER, old)
            await service.moves.complete(USER, old, new, error=True)
            return
        made = held[0] if held else await attaching.create(USER, new, server)
        await attaching.update(USER, made.id, {"host": "h1"})
        await attaching.complete(USER, made.id)
        for one in await service.database.read(lambda conn: attachments.of_volume(conn, old)):
            await attaching.delete(USER, one.id)
        assert await service.moves.complete(USER, old, new, error=False) == old


class WatchedPool(SimulatedPool):
    """Tells of every call before and after it, so that the process can end there."""

    here: Callable[[str], None]

    @contextlib.asynccontextmanager
    async def _call(self, name: str) -> AsyncIterator[None]:
        self.here(f"pool/{name}/before")
        async with super()._call(name):
            yield
        self.here(f"pool/{name}/after")


class VolumeCloud:
    """Its database is in memory and outlives its processes.

    Args: kill_at: the point at which the process ends, by its number in the run; None for never.
    """

    def __init__(self, directory: Path, *, keys: bool = True) -> None:
        self.directory = directory
        self.database = Database.open("sqlite://")
        self.storages = {ONE: SimulatedStorage(capacity=100), TWO: SimulatedStorage(capacity=90, write_through=True)}
        self.images = Images(directory / "images")
        self.compute = Compute()
        self.keys = VolumeKeys(b"k" * 32) if keys else None
        self.default_type = volume_types.DEFAULT
        self.points: list[str] = []
        self.kill_at: int | None = None
        self.killed = asyncio.Event()
        self.clock = SystemClock()

    async def start(self) -> EmbeddedVolumes:
        """A new process over what is there."""
        self.killed = asyncio.Event()
        pools: dict[str, Any] = {}
        for host, storage in self.storages.items():
            pools[host] = WatchedPool(host, storage, self.clock)
            pools[host].here = self._here
        self.volumes = self.compute.service = EmbeddedVolumes(
            self.database, pools, self.directory / "service", self.clock, self.images, self.compute, self.keys,
            default_type=self.default_type, random=Random(), poll=0.02, checkpoint=self._here,
        )
        await self.volumes.start()
        return self.volumes

    def _here(self, point: str) -> None:
        if self.killed.is_set():
            raise Killed("The process is gone.")
        self.points.append(point)
        if self.kill_at is not None and len(self.points) == self.kill_at + 1:
            self.killed.set()
            raise Killed(f"The process ends at {point}.")

    async def restart(self) -> None:
        """The process dies and another one starts. A dead process takes nothing with it but its memory."""
        self.killed.set()
        await self.volumes.work.runner.close()
        self.kill_at = None
        await self.start()
        self.compute.service_died()

    async def close(self) -> None:
        for task in tuple(self.compute.swaps):
            task.cancel()
        await self.volumes.work.runner.close()
        await self.database.close()

    async def settle(self) -> None:
        """Wait until no operation is left, or the process is gone."""
        async with asyncio.timeout(LIMIT):
            while not self.killed.is_set() and await self._busy():  # noqa: ASYNC110 - a database
                await asyncio.sleep(0.005)

    async def reached(self, point: str) -> None:
        """Wait until the process is there."""
        async with asyncio.timeout(LIMIT):
            while point not in self.points:  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.005)

    async def _busy(self) -> bool:
        """Also after the end of an operation is written, until its driver has passed its last checkpoint."""
        return bool(await self.active() or self.compute.swaps or self.volumes.work.runner._drivers)

    async def active(self) -> list[OperationRecord]:
        states = [state for state in OperationState if state not in TERMINAL]
        return await self.database.read(lambda conn: schema.journal.select(conn, states=states))

    # --- what users do ---------------------------------------------------------------------------

    async def make(self, size: int = 1, host: str = ONE, **more: Any) -> str:
        made = await self.volumes.create(USER, NewVolume(size=size, hosts=(host,), **more))
        await self.settle()
        return made.id

    async def attach(self, volume_id: str, server: str = SERVER) -> str:
        made = await self.volumes.attachments.create(USER, volume_id, server, connector={"host": "h1"})
        await self.volumes.attachments.complete(USER, made.id)
        return made.id

    async def get(self, volume_id: str) -> Volume:
        return await self.database.read(lambda conn: volumes.get(conn, volume_id))

    async def find(self, volume_id: str) -> Volume | None:
        return await self.database.read(lambda conn: volumes.find(conn, volume_id))

    async def told(self, resource_id: str) -> list[str]:
        found = await self.database.read(lambda conn: messages.of_resource(conn, resource_id))
        return [one.user_message for one in found]

    # --- what must hold --------------------------------------------------------------------------

    async def state(self) -> list[str]:
        """All there is, without ids and times."""
        def read(conn: sa.Connection) -> list[str]:
            v, s, a, b = schema.volumes.c, schema.snapshots.c, schema.attachments.c, schema.backups.c
            return sorted(
                " ".join(map(str, row))
                for query in (
                    sa.select(sa.literal("volume"), v.status, v.size, v.host, v.attach_status, v.migration_status,
                              v.bootable, v.previous_status),
                    sa.select(sa.literal("snapshot"), s.status, s.size, s.progress),
                    sa.select(sa.literal("attachment"), a.status, a.mode, a.connector.is_not(None),
                              a.connection.is_not(None)),
                    sa.select(sa.literal("backup"), b.status, b.size),
                )
                for row in conn.execute(query)
            )

        return await self.database.read(read) + sorted(image.status for image in self.images.images.values())

    async def problems(self) -> list[str]:
        """What is stuck, and what was left behind."""
        found = [f"{one.kind} is {one.state.value}: {[e.step for e in one.entries]}" for one in await self.active()]
        rows = await self.database.read(lambda conn: conn.execute(sa.select(schema.volumes)).all())
        kept = [Volume(**row._mapping) for row in rows]
        found += [f"volume {one.id} is {one.status.value}" for one in kept if one.status not in AT_REST]
        found += [f"volume {one.id} is a target" for one in kept if one.migration_target_of]
        found += [f"volume {one.id} migrates" for one in kept if one.migration_status in ("starting", "migrating")]
        s, b = schema.snapshots.c, schema.backups.c
        snapshots = await self.database.read(lambda conn: conn.execute(sa.select(s.id, s.volume_id, s.status)).all())
        found += [f"snapshot is {status.value}" for _, _, status in snapshots
                  if status not in (SnapshotStatus.AVAILABLE, SnapshotStatus.ERROR, SnapshotStatus.ERROR_DELETING)]
        backups = await self.database.read(lambda conn: conn.execute(sa.select(b.id, b.status)).all())
        files = {path.name for path in (self.directory / "service" / "backups").glob("*")}
        found += [f"backup file {name}" for name in files - {id_ for id_, _ in backups}]
        found += [f"backup is {status.value}" for id_, status in backups
                  if status not in (BackupStatus.AVAILABLE, BackupStatus.ERROR, BackupStatus.ERROR_DELETING)]
        found += [f"no file of backup {id_}" for id_, status in backups
                  if status is BackupStatus.AVAILABLE and id_ not in files]
        staged = list((self.directory / "service" / "staging").glob("*"))
        found += [f"staged {path.name}" for path in staged]
        found += [f"image is {image.status}" for image in self.images.images.values() if image.status != "active"]
        exports = await self.database.read(recorded_exports)
        a = schema.attachments.c
        failed = sa.select(a.id).where(a.status == AttachStatus.ERROR_DETACHING)
        unsure = set(await self.database.read(lambda conn: conn.execute(failed).scalars().all()))
        for host, storage in self.storages.items():
            wanted = {one.name_id: one for one in kept if one.host == host}
            sure = {name for name, one in wanted.items() if one.status is not VolumeStatus.ERROR_DELETING}
            found += [f"data {name} without a volume in {host}" for name in storage.volumes.keys() - wanted.keys()]
            found += [f"volume {name} without data in {host}" for name in sure - storage.volumes.keys()]
            for name, data in storage.volumes.items():
                if name in wanted:
                    own = {id_ for id_, of, _ in snapshots if of == wanted[name].id}
                    found += [f"snapshot {one} of nothing" for one in data.snapshots.keys() - own]
                    if data.size != wanted[name].size and wanted[name].status is not VolumeStatus.ERROR_EXTENDING:
                        found.append(f"{name} has {data.size} GiB, not {wanted[name].size}")
            should = {one.id: one for one in exports.get(host, [])}
            open_ = {id_: one for id_, one in should.items() if id_ in unsure and id_ not in storage.exports}
            if storage.exports | open_ != should:
                found.append(f"exports of {host} are {storage.exports}, not {should}")
        return found


async def during(cloud: VolumeCloud, act: Callable[[], Awaitable[object]]) -> None:
    """Let a user act; when the process dies meanwhile, the user gives up."""
    task = asyncio.ensure_future(act())
    killed = asyncio.create_task(cloud.killed.wait())
    await asyncio.wait({task, killed}, return_when=asyncio.FIRST_COMPLETED)
    killed.cancel()
    if not task.done():
        task.cancel()
    with contextlib.suppress(KilonovaError, asyncio.CancelledError):
        await task
