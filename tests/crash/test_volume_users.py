"""Many users of one volume service at once, and a process that dies now and then: nothing is stuck, nothing leaks."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import pytest
import sqlalchemy as sa
from volume_cloud import ADMIN, IMAGE, ONE, OTHER_SERVER, SERVER, TWO, USER, VolumeCloud

from kilonova.domain.errors import KilonovaError
from kilonova.embedded.volume import quotas, schema
from kilonova.embedded.volume.new_volumes import NewVolume
from kilonova.services.image import NewImage

USERS, ACTS, LIVES = 5, 14, 4


class Users:
    """They do what comes to their minds with whatever is there."""

    def __init__(self, cloud: VolumeCloud, random: Random) -> None:
        self._cloud = cloud
        self._random = random

    async def _any(self, table: sa.Table) -> str:
        found = await self._cloud.database.read(lambda conn: conn.execute(sa.select(table.c.id)).scalars().all())
        return self._random.choice(sorted(found) or [str(uuid.uuid4())])

    async def act(self) -> None:
        service, random = self._cloud.volumes, self._random
        volume, snapshot = await self._any(schema.volumes), await self._any(schema.snapshots)
        attachment, backup = await self._any(schema.attachments), await self._any(schema.backups)
        server, host = random.choice([SERVER, OTHER_SERVER]), random.choice([ONE, TWO])
        acts: list[Callable[[], Awaitable[object]]] = [
            lambda: service.create(USER, NewVolume(size=1, image_id=random.choice([None, IMAGE]))),
            lambda: service.create(USER, NewVolume(source_volid=volume)),
            lambda: service.create(USER, NewVolume(snapshot_id=snapshot)),
            lambda: service.delete(USER, volume, cascade=random.random() < 0.5),
            lambda: service.extend(USER, volume, random.randint(1, 4)),
            lambda: service.create_snapshot(USER, volume, force=True),
            lambda: service.delete_snapshot(USER, snapshot),
            lambda: service.revert(USER, volume, snapshot),
            lambda: service.attachments.create(USER, volume, server),
            lambda: service.attachments.create(USER, volume, server, connector={"host": "h"}),
            lambda: service.attachments.update(USER, attachment, {"host": "h"}),
            lambda: service.attachments.complete(USER, attachment),
            lambda: service.attachments.delete(USER, attachment),
            lambda: service.upload(USER, volume, NewImage(id=str(uuid.uuid4()), name="i", owner="p"), force=True),
            lambda: service.create_backup(USER, volume, force=True),
            lambda: service.restore_backup(USER, backup, volume_id=volume),
            lambda: service.delete_backup(USER, backup),
            lambda: service.moves.migrate(ADMIN, volume, host),
        ]
        with contextlib.suppress(KilonovaError):
            await random.choice(acts)()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(6))
async def test_nothing_is_stuck_and_nothing_leaks(tmp_path: Path, seed: int) -> None:
    cloud, random = VolumeCloud(tmp_path), Random(seed)
    await cloud.start()
    cloud.images.add(b"guest")
    await cloud.database.write(lambda conn: quotas.set_limits(conn, USER.project_id or "", dict.fromkeys(
        ("volumes", "snapshots", "backups"), 1000
    )))
    for _ in range(4):
        await cloud.volumes.create_snapshot(USER, await cloud.make())
        await cloud.attach(await cloud.make())
    users = Users(cloud, random)

    async def user() -> None:
        for _ in range(ACTS):
            await users.act()

    for _ in range(LIVES):
        cloud.kill_at = len(cloud.points) + random.randint(20, 200)
        everybody = asyncio.gather(*(user() for _ in range(USERS)))
        killed = asyncio.create_task(cloud.killed.wait())
        await asyncio.wait({everybody, killed}, return_when=asyncio.FIRST_COMPLETED)
        killed.cancel()
        everybody.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await everybody
        await cloud.restart()
        await cloud.settle()
        assert await cloud.problems() == []
    done = await cloud.database.read(lambda conn: schema.journal.select(conn, limit=1000))
    assert len({record.kind for record in done}) >= 5
    await cloud.close()
