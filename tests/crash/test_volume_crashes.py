"""Every operation of the volume service: killed at every boundary of its journal and at every call of a pool, with
every step failing, and with every call of a pool failing before and after its effect.

The points are found by running each scenario once undisturbed, so that a new step is covered the day it is written.
Nothing may be stuck and nothing may be left behind; a kill may not change how it ends.
"""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from volume_cloud import ADMIN, IMAGE, ONE, SERVER, TWO, USER, VolumeCloud, during

from kilonova.domain.errors import InvalidInput, KilonovaError
from kilonova.embedded.volume import volume_types
from kilonova.embedded.volume.new_volumes import NewVolume
from kilonova.embedded.volume.operations.catalogue import VOLUME_OPERATIONS
from kilonova.embedded.volume.records import VolumeType
from kilonova.services.image import NewImage

Act = Callable[[], Awaitable[object]]
Scenario = Callable[[VolumeCloud], Awaitable[Act]]


async def create(cloud: VolumeCloud) -> Act:
    return lambda: cloud.volumes.create(USER, NewVolume(size=1, image_id=IMAGE, hosts=(ONE,)))


async def clone(cloud: VolumeCloud) -> Act:
    id_ = await cloud.make()
    return lambda: cloud.volumes.create(USER, NewVolume(source_volid=id_))


async def delete(cloud: VolumeCloud) -> Act:
    id_ = await cloud.make()
    await cloud.volumes.create_snapshot(USER, id_)
    await cloud.settle()
    return lambda: cloud.volumes.delete(USER, id_, cascade=True)


async def extend(cloud: VolumeCloud) -> Act:
    id_ = await cloud.make()
    await cloud.attach(id_)
    return lambda: cloud.volumes.extend(USER, id_, 2)


async def create_snapshot(cloud: VolumeCloud) -> Act:
    id_ = await cloud.make()
    return lambda: cloud.volumes.create_snapshot(USER, id_)


async def delete_snapshot(cloud: VolumeCloud) -> Act:
    snapshot = await cloud.volumes.create_snapshot(USER, await cloud.make())
    await cloud.settle()
    return lambda: cloud.volumes.delete_snapshot(USER, snapshot.id)


async def revert(cloud: VolumeCloud) -> Act:
    id_ = await cloud.make()
    snapshot = await cloud.volumes.create_snapshot(USER, id_)
    await cloud.settle()
    return lambda: cloud.volumes.revert(USER, id_, snapshot.id)


async def connect(cloud: VolumeCloud) -> Act:
    held = await cloud.volumes.attachments.create(USER, await cloud.make(), SERVER)
    return lambda: cloud.volumes.attachments.update(USER, held.id, {"host": "h1"})


async def delete_attachment(cloud: VolumeCloud) -> Act:
    held = await cloud.attach(await cloud.make())
    return lambda: cloud.volumes.attachments.delete(USER, held)


async def upload(cloud: VolumeCloud) -> Act:
    id_ = await cloud.make()
    image = NewImage(id=str(uuid.uuid4()), name="copy", owner="p")
    return lambda: cloud.volumes.upload(USER, id_, image)


async def reimage(cloud: VolumeCloud) -> Act:
    id_ = await cloud.make()
    await cloud.volumes.attachments.create(USER, id_, SERVER)
    return lambda: cloud.volumes.reimage(USER, id_, IMAGE, reserved=True)


async def create_backup(cloud: VolumeCloud) -> Act:
    id_ = await cloud.make()
    return lambda: cloud.volumes.create_backup(USER, id_)


async def restore_backup(cloud: VolumeCloud) -> Act:
    id_ = await cloud.make()
    backup = await cloud.volumes.create_backup(USER, id_)
    await cloud.settle()
    return lambda: cloud.volumes.restore_backup(USER, backup.id, volume_id=id_)


async def delete_backup(cloud: VolumeCloud) -> Act:
    backup = await cloud.volumes.create_backup(USER, await cloud.make())
    await cloud.settle()
    return lambda: cloud.volumes.delete_backup(USER, backup.id)


async def retype(cloud: VolumeCloud) -> Act:
    id_ = await cloud.make()
    other = VolumeType(id=str(uuid.uuid4()), name="other")
    await cloud.database.write(lambda conn: volume_types.insert(conn, other))
    return lambda: cloud.volumes.moves.retype(USER, id_, "other")


async def migrate(cloud: VolumeCloud) -> Act:
    id_ = await cloud.make()
    return lambda: cloud.volumes.moves.migrate(ADMIN, id_, TWO, lock=True)


async def migrate_in_use(cloud: VolumeCloud) -> Act:
    id_ = await cloud.make()
    await cloud.attach(id_)
    return lambda: cloud.volumes.moves.migrate(ADMIN, id_, TWO)


async def migrate_in_vain(cloud: VolumeCloud) -> Act:
    cloud.compute.swap_fails = True
    return await migrate_in_use(cloud)


SCENARIOS: dict[str, tuple[str, Scenario]] = {
    "create": ("create volume", create), "clone": ("create volume", clone), "delete": ("delete volume", delete),
    "extend": ("extend volume", extend), "create-snapshot": ("create snapshot", create_snapshot),
    "delete-snapshot": ("delete snapshot", delete_snapshot), "revert": ("revert volume", revert),
    "connect": ("connect attachment", connect), "delete-attachment": ("delete attachment", delete_attachment),
    "upload": ("upload volume", upload), "reimage": ("reimage volume", reimage),
    "create-backup": ("create backup", create_backup), "restore-backup": ("restore backup", restore_backup),
    "delete-backup": ("delete backup", delete_backup), "retype": ("retype volume", retype),
    "migrate": ("migrate volume", migrate), "migrate-in-use": ("migrate volume in use", migrate_in_use),
    "migrate-in-vain": ("migrate volume in use", migrate_in_vain),
}


class Run:
    """One run of a scenario in a cloud of its own."""

    def __init__(self, scenario: Scenario, *, kill_at: int | None = None) -> None:
        self._scenario = scenario
        self._kill_at = kill_at
        self.points: list[str] = []
        self.end: list[str] = []
        self.problems: list[str] = []
        self.faults: Callable[[VolumeCloud], None] = lambda _cloud: None

    async def __call__(self) -> Run:
        directory = Path(tempfile.mkdtemp())
        cloud = VolumeCloud(directory)
        await cloud.start()
        cloud.images.add(b"guest")
        try:
            act = await self._scenario(cloud)
            cloud.points.clear()
            cloud.kill_at = self._kill_at
            self.faults(cloud)
            await during(cloud, act)
            await cloud.settle()
            if cloud.killed.is_set():
                await cloud.restart()
                await cloud.settle()
            self.points = list(cloud.points)
            for storage in cloud.storages.values():
                storage.faults.fail.clear()
                storage.faults.lose.clear()
            self.end, self.problems = await cloud.state(), await cloud.problems()
        finally:
            await cloud.close()
            shutil.rmtree(directory)
        return self


def test_every_operation_has_a_scenario() -> None:
    assert {operation.name for operation in VOLUME_OPERATIONS} == {kind for kind, _ in SCENARIOS.values()}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", SCENARIOS)
async def test_a_kill_changes_nothing(name: str) -> None:
    _, scenario = SCENARIOS[name]
    whole = await Run(scenario)()
    assert whole.problems == []
    assert len(whole.points) > 2
    bad = []
    for number, point in enumerate(whole.points):
        killed = await Run(scenario, kill_at=number)()
        if killed.problems or killed.end != whole.end:
            bad.append((number, point, killed.problems, killed.end))
    assert bad == []


@pytest.mark.timeout(600)
@pytest.mark.parametrize("error", [KilonovaError, InvalidInput, ValueError], ids=["final", "refused", "unexpected"])
@pytest.mark.parametrize("effect", ["before", "after"])
@pytest.mark.parametrize("name", SCENARIOS)
async def test_a_pool_that_fails_leaves_nothing_behind(name: str, effect: str, error: type[Exception]) -> None:
    _, scenario = SCENARIOS[name]
    whole = await Run(scenario)()
    bad = []
    for point in dict.fromkeys(point for point in whole.points if point.startswith("pool/")):
        call = point.split("/")[1]

        def break_(cloud: VolumeCloud, call: str = call) -> None:
            for storage in cloud.storages.values():
                planned = storage.faults.fail if effect == "before" else storage.faults.lose
                planned[call] = [error("It is broken.")]  # type: ignore[list-item]

        run = Run(scenario)
        run.faults = break_
        failed = await run()
        if failed.problems:
            bad.append((call, failed.problems, failed.end))
    assert bad == []
