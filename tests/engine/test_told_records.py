"""What others are told of changes of records that no operation makes: deletes by the API alone, locks, states."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from simulation.listeners import LISTENERS
from simulation.world import Databases
from small_cloud import CONTEXT, SmallCloud, in_cloud

from kilonova.db import services
from kilonova.db.outbox import api_outbox, cell_outbox
from kilonova.db.server_groups import GroupPolicy, GroupRecord
from kilonova.db.server_groups import create as create_group
from kilonova.domain.errors import InstanceNotFound, KilonovaError
from kilonova.domain.notification import Notification
from kilonova.domain.operation import Asker, OperationState
from kilonova.domain.states import VmState
from kilonova.notifications import changes
from kilonova.operations.delete import DELETE, DeleteServer
from kilonova.operations.pause import PAUSE_SERVER, PauseServer

LEFT = LISTENERS[0]
GROUP = "99999999-9999-4999-8999-999999999999"


async def heard(cloud: SmallCloud, about: str = "") -> list[Notification]:
    """Everything that was told, in both forms; or what has that in its type."""
    for outbox, look in ((api_outbox, cloud.api), (cell_outbox, cloud.cell)):
        rows = sa.select(sa.func.count()).select_from(outbox.rows)
        await cloud.until(lambda look=look, rows=rows: look(lambda conn: conn.execute(rows).scalar()) == 0)
    return [m for m in cloud.ears.once(LEFT) if about in m.event_type]


def data(message: Notification) -> dict[str, Any]:
    found: dict[str, Any] = message.payload["nova_object.data"]
    return found


async def waiting(cloud: SmallCloud) -> str:
    """A server that no cell has yet, because nobody places it."""
    cloud.crash("scheduler")
    return await cloud.ask(cloud.new())


@pytest.mark.spec("DEL-53", "DEL-56")
@pytest.mark.parametrize(("forced", "kind"), [(False, "delete"), (True, "force_delete")])
def test_a_delete_of_a_build_request_is_told_by_the_api(forced: bool, kind: str) -> None:
    @in_cloud(told=True)
    async def story(cloud: SmallCloud) -> None:
        uuid = await waiting(cloud)
        await cloud.compute.delete(CONTEXT, await cloud.located(uuid), force=forced)
        with pytest.raises(InstanceNotFound):
            await cloud.located(uuid)
        await cloud.boot("scheduler")
        await cloud.rest()
        told = await heard(cloud, "delete")
        assert [m.event_type for m in told] == [
            f"compute.instance.{kind}.start", f"instance.{kind}.start", f"compute.instance.{kind}.end",
            f"instance.{kind}.end",
        ]
        assert [m.publisher_id for m in told] == ["api.here", "nova-api:here"] * 2
        assert [(data(m)["host"], data(m)["task_state"], data(m)["state"]) for m in told if m.versioned] == [
            (None, "deleting", "building"), (None, None, "deleted"),
        ]
        assert {(m.subject, m.request_id) for m in told} == {(uuid, "req-1")}
        assert not await heard(cloud, "create")

    story()


@pytest.mark.spec("DEL-53", "DEL-56")
@pytest.mark.parametrize(("forced", "kind"), [(False, "delete"), (True, "force_delete")])
def test_a_delete_of_a_server_without_a_host_is_told_by_the_api(forced: bool, kind: str) -> None:
    @in_cloud(told=True)
    async def story(cloud: SmallCloud) -> None:
        cloud.always_fail("create_disks", KilonovaError("full"))
        uuid = await cloud.ask(cloud.new())
        await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.ERROR)
        await cloud.rest()
        assert cloud.server(uuid).host is None
        await cloud.compute.delete(CONTEXT, await cloud.located(uuid), force=forced)
        await cloud.rest()
        told = [m for m in await heard(cloud, "delete") if m.versioned]
        assert [m.event_type for m in told] == [f"instance.{kind}.start", f"instance.{kind}.end"]
        assert {m.publisher_id for m in told} == {"nova-api:here"}
        assert not await heard(cloud, "shutdown")

    story()


@pytest.mark.spec("DEL-56")
@in_cloud(told=True)
async def test_a_forced_delete_that_a_host_carries_out_is_a_delete(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    await cloud.compute.delete(CONTEXT, await cloud.located(uuid), force=True)
    await cloud.rest()
    assert [m.event_type for m in await heard(cloud, "delete") if m.versioned] == [
        "instance.delete.start", "instance.delete.end",
    ]


@in_cloud(told=True)
async def test_a_server_that_is_locked_and_unlocked(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    await cloud.compute.lock(CONTEXT, await cloud.located(uuid), "mine")
    await cloud.compute.lock(CONTEXT, await cloud.located(uuid), "again")  # changes nothing
    await cloud.compute.unlock(CONTEXT, await cloud.located(uuid))
    told = await heard(cloud, "lock")
    assert [m.event_type for m in told] == ["instance.lock", "instance.unlock"]
    assert [(data(m)["locked"], data(m)["locked_reason"]) for m in told] == [(True, "mine"), (False, None)]
    assert {(m.subject, m.publisher_id, m.request_id) for m in told} == {(uuid, "nova-api:here", "req-1")}


@in_cloud(told=True)
async def test_a_server_that_is_locked_before_it_has_a_cell(cloud: SmallCloud) -> None:
    uuid = await waiting(cloud)
    await cloud.compute.lock(CONTEXT, await cloud.located(uuid), None)
    (message,) = cloud.api(lambda conn: api_outbox.pending(conn, LEFT, without=(), count=9))
    assert (message.message.event_type, message.message.subject) == ("instance.lock", uuid)


@in_cloud(told=True)
async def test_a_server_that_no_host_can_take(cloud: SmallCloud) -> None:
    cloud.always_fail("create_disks", KilonovaError("not reached"))
    flavor = msgspec.structs.replace(cloud.new().instance.flavor, vcpus=9999)
    uuid = await cloud.ask(cloud.new(flavor=flavor))
    await cloud.rest()
    older, message = await heard(cloud, "compute_task")
    assert (older.event_type, message.event_type) == (
        "compute_task.build_instances", "compute_task.build_instances.error",
    )
    assert (message.priority, message.publisher_id, message.subject) == ("ERROR", "nova-conductor:here", uuid)
    told = data(message)
    assert message.payload["nova_object.name"] == "ComputeTaskPayload"
    assert (told["instance_uuid"], told["state"]) == (uuid, "error")
    fault = cloud.fault(uuid)
    assert fault is not None
    assert told["reason"]["nova_object.data"]["exception_message"] == fault.message == older.payload["reason"]
    spec = told["request_spec"]["nova_object.data"]
    assert (spec["instance_uuid"], spec["flavor"]["nova_object.data"]["vcpus"]) == (uuid, 9999)


@in_cloud(told=True)
async def test_a_server_that_joins_a_group(cloud: SmallCloud) -> None:
    group = GroupRecord(uuid=GROUP, name="g", policy=GroupPolicy.AFFINITY, project_id="project", user_id="user")
    await cloud.databases.api.write(lambda conn: create_group(conn, group))
    uuid = await cloud.build(server_group=GROUP)
    (message,) = await heard(cloud, "server_group")
    assert (message.event_type, message.subject) == ("server_group.add_member", GROUP)
    assert (data(message)["members"], data(message)["policy"]) == ([uuid], "affinity")


async def test_a_service_that_is_new() -> None:
    databases = Databases(told=True)
    await databases.empty()

    def see(conn: sa.Connection) -> None:
        for _ in range(2):
            new = services.seen(conn, services.COMPUTE, "one", version="1", now=5.0)
            if new is not None:
                changes.tell_service(conn, "create", new, now=5.0, asker=Asker())

    await databases.cell.write(see)
    (pending,) = await databases.cell.read(lambda conn: cell_outbox.pending(conn, LEFT, without=(), count=9))
    message = pending.message
    assert (message.event_type, message.publisher_id) == ("service.create", "nova-compute:one")
    assert (data(message)["binary"], data(message)["topic"], data(message)["disabled"]) == (
        "nova-compute", "compute", False,
    )


@in_cloud(told="vm_and_task_state")
async def test_states_of_servers_and_their_tasks(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    await heard(cloud)
    cloud.ears.heard.clear()
    await cloud.act(uuid, PAUSE_SERVER, PauseServer())
    await cloud.rest()
    told = [m for m in await heard(cloud, "instance.update") if m.versioned]
    states = [data(m)["state_update"]["nova_object.data"] for m in told]
    assert [(s["old_state"], s["state"], s["old_task_state"], s["new_task_state"]) for s in states] == [
        ("active", "active", None, "pausing"), ("active", "paused", "pausing", None),
    ]
    assert {m.payload["nova_object.name"] for m in told} == {"InstanceUpdatePayload"}
    assert told[-1].request_id == "req-1" and told[-1].publisher_id == "nova-compute:host0"
    older = [m for m in await heard(cloud, "compute.instance.update") if not m.versioned]
    assert [(m.payload["old_state"], m.payload["state"]) for m in older] == [("active", "active"), ("active", "paused")]


@in_cloud(told="vm_state")
async def test_states_of_servers_alone(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    await cloud.act(uuid, PAUSE_SERVER, PauseServer())
    await cloud.rest()
    states = [data(m)["state_update"]["nova_object.data"] for m in await heard(cloud, "instance.update") if m.versioned]
    assert [(s["old_state"], s["state"]) for s in states] == [("building", "active"), ("active", "paused")]


@pytest.mark.spec("BLD-44")
def test_a_state_that_cannot_be_told_is_stored_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_arguments: Any, **_more: Any) -> None:
        raise ValueError("a defect")

    @in_cloud(told="vm_state")
    async def story(cloud: SmallCloud) -> None:
        monkeypatch.setattr(changes, "tell_update", broken)
        uuid = await cloud.build()
        await cloud.act(uuid, DELETE, DeleteServer())
        await cloud.rest()
        assert cloud.operation(uuid, "delete").state is OperationState.SUCCEEDED

    story()


@in_cloud(told=True)
async def test_states_are_told_only_if_asked_for(cloud: SmallCloud) -> None:
    await cloud.build()
    assert await heard(cloud, "instance.update") == []
