"""The audit: what operations of earlier days, or other hands, have left beside servers that need it no more."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa

from kilonova.db import console_tokens, instances, secrets
from kilonova.db.outbox import api_outbox, cell_outbox
from kilonova.db.placement.tables import allocations, consumers, inventories, providers
from kilonova.domain.console import ConsoleAddress, ConsoleToken
from kilonova.domain.notification import Notification
from kilonova.domain.states import PowerState, VmState
from kilonova.hypervisor.fake import FakeDisks
from kilonova.hypervisor.fake_state import Sizes
from tests.control_cloud import ControlCloud, control_cloud, kinds

IMAGE = "33333333-3333-4333-8333-333333333333"
BESIDE = {
    "rescue-left": {"rescue": IMAGE},
    "resize-left": {"kept": {"a-migration": Sizes(root_gib=1)}},
    "disks-put-aside": {"old": FakeDisks(IMAGE, 0)},
    "snapshot-left": {"snapshots": (IMAGE,)},
}
MESSAGE = Notification(
    message_id=IMAGE, subject="s", event_type="instance.pause.end", priority="INFO", publisher_id="p", timestamp="",
    payload={},
)


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[ControlCloud]:
    async with control_cloud(tmp_path) as running:
        yield running


async def test_what_lies_beside_the_disks_of_a_server_is_removed(cloud: ControlCloud) -> None:
    server = await cloud.server()
    hypervisor = cloud.hypervisor(server.host)
    before = hypervisor.guests[server.id]
    planted = {name: value for left in BESIDE.values() for name, value in left.items()}
    hypervisor.keep(msgspec.structs.replace(before, **planted))
    assert kinds(await cloud.audit()) == [(kind, server.id) for kind in BESIDE]
    healing = await cloud.heal()
    assert healing.after.clean
    assert hypervisor.guests[server.id] == before
    (operation,) = {one.operation for one in healing.healed}
    assert operation is not None
    journaled = await cloud.operation(operation)
    assert (journaled.kind, journaled.state, journaled.subject) == ("tidy", "succeeded", server.id)


@pytest.mark.parametrize("state", [VmState.RESCUED, VmState.RESIZED, VmState.ERROR])
async def test_what_a_server_may_need_is_no_leak(cloud: ControlCloud, state: VmState) -> None:
    server = await cloud.server()
    hypervisor = cloud.hypervisor(server.host)
    hypervisor.keep(msgspec.structs.replace(hypervisor.guests[server.id], rescue=IMAGE, kept={"m": Sizes(root_gib=1)}))
    await cloud.database.write(lambda conn: instances.update(conn, server.id, now=1.0, vm_state=state))
    assert (await cloud.audit()).clean


async def test_a_rescue_disk_in_use_stays_until_the_guest_is_started_from_its_own(cloud: ControlCloud) -> None:
    server = await cloud.server()
    hypervisor = cloud.hypervisor(server.host)
    hypervisor.keep(msgspec.structs.replace(hypervisor.guests[server.id], rescue=IMAGE, rescued=True))
    assert kinds((await cloud.heal()).after) == [("rescue-left", server.id)]
    assert hypervisor.guests[server.id].power_state is PowerState.RUNNING
    hypervisor.keep(msgspec.structs.replace(hypervisor.guests[server.id], rescued=False))
    assert (await cloud.heal()).after.clean


async def test_what_a_move_still_holds_is_given_back(cloud: ControlCloud) -> None:
    server = await cloud.server()
    migration = str(uuid.uuid4())

    def plant(conn: sa.Connection) -> None:
        provider = conn.execute(sa.select(providers.c.id).where(providers.c.name == server.host)).scalar_one()
        conn.execute(sa.insert(consumers).values(
            uuid=migration, project_id="p", user_id="u", type="MIGRATION", generation=1, instance=server.id
        ))
        conn.execute(sa.insert(allocations).values(
            consumer=migration, provider_id=provider, resource_class="VCPU", used=3
        ))
        conn.execute(sa.update(inventories).where(
            inventories.c.provider_id == provider, inventories.c.resource_class == "VCPU"
        ).values(used=inventories.c.used + 3))

    await cloud.database.write(plant)
    assert kinds(await cloud.audit()) == [("allocation-left", migration)]
    assert (await cloud.heal()).after.clean
    await cloud.database.write(plant)
    await cloud.database.write(lambda conn: instances.update(conn, server.id, now=1.0, vm_state=VmState.RESIZED))
    assert (await cloud.audit()).clean


async def test_rows_of_servers_that_are_gone_are_deleted(cloud: ControlCloud) -> None:
    server, gone = await cloud.server(), str(uuid.uuid4())
    right = ConsoleToken(
        instance_uuid=gone, type="novnc", compute_host=server.host, address=ConsoleAddress(host="127.0.0.1", port=1),
        access_url_base="http://127.0.0.1", expires_at=4e9,
    )

    def plant(conn: sa.Connection) -> None:
        for owner in (server.id, gone):
            secrets.insert(conn, owner, "disks", "u", "sealed", now=1.0)
            token = msgspec.structs.replace(right, instance_uuid=owner)
            console_tokens.insert(conn, f"token of {owner}", token, now=1.0)

    await cloud.database.write(plant)
    assert kinds(await cloud.audit()) == [("secret-without-server", gone), ("console-token-without-server", gone)]
    assert (await cloud.heal()).after.clean
    kept = await cloud.database.read(lambda conn: (
        secrets.find(conn, server.id, "disks"), console_tokens.find(conn, f"token of {server.id}", now=1.0),
    ))
    assert None not in kept


async def test_notifications_are_given_up_if_nobody_has_delivered_to_their_sink_for_as_long_as_they_may_wait(
    cloud: ControlCloud,
) -> None:
    """Which sinks this process has does not matter: another may have one that is away."""
    def plant(conn: sa.Connection) -> None:
        for outbox in (api_outbox, cell_outbox):
            for sink, at in (("webhook", 1.0), ("webhook", 4e9), ("nats", 1.0), ("log", 4e9)):
                conn.execute(sa.insert(outbox.rows).values(sink=sink, subject="s", created_at=at, message=MESSAGE))
            assert outbox.lease(conn, "nats", "another process", now=4e9, until=4e9 + 20.0)
            assert outbox.lease(conn, "webhook", "a process that is no more", now=1.0, until=20.0)

    def waiting(conn: sa.Connection) -> list[tuple[str, float]]:
        rows = api_outbox.rows.c
        return [tuple(row) for row in conn.execute(sa.select(rows.sink, rows.created_at).order_by(rows.id))]

    await cloud.database.write(plant)
    found = kinds(await cloud.audit())
    assert {kind for kind, _ in found} == {"notification-without-sink"}
    assert sorted(object_.rpartition("/")[2] for _, object_ in found) == ["webhook", "webhook"]
    assert (await cloud.heal()).after.clean
    assert await cloud.database.read(waiting) == [("webhook", 4e9), ("nats", 1.0), ("log", 4e9)]
