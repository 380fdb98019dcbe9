"""Changing the password of a guest's administrator."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa
import structlog
from small_cloud import CONTEXT, IMAGE, SmallCloud, in_cloud

from kilonova.agent.reports import PasswordQuery
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import (
    Conflict,
    InstanceInvalidState,
    InstanceNotFound,
    KilonovaError,
    NotSupported,
)
from kilonova.domain.image import Image
from kilonova.domain.operation import OperationState
from kilonova.domain.states import PowerState, TaskState, VmState
from kilonova.operations.password_setting import PasswordSetting

P, T, V = PowerState, TaskState, VmState
SECRET = "correct horse battery"


async def change(cloud: SmallCloud, uuid: str, password: str = SECRET) -> None:
    await cloud.compute.change_password(CONTEXT, await cloud.located(uuid), password)


def record(cloud: SmallCloud, uuid: str) -> tuple[VmState, TaskState | None, PowerState]:
    server = cloud.server(uuid)
    return server.vm_state, server.task_state, server.power_state


def everything_stored(cloud: SmallCloud) -> str:
    """All rows of all tables, as text."""
    found = []
    for database in (cloud.databases.api, cloud.databases.cell):
        with database.engine.connect() as conn:
            tables = sa.MetaData()
            tables.reflect(conn)
            found += [str(row) for table in tables.tables.values() for row in conn.execute(sa.select(table))]
    return "\n".join(found)


@pytest.mark.spec("PWD-01", "PWD-04", "PWD-10")
@in_cloud()
async def test_a_password_is_set_and_kept_nowhere(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    await cloud.change(uuid, power_state=P.SHUTDOWN)  # the guest is asked, not the record
    cloud.history.clear()
    with structlog.testing.capture_logs() as logs:
        await change(cloud, uuid)
    assert cloud.hypervisors["host0"].passwords == {(uuid, "root"): SECRET}
    assert [i.task_state for i in cloud.history if i.uuid == uuid] == [T.UPDATING_PASSWORD, None]
    assert record(cloud, uuid) == (V.ACTIVE, None, P.SHUTDOWN)
    action = (await cloud.actions(uuid))[-1]
    assert (action.action, action.message) == ("changePassword", None)
    assert SECRET not in everything_stored(cloud)
    assert SECRET not in str(logs)
    assert SECRET not in str(PasswordQuery(uuid=uuid, user="root", password=SECRET))


@pytest.mark.parametrize(("properties", "user"), [
    ({}, "root"), ({"os_admin_user": "boss"}, "boss"), ({"os_type": "windows"}, "Administrator"),
])
def test_whose_password_it_is(properties: dict[str, str], user: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        image = type(IMAGE)(id=IMAGE.id, properties=properties)
        uuid = await cloud.build(image=image)
        await change(cloud, uuid)
        assert list(cloud.hypervisors["host0"].passwords) == [(uuid, user)]

    story()


async def refused(cloud: SmallCloud, uuid: str, error: type[KilonovaError]) -> KilonovaError:
    """The change is refused, and the fault says what the caller is told."""
    before = record(cloud, uuid)
    with pytest.raises(error) as caught:
        await change(cloud, uuid)
    await cloud.rest()
    assert record(cloud, uuid) == before
    fault = cloud.fault(uuid)
    assert fault is not None
    assert (fault.message, fault.code, cloud.faults(uuid)) == (caught.value.message, caught.value.status, 1)
    assert (await cloud.actions(uuid))[-1].message == "Error"
    assert SECRET not in everything_stored(cloud)
    return caught.value


@pytest.mark.spec("PWD-03", "PWD-09", "PWD-01")
@in_cloud()
async def test_a_guest_that_does_not_run_is_not_asked(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.hypervisors["host0"].guests[uuid].power_state = P.PAUSED
    error = await refused(cloud, uuid, Conflict)
    assert error.message == f"Failed to set admin password on {uuid} because instance is not running"
    assert cloud.calls("set_password") == []


@pytest.mark.spec("PWD-05", "PWD-06", "PWD-09")
@pytest.mark.parametrize("error", [Conflict("the guest has no agent"), NotSupported("no driver call")])
def test_what_the_driver_cannot_do_is_told(error: KilonovaError) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        cloud.fail("set_password", error)
        assert (await refused(cloud, uuid, type(error))).message == error.message
        await change(cloud, uuid)
        assert record(cloud, uuid) == (V.ACTIVE, None, P.RUNNING)

    story()


WITH_AGENT = type(IMAGE)(id=IMAGE.id, properties={"hw_qemu_guest_agent": "yes"})


async def still_booting(cloud: SmallCloud, image: Image) -> str:
    """A server whose guest has only begun to boot."""
    uuid = await cloud.build(image=image)
    cloud.hypervisors["host0"].faults.booting.add(uuid)
    return uuid


async def boots(cloud: SmallCloud, uuid: str, *, seconds: float) -> None:
    """The guest has its agent after so many seconds, in which nothing is decided."""
    began = cloud.loop.time()
    await cloud.until(lambda: cloud.loop.time() > began + seconds)
    assert cloud.server(uuid).task_state is T.UPDATING_PASSWORD
    assert len(cloud.calls("set_password")) > seconds / 2
    cloud.hypervisors["host0"].faults.booting.remove(uuid)


@pytest.mark.spec("PWD-04", "PWD-10")
@in_cloud()
async def test_an_agent_that_the_image_promises_is_waited_for(cloud: SmallCloud) -> None:
    uuid = await still_booting(cloud, WITH_AGENT)
    with structlog.testing.capture_logs() as logs:
        changing = asyncio.ensure_future(change(cloud, uuid))
        await boots(cloud, uuid, seconds=40.0)
        await changing
    assert cloud.hypervisors["host0"].passwords == {(uuid, "root"): SECRET}
    assert record(cloud, uuid) == (V.ACTIVE, None, P.RUNNING)
    assert cloud.faults(uuid) == 0
    assert SECRET not in everything_stored(cloud)
    assert SECRET not in str(logs)


@pytest.mark.spec("PWD-05", "PWD-09")
@pytest.mark.parametrize(("image", "seconds"), [(WITH_AGENT, 50.0), (IMAGE, 0.0)])
def test_an_agent_that_does_not_come_is_told(image: Image, seconds: float) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await still_booting(cloud, image)
        began = cloud.loop.time()
        error = await refused(cloud, uuid, Conflict)
        assert error.message.startswith(f"No agent answers in the guest of instance {uuid}")
        tried = cloud.times("set_password")
        assert seconds - 3.0 < tried[-1] - began < seconds + 1.0
        assert seconds / 2 < len(tried) <= seconds + 1
        cloud.hypervisors["host0"].faults.booting.clear()
        await change(cloud, uuid)

    story()


@in_cloud()
async def test_a_server_can_be_deleted_while_its_agent_is_waited_for(cloud: SmallCloud) -> None:
    uuid = await still_booting(cloud, WITH_AGENT)
    changing = asyncio.ensure_future(change(cloud, uuid))
    await cloud.until(lambda: cloud.calls("set_password"))
    await cloud.delete(uuid)
    with pytest.raises(Conflict, match="because instance is not running"):
        await changing
    await cloud.rest()
    assert cloud.guest(uuid) is None
    assert cloud.operation(uuid, "change-password").state is OperationState.CANCELLED


@pytest.mark.spec("PWD-14")
@in_cloud()
async def test_nobody_waits_for_the_agent_of_a_change_that_was_cut_off(cloud: SmallCloud) -> None:
    uuid = await still_booting(cloud, WITH_AGENT)
    changing = asyncio.ensure_future(change(cloud, uuid))
    await cloud.until(lambda: cloud.calls("set_password"))
    changing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await changing
    tried = len(cloud.calls("set_password"))
    await cloud.rest(within=300.0)
    assert len(cloud.calls("set_password")) == tried
    assert record(cloud, uuid) == (V.ACTIVE, None, P.RUNNING)


@pytest.mark.spec("PWD-08", "PWD-09", "PWD-10")
@pytest.mark.parametrize("error", [KilonovaError(f"chpasswd {SECRET} failed"), RuntimeError(f"boom {SECRET}")])
def test_any_other_error_is_logged_without_the_password_and_replaced(error: Exception) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        cloud.fail("set_password", error)
        with structlog.testing.capture_logs() as logs:
            told = await refused(cloud, uuid, Conflict)
        assert told.message == f"Failed to set admin password on {uuid} because error setting admin password"
        assert SECRET not in str(logs)
        (line,) = [e for e in logs if e["event"] == "password not set"]
        assert line["error"] == str(error).replace(SECRET, "***")

    story()


@pytest.mark.spec("PWD-08")
@in_cloud()
async def test_a_host_that_does_not_answer(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.crash("host0")
    told = await refused(cloud, uuid, Conflict)
    assert told.message.endswith("because error setting admin password")


@pytest.mark.spec("PWD-13")
@in_cloud()
async def test_a_change_has_its_server_to_itself(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.hypervisors["host0"].faults.latency = 3.0
    changing = asyncio.ensure_future(change(cloud, uuid))
    await cloud.task(uuid, T.UPDATING_PASSWORD)
    with pytest.raises(InstanceInvalidState, match="task_state updating_password"):
        await cloud.reboot(uuid)
    with pytest.raises(InstanceInvalidState, match="task_state updating_password"):
        await change(cloud, uuid, "another")
    await changing
    assert cloud.hypervisors["host0"].passwords == {(uuid, "root"): SECRET}


@pytest.mark.spec("PWD-07")
@in_cloud()
async def test_a_task_that_was_taken_is_left_alone(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.hypervisors["host0"].faults.latency = 3.0
    changing = asyncio.ensure_future(change(cloud, uuid))
    await cloud.task(uuid, T.UPDATING_PASSWORD)
    await cloud.change(uuid, task_state=T.REBUILDING)
    await changing
    await cloud.rest()
    assert record(cloud, uuid) == (V.ACTIVE, T.REBUILDING, P.RUNNING)
    assert cloud.operation(uuid, "change-password").state is OperationState.CANCELLED
    assert len(cloud.calls("set_password")) == 1


@pytest.mark.spec("PWD-11")
@in_cloud()
async def test_a_server_that_was_deleted_meanwhile_is_told_as_such(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.hypervisors["host0"].faults.latency = 3.0
    changing = asyncio.ensure_future(change(cloud, uuid))
    await cloud.until(lambda: cloud.calls("set_password"))
    await cloud.change(uuid, deleted_at=cloud.now)
    with pytest.raises(InstanceNotFound):
        await changing


@pytest.mark.spec("PWD-12")
@in_cloud()
async def test_the_error_of_the_driver_is_worth_more_than_that_of_the_save(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.fail("set_password", Conflict("the guest has no agent"))
    cloud.hypervisors["host0"].faults.latency = 3.0
    changing = asyncio.ensure_future(change(cloud, uuid))
    await cloud.until(lambda: cloud.calls("set_password"))
    await cloud.change(uuid, deleted_at=cloud.now)
    with structlog.testing.capture_logs() as logs, pytest.raises(Conflict, match="the guest has no agent"):
        await changing
    assert [e for e in logs if e["event"] == "outcome of a password change not stored"]


@pytest.mark.spec("PWD-14", "INI-107")
@pytest.mark.parametrize("restart", [(), ("host0", "conductor0")])
def test_a_change_that_was_cut_off_is_not_repeated(restart: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that asked is gone, and with it the password."""
    async def dies(*_args: Any, **_kwargs: Any) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(PasswordSetting, "tell", dies)

    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        with pytest.raises(asyncio.CancelledError):
            await change(cloud, uuid)
        assert cloud.server(uuid).task_state is T.UPDATING_PASSWORD
        await cloud.restart(*restart)
        await cloud.rest(within=300.0)
        assert record(cloud, uuid) == (V.ACTIVE, None, P.RUNNING)
        assert len(cloud.calls("set_password")) == 1
        fault = cloud.fault(uuid)
        assert fault is not None
        assert "The service stopped while a password was being set" in fault.message
        await cloud.reboot(uuid)
        await cloud.rest()
        assert cloud.operation(uuid, "soft-reboot").state is OperationState.SUCCEEDED

    story()


@in_cloud()
async def test_a_locked_server_is_refused(cloud: SmallCloud) -> None:
    uuid = await cloud.build(locked_by="owner")
    member = RequestContext(request_id="req-2", user_id="user", project_id="project")
    with pytest.raises(Conflict, match=f"Instance {uuid} is in an invalid state for 'changePassword'"):
        await cloud.compute.change_password(member, await cloud.located(uuid), SECRET)
    await change(cloud, uuid)


@in_cloud()
async def test_only_an_active_server_is_taken(cloud: SmallCloud) -> None:
    uuid = await cloud.stopped()
    with pytest.raises(InstanceInvalidState, match="Cannot 'changePassword' instance"):
        await change(cloud, uuid)
