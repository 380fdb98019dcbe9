"""What only the simulated storage pool can be told to do."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from kilonova.domain.clock import SystemClock
from kilonova.domain.errors import Retryable, StoragePoolFull
from kilonova.storage.pool import Export
from kilonova.storage.simulated import SimulatedPool, SimulatedStorage

VOLUME = str(uuid.UUID(int=1))
EXPORT = Export(id=str(uuid.UUID(int=2)), volume_id=VOLUME, writable=True)


def made(capacity: int = 10) -> tuple[SimulatedStorage, SimulatedPool]:
    storage = SimulatedStorage(capacity=capacity)
    return storage, SimulatedPool("pool", storage, SystemClock())


async def test_it_fails_before_the_effect_or_after_it() -> None:
    storage, pool = made()
    storage.faults.fail["create"] = [Retryable("no")]
    with pytest.raises(Retryable):
        await pool.create(VOLUME, 1)
    assert storage.volumes == {}
    storage.faults.lose["create"] = [Retryable("lost")]
    with pytest.raises(Retryable):
        await pool.create(VOLUME, 1)
    assert list(storage.volumes) == [VOLUME]
    await pool.create(VOLUME, 1)


async def test_it_is_full_when_told_or_when_it_is() -> None:
    storage, pool = made(capacity=2)
    await pool.create(VOLUME, 2)
    with pytest.raises(StoragePoolFull):
        await pool.extend(VOLUME, 3)
    storage.faults.full = True
    assert (await pool.capacity()).free == 0
    with pytest.raises(StoragePoolFull):
        await pool.create_snapshot(VOLUME, EXPORT.id)


async def test_it_hangs_until_told_to_go_on() -> None:
    storage, pool = made()
    storage.faults.hang.add("create")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(pool.create(VOLUME, 1), 0.05)
    assert storage.volumes == {}
    storage.faults.hang.clear()
    await pool.create(VOLUME, 1)


async def test_a_daemon_that_died_has_its_exports_again() -> None:
    storage, pool = made()
    await pool.create(VOLUME, 1)
    await pool.add_export(EXPORT)
    storage.kill_daemon()
    assert storage.exports == {}
    assert await pool.exports() == [EXPORT]
