"""The audit of volumes: what a pool has and what is recorded, compared and healed."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from volume_cloud import ONE, SERVER, USER, VolumeCloud

from kilonova.audit.differences import Kind
from kilonova.audit.volumes import EmbeddedVolumeLedger, compare_volumes
from kilonova.embedded.volume.new_volumes import NewVolume
from kilonova.storage.pool import Export
from kilonova.storage.simulated import SimulatedSnapshot, SimulatedStorage, SimulatedVolume

STRAY = str(uuid.uuid4())


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[VolumeCloud]:
    made = VolumeCloud(tmp_path)
    await made.start()
    yield made
    await made.close()


async def kinds(cloud: VolumeCloud) -> list[Kind]:
    return [one.kind for one in (await EmbeddedVolumeLedger(cloud.volumes).volumes_found()).differences]


def stray_data(storage: SimulatedStorage, _volume: str, _export: str) -> None:
    storage.volumes[STRAY] = SimulatedVolume(size=1, snapshots={STRAY: SimulatedSnapshot(1, b"")})


def stray_snapshot(storage: SimulatedStorage, volume: str, _export: str) -> None:
    storage.volumes[volume].snapshots[STRAY] = SimulatedSnapshot(1, b"")


def stray_export(storage: SimulatedStorage, volume: str, _export: str) -> None:
    storage.exports[STRAY] = Export(id=STRAY, volume_id=volume, writable=True)


@pytest.mark.parametrize(("spoil", "kind"), [
    (stray_data, Kind.VOLUME_DATA_LEFT), (stray_snapshot, Kind.VOLUME_SNAPSHOT_LEFT),
    (stray_export, Kind.VOLUME_EXPORT_LEFT),
])
async def test_what_belongs_to_nothing_is_found_and_removed(
    cloud: VolumeCloud, spoil: Callable[[SimulatedStorage, str, str], None], kind: Kind
) -> None:
    volume = await cloud.make()
    await cloud.volumes.create_snapshot(USER, volume)
    await cloud.settle()
    export = await cloud.attach(volume)
    ledger = EmbeddedVolumeLedger(cloud.volumes)
    assert await kinds(cloud) == []
    spoil(cloud.storages[ONE], volume, export)
    (found,) = (await ledger.volumes_found()).differences
    assert (found.kind, found.host, found.heals) == (kind, ONE, True)
    assert await ledger.settle(found)
    assert await kinds(cloud) == []
    assert not await ledger.settle(found)
    assert await cloud.problems() == []


async def test_what_is_lost_is_found_and_served_again_if_it_can_be(cloud: VolumeCloud) -> None:
    volume = await cloud.make()
    snapshot = await cloud.volumes.create_snapshot(USER, volume)
    await cloud.settle()
    export, ledger, storage = await cloud.attach(volume), EmbeddedVolumeLedger(cloud.volumes), cloud.storages[ONE]
    await cloud.volumes.environment.pool(ONE).close()
    storage.exports.clear()
    (found,) = (await ledger.volumes_found()).differences
    assert (found.kind, found.object) == (Kind.VOLUME_EXPORT_MISSING, export)
    assert await ledger.settle(found)
    assert storage.exports.keys() == {export}
    del storage.volumes[volume].snapshots[snapshot.id]
    assert await kinds(cloud) == [Kind.VOLUME_SNAPSHOT_MISSING]
    storage.volumes.clear()
    assert await kinds(cloud) == [Kind.VOLUME_DATA_MISSING]
    (lost,) = (await ledger.volumes_found()).differences
    assert not lost.heals
    assert "backup" in lost.advice


async def test_nothing_is_called_left_over_while_an_operation_goes_on(cloud: VolumeCloud) -> None:
    faults = cloud.storages[ONE].faults
    faults.hang.add("create")
    await cloud.volumes.create(USER, NewVolume(size=1, hosts=(ONE,)))
    cloud.storages[ONE].volumes[STRAY] = SimulatedVolume(size=1)
    assert await kinds(cloud) == []
    faults.hang.clear()
    await cloud.settle()
    assert await kinds(cloud) == [Kind.VOLUME_DATA_LEFT]


async def test_an_attachment_of_a_server_that_is_gone_is_found(cloud: VolumeCloud) -> None:
    attachment = await cloud.attach(await cloud.make())
    found = await EmbeddedVolumeLedger(cloud.volumes).volumes_found()
    for servers, expected in (({SERVER: None}, []), ({}, [(Kind.ATTACHMENT_WITHOUT_SERVER, attachment, SERVER)])):
        look = SimpleNamespace(volumes=found, servers=servers, requests={})
        assert [(one.kind, one.object, one.subject) for one in compare_volumes(look)] == expected
    assert list(compare_volumes(SimpleNamespace(volumes=None, servers={}, requests={}))) == []
