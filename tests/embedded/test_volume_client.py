"""The embedded volume service as compute calls it: calls that are repeated while the first is still under way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from volume_clients import Clients, in_process
from volume_cloud import SERVER, USER

from kilonova.domain.errors import NotSupported, ServiceUnavailable
from kilonova.embedded.volume import attachments, snapshots, volume_types
from kilonova.embedded.volume.operations.environment import VolumeKeys
from kilonova.embedded.volume.records import Encryption, VolumeType
from kilonova.services.volumes import NewSnapshot, NewVolume

AT_ONCE = 5


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Clients]:
    async with in_process(tmp_path) as clients:
        yield clients


async def test_calls_at_once_make_one_volume(here: Clients) -> None:
    new = NewVolume(key="k", size=1)
    made = await asyncio.gather(*(here.client.create_volume(USER, new) for _ in range(AT_ONCE)))
    assert len({one.id for one in made}) == 1
    await here.cloud.settle()
    assert sum(len(storage.volumes) for storage in here.cloud.storages.values()) == 1


async def test_calls_at_once_take_one_snapshot(here: Clients) -> None:
    id_ = await here.cloud.make()
    new = NewSnapshot(key="k", volume_id=id_)
    taken = await asyncio.gather(*(here.client.create_snapshot(USER, new) for _ in range(AT_ONCE)))
    assert len({one.id for one in taken}) == 1
    await here.cloud.settle()
    assert len(await here.cloud.database.read(lambda conn: snapshots.of_volume(conn, id_))) == 1


@pytest.mark.spec("EMV-15")
async def test_calls_at_once_make_one_attachment(here: Clients) -> None:
    id_ = await here.cloud.make()
    made = await asyncio.gather(*(
        here.client.create_attachment(id_, SERVER, (), connector={"host": "h1"}) for _ in range(AT_ONCE)
    ))
    assert len({one.id for one in made}) == 1
    assert len(await here.cloud.database.read(lambda conn: attachments.of_volume(conn, id_))) == 1


async def test_a_pool_that_restarts_ends_no_call(here: Clients) -> None:
    id_ = await here.cloud.make()
    made = await here.client.create_attachment(id_, SERVER, ())
    here.cloud.storages["machine@one#one"].faults.fail = {"remove_export": [ServiceUnavailable("The pool restarts.")]}
    await here.client.update_attachment(made.id, {"host": "h1"})
    await here.client.delete_attachment(made.id)  # the operation tries again by itself
    assert await here.client.attachments(SERVER) == []


@pytest.mark.spec("EMV-45")
async def test_an_encrypted_volume_has_a_passphrase(here: Clients) -> None:
    await here.cloud.database.write(lambda conn: volume_types.insert(conn, VolumeType(id="t" * 36, name="secret")))
    how = Encryption(id="e" * 36, type_id="t" * 36, provider="luks", key_size=256)
    await here.cloud.database.write(lambda conn: volume_types.set_encryption(conn, how))
    id_ = await here.cloud.make(volume_type="secret")
    key = (await here.cloud.get(id_)).encryption_key_id or ""
    assert await here.client.passphrase(id_) == VolumeKeys(b"k" * 32).passphrase(key)
    here.cloud.keys = None
    await here.cloud.restart()
    with pytest.raises(NotSupported):
        await type(here.client)(here.cloud.volumes).passphrase(id_)
