"""Operations of volumes beside those of servers: in the control API, and in what `kilonova ops` shows."""

from __future__ import annotations

import asyncio
import os
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa

from kilonova.cli.operations import Operations, describe
from kilonova.control.documents import OperationView, Status
from kilonova.domain.operation import Asker, Entry, EntryState, Failure, OperationRecord, OperationState
from kilonova.embedded.volume import schema
from kilonova.embedded.volume.operations.extend import EXTEND, ExtendVolume
from kilonova.hypervisor.libvirt.account import closed_to_guests
from tests.control_cloud import ControlCloud, cloud_with_pool, control_cloud, end_daemon, until


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[ControlCloud]:
    async with cloud_with_pool(tmp_path) as running:
        yield running


async def test_operations_of_volumes_stand_among_those_of_servers(cloud: ControlCloud) -> None:
    server, volume = await cloud.server(), await cloud.volume()
    (create,) = await cloud.operations(f"subject={volume}")
    assert (create.kind, create.about, create.journal, create.state) == (
        "create volume", "volume", "volumes", "succeeded")
    assert [step.state for step in create.steps] == ["done"] * len(create.steps) and create.steps
    listed = {(one.about, one.subject) for one in await cloud.operations()}
    assert listed == {("server", server.id), ("volume", volume)}
    assert f"volume   {volume}" in describe(create)


async def test_operations_of_volumes_are_followed(cloud: ControlCloud) -> None:
    source = Operations(Path(cloud.state.data_dir))

    def follow(asked: asyncio.Event) -> OperationView:
        for name, changed in source.follow():
            if name == "now":
                loop.call_soon_threadsafe(asked.set)
            elif changed is not None and changed.finished_at is not None:
                return changed
        raise AssertionError("The stream has ended.")

    loop, begun = asyncio.get_running_loop(), asyncio.Event()
    following = asyncio.create_task(asyncio.to_thread(follow, begun))
    await begun.wait()
    volume = await cloud.volume()
    async with asyncio.timeout(30):
        told = await following
    assert (told.about, told.subject, told.state) == ("volume", volume, "succeeded")


async def test_a_stranded_operation_of_a_volume_can_be_settled(cloud: ControlCloud) -> None:
    volume = await cloud.volume()
    failure = Failure(kind="KilonovaError", message="the pool is on fire")
    step = EXTEND.steps[0].name
    record = OperationRecord(
        id=str(uuid.uuid4()), kind=EXTEND.name, version=EXTEND.version, subject=volume, asker=Asker(),
        state=OperationState.STRANDED, exclusive=True, created_at=1.0, updated_at=1.0, failure=failure,
        request=msgspec.Raw(msgspec.json.encode(ExtendVolume(2, True))),
        entries=(Entry(step=step, state=EntryState.DONE), Entry(step=step, undo=True, failure=failure)),
    )

    def plant(conn: sa.Connection) -> None:
        schema.journal.insert(conn, record, wake_at=None)

    await cloud.database.write(plant)
    assert (await cloud.get("/status", Status)).operations == {"stranded": 1}
    assert "on fire" in (await cloud.operation(record.id)).waits_for
    skipped = await cloud.post(f"/operations/{record.id}/skip", None, OperationView)
    assert skipped.about == "volume"

    async def ended() -> OperationView | None:
        found = await cloud.operation(record.id)
        return found if found.finished_at is not None else None

    assert (await until(ended)).state == "failed"


@pytest.fixture
def careful() -> Iterator[Path]:
    """A directory that all may pass, while this process closes to others what it makes."""
    with tempfile.TemporaryDirectory(prefix="kn-", dir="/var/tmp") as made:
        Path(made).chmod(0o711)
        before = os.umask(0o077)
        yield Path(made)
        os.umask(before)


async def test_guests_can_pass_to_the_socket_of_a_pool_in_the_data_directory(careful: Path) -> None:
    pool = careful / "c" / "volumes" / "one"
    try:
        async with control_cloud(careful, options={"volume.pool": [{"name": "one"}]}, name="c"):
            assert closed_to_guests(pool / "nbd.sock") is None
    finally:
        end_daemon(pool)
