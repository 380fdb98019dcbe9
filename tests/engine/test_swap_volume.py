"""A running server changes from one volume to another, because the volume service migrates its volume."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import NamedTuple

import pytest
from small_cloud import CONTEXT, Always, SmallCloud, in_cloud

from kilonova.db import block_devices
from kilonova.db.journal import cell_journal
from kilonova.domain.block_device import BlockDevice
from kilonova.domain.errors import (
    Conflict,
    InstanceInvalidState,
    InvalidInput,
    InvalidVolume,
    KilonovaError,
    ServiceUnavailable,
    VolumeNotAttached,
)
from kilonova.domain.operation import EntryState, OperationState
from kilonova.domain.states import PowerState, VmState
from kilonova.engine.operation import Tx
from kilonova.engine.submit import cancel
from kilonova.hypervisor.fake_state import FakeVolume
from kilonova.hypervisor.volumes import NbdSource
from kilonova.operations.catalogue import CELL_OPERATIONS
from kilonova.operations.swap_volume import SWAP_VOLUME, SwapVolume, ask

REFUSES = KilonovaError("no")
AWAY = ServiceUnavailable("no answer")


class Story(NamedTuple):
    """A server with a volume that is to be moved, the new one, and the record of the volume."""

    server: str
    old: str
    new: str
    before: BlockDevice


async def begun(cloud: SmallCloud, *, size: int = 0) -> Story:
    """Everything is there; nothing was asked for yet."""
    server = await cloud.build()
    old = await cloud.attach(server, tag="data", delete_on_termination=True)
    return Story(server, old, cloud.volumes.migrate(old, size), cloud.devices(server)[0])


async def swap(cloud: SmallCloud, story: Story) -> None:
    await cloud.act(story.server, SWAP_VOLUME, SwapVolume(story.old, story.new))


def held(cloud: SmallCloud, story: Story) -> FakeVolume:
    guest = cloud.guest(story.server)
    assert guest is not None
    return guest.volumes[story.old]


def export(cloud: SmallCloud, story: Story) -> str:
    """Where the guest has its volume from, now and when it is started again."""
    volume = held(cloud, story)
    assert volume.running == volume.defined
    assert isinstance(volume.running, NbdSource)
    return volume.running.export


def swapped(cloud: SmallCloud, story: Story) -> None:
    """Fail unless the server has the new data under the name of the old volume, and nothing else."""
    (device,) = cloud.devices(story.server)
    (attachment,) = cloud.volumes.held.values()
    assert device.attachment_id == attachment.id == export(cloud, story) != story.before.attachment_id
    assert (device.uuid, device.volume_id, device.device_name, device.tag, device.delete_on_termination) == (
        story.before.uuid, story.old, story.before.device_name, "data", True
    )
    assert json.loads(device.connection_info or "")["data"]["export"] == attachment.id
    assert json.loads(device.connection_info or "")["serial"] == story.old
    assert (attachment.volume_id, attachment.status) == (story.old, "attached")
    volume = cloud.volumes.find(story.old)
    assert (volume.status, volume.migration_status) == ("in-use", "success")
    assert story.new not in cloud.volumes.volumes
    assert held(cloud, story).target is None
    assert cloud.fault(story.server) is None
    assert cloud.violations == []


def unchanged(cloud: SmallCloud, story: Story, *, migration: str = "error") -> None:
    """Fail unless the server has what it had, and nothing is left of the attempt. Spec: SWP-25."""
    assert cloud.devices(story.server) == [story.before]
    assert set(cloud.volumes.held) == {story.before.attachment_id}
    volume = cloud.volumes.find(story.old)
    assert (volume.status, volume.migration_status) == ("in-use", migration)
    assert (story.new in cloud.volumes.volumes) is (migration != "error")
    if cloud.power(story.server) is PowerState.RUNNING:
        assert export(cloud, story) == story.before.attachment_id
        assert held(cloud, story).target is None
    assert cloud.server(story.server).task_state is None
    assert cloud.violations == []


@pytest.mark.spec(
    "SWP-01", "SWP-02", "SWP-03", "SWP-08", "SWP-12", "SWP-14", "SWP-15", "SWP-16", "SWP-17", "SWP-19", "SWP-20",
)
@in_cloud()
async def test_the_guest_changes_over_and_the_server_keeps_its_volume(cloud: SmallCloud) -> None:
    cloud.hypervisors["host0"].faults.copying = 100.0
    story = await begun(cloud)
    await swap(cloud, story)
    await cloud.until(lambda: held(cloud, story).target is not None)
    assert len(cloud.volumes.held) == 2
    assert cloud.devices(story.server) == [story.before]
    await cloud.rest(within=300.0)
    swapped(cloud, story)
    assert cloud.calls("start_copy", "pivot_volume") == [("host0", "start_copy"), ("host0", "pivot_volume")]
    assert [name for name, _ in cloud.volumes.calls][-4:] == [
        "attachment", "complete_attachment", "delete_attachment", "migration_completed"
    ]
    action = (await cloud.actions(story.server))[-1]
    assert (action.action, action.message) == ("swap_volume", None)
    copy = next(e for e in cloud.operation(story.server, "swap-volume").entries if e.step == "copy" and not e.undo)
    assert 2 < copy.attempt < 12
    looks = cloud.times("copy_state")
    assert len(looks) < 500
    assert max(after - before for before, after in pairwise(looks)) < 5.0


@pytest.mark.spec("SWP-04", "SWP-05", "SWP-06", "SWP-09")
@in_cloud()
async def test_nobody_but_the_volume_service_can_have_it(cloud: SmallCloud) -> None:
    """The text `none` is no proof either. The volume service is told nothing of what it has not asked for."""
    server = await cloud.build()
    old, new = await cloud.attach(server), cloud.volumes.add()
    (before,) = cloud.devices(server)
    cloud.volumes.add(old, status="in-use", migration_status="none")
    cloud.volumes.calls.clear()
    with pytest.raises(Conflict, match="openstack volume migrate") as refused:
        await cloud.compute.ask_and_wait(CONTEXT, await cloud.located(server), SWAP_VOLUME, SwapVolume(old, new))
    assert "snapshots" in refused.value.message
    await cloud.rest()
    assert {name for name, _ in cloud.volumes.calls} == {"volume"}
    assert cloud.devices(server) == [before]
    assert cloud.calls("start_copy") == []


@pytest.mark.spec("SWP-34")
@pytest.mark.parametrize("size", [2, 9])
def test_a_volume_of_another_size_takes_nobodys_place(size: int) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        server = await cloud.build()
        old = await cloud.attach(server, cloud.volumes.add(size=5))
        told = Story(server, old, cloud.volumes.migrate(old, size), cloud.devices(server)[0])
        await swap(cloud, told)
        await cloud.rest()
        unchanged(cloud, told)
        assert ("create_attachment", told.new) not in cloud.volumes.calls
        fault = cloud.fault(server)
        assert fault is not None and fault.code == 400

    story()


@pytest.mark.spec("SWP-11", "SWP-33")
@in_cloud()
async def test_a_host_that_shares_no_volumes_gets_no_shared_one(cloud: SmallCloud) -> None:
    hypervisor = cloud.hypervisors["host0"]
    hypervisor.traits = tuple(one for one in hypervisor.traits if one != "COMPUTE_VOLUME_MULTI_ATTACH")
    story = await begun(cloud)
    cloud.volumes.add(story.new, multiattach=True, migration_status=f"target:{story.old}")
    await swap(cloud, story)
    await cloud.rest()
    unchanged(cloud, story)
    assert ("create_attachment", story.new) not in cloud.volumes.calls


@pytest.mark.spec("SWP-04", "SWP-25")
@in_cloud()
async def test_what_makes_no_sense_is_refused_before_anything_is_written(cloud: SmallCloud) -> None:
    story = await begun(cloud)
    other = await cloud.attach(story.server)
    located = await cloud.located(story.server)
    for error, request in (
        (VolumeNotAttached, SwapVolume(story.new, story.old)),
        (InvalidVolume, SwapVolume(story.old, other)),
        (InvalidVolume, SwapVolume(story.old, story.old)),
    ):
        with pytest.raises(error):
            await cloud.compute.ask(CONTEXT, located, SWAP_VOLUME, request)
    await cloud.stop(story.server)
    await cloud.rest()
    with pytest.raises(InstanceInvalidState):
        await swap(cloud, story)
    assert cloud.operations(story.server, "swap-volume") == []


@pytest.mark.spec("SWP-22", "SWP-24", "SWP-25", "SWP-29", "SWP-35")
@pytest.mark.parametrize("place", [
    "begin_detaching", "create_attachment", "start_copy", "copy_state", "pivot_volume",
])
def test_what_fails_before_the_guest_changes_over_is_undone(place: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        told = await begun(cloud)
        if place in ("begin_detaching", "create_attachment"):
            cloud.volumes.fail[place] = [InvalidInput("no")]
        else:
            cloud.fail(place, REFUSES)
        await swap(cloud, told)
        await cloud.rest()
        unchanged(cloud, told)
        assert cloud.operation(told.server, "swap-volume").state is OperationState.FAILED
        fault = cloud.fault(told.server)
        assert fault is not None and fault.message == "no"
        assert cloud.server(told.server).vm_state is VmState.ACTIVE

    story()


@pytest.mark.spec("SWP-22", "SWP-30")
@pytest.mark.parametrize("call", ["roll_detaching", "discard_attachments", "migration_completed"])
def test_each_part_of_the_undo_is_tried_by_itself(call: str) -> None:
    """What the volume service does not answer is owed; nothing else waits for it."""
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        told = await begun(cloud)
        cloud.fail("start_copy", REFUSES)
        cloud.volumes.fail[call] = Always([AWAY])  # type: ignore[assignment]
        await swap(cloud, told)
        await cloud.rest(within=1000.0)
        others = {"roll_detaching", "discard_attachments", "migration_completed"} - {call}
        assert others <= {name for name, _ in cloud.volumes.calls}
        cloud.heal()
        await cloud.rest(within=1000.0, debts=True)
        cloud.violations[:] = [one for one in cloud.violations if "given up" not in one]
        assert cloud.devices(told.server) == [told.before]
        assert cloud.volumes.find(told.old).migration_status == "error"

    story()


@pytest.mark.parametrize("seconds", [1.0, 10.5, 60.0])
def test_a_copy_that_is_complete_does_not_wait_for_long(seconds: float) -> None:
    """Not while a step watches it on the host, and not between two that do."""

    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        cloud.hypervisors["host0"].faults.copying = seconds
        await swap(cloud, await begun(cloud))
        await cloud.rest(within=300.0)
        (started,), (pivoted,) = cloud.times("start_copy"), cloud.times("pivot_volume")
        assert seconds <= pivoted - started < seconds + 1.5

    story()


@pytest.mark.spec("SWP-25", "SWP-38")
@in_cloud()
async def test_a_copy_that_ends_by_itself_is_no_swap(cloud: SmallCloud) -> None:
    cloud.hypervisors["host0"].faults.copying = 1000.0
    story = await begun(cloud)
    await swap(cloud, story)
    await cloud.until(lambda: held(cloud, story).target is not None)
    await cloud.drivers["host0"].abort_copy(story.server, story.old)
    await cloud.rest()
    unchanged(cloud, story)


@pytest.mark.spec("SWP-38")
@pytest.mark.parametrize("how", ["operator", "delete"])
def test_a_copy_ends_when_nobody_wants_it_any_more(how: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        cloud.hypervisors["host0"].faults.copying = 1e6
        told = await begun(cloud)
        await swap(cloud, told)
        await cloud.until(lambda: len(cloud.calls("copy_state")) > 5)
        if how == "delete":
            await cloud.delete(told.server)
            await cloud.rest()
            cloud.gone(told.server)
            assert told.new not in cloud.volumes.volumes
            assert cloud.violations == []
            return
        operation, now = cloud.operation(told.server, "swap-volume").id, cloud.now
        await cloud.databases.cell.write(
            lambda conn: cancel(Tx(conn, now), cell_journal, CELL_OPERATIONS, operation, "an operator wants so")
        )
        await cloud.rest()
        unchanged(cloud, told)
        assert cloud.fault(told.server) is None

    story()


@pytest.mark.spec("SWP-16", "SWP-17", "SWP-27", "SWP-28")
@pytest.mark.parametrize("call", [
    "attachment", "complete_attachment", "delete_attachment", "migration_completed",
])
def test_once_the_guest_has_changed_over_nothing_goes_back(call: str) -> None:
    """What the volume service does not do now is done later."""
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        told = await begun(cloud)
        cloud.volumes.fail[call] = Always([AWAY])  # type: ignore[assignment]
        await swap(cloud, told)
        await cloud.until(lambda: cloud.calls("pivot_volume"))
        await cloud.until(lambda: [one for one in cloud.volumes.calls if one[0] == call][3:], within=1000.0)
        if call != "attachment":
            (device,) = cloud.devices(told.server)
            assert device.attachment_id == export(cloud, told) != told.before.attachment_id
            await cloud.rest(within=1000.0)
        cloud.heal()
        await cloud.rest(within=1000.0, debts=True)
        swapped(cloud, told)

    story()


@pytest.mark.spec("SWP-27", "SWP-37")
@in_cloud()
async def test_an_answer_that_was_lost_is_no_failure(cloud: SmallCloud) -> None:
    """The guest has changed over, and the hypervisor said that it had not."""
    story = await begun(cloud)
    driver = cloud.drivers["host0"]
    pivot = driver.pivot_volume

    async def pivot_and_fail(*arguments: object) -> None:
        await pivot(*arguments)  # type: ignore[arg-type]
        raise REFUSES

    driver.pivot_volume = pivot_and_fail  # type: ignore[method-assign]
    await swap(cloud, story)
    await cloud.rest()
    swapped(cloud, story)


@pytest.mark.spec("SWP-27", "SWP-37")
@in_cloud()
async def test_a_pivot_that_counts_as_failed_goes_forward_if_the_guest_has_changed_over(cloud: SmallCloud) -> None:
    """A defect comes after the guest has changed over; the undo finds what the guest uses and turns around again."""
    story = await begun(cloud)
    driver = cloud.drivers["host0"]
    pivot = driver.pivot_volume

    async def pivot_and_break(*arguments: object) -> None:
        await pivot(*arguments)  # type: ignore[arg-type]
        raise RuntimeError("a defect")

    driver.pivot_volume = pivot_and_break  # type: ignore[method-assign]
    await swap(cloud, story)
    await cloud.rest()
    swapped(cloud, story)
    record = cloud.operation(story.server, SWAP_VOLUME.name)
    assert (record.state, record.failure) == (OperationState.SUCCEEDED, None)
    (undo,) = (one for one in record.entries if one.undo)
    assert (undo.step, undo.state) == ("start copy", EntryState.FAILED)
    assert undo.failure is not None and undo.failure.kind == "PastReturn"


PLACES = (
    "check volumes/do/answered", "begin detaching/do/answered", "connect new volume/do/answered",
    "start copy/do/effect", "start copy/do/answered", "copy/do/answered", "copy/do/effect", "pivot/do/before",
    "pivot/do/effect", "pivot/do/answered", "record new volume/do/answered", "complete attachment/do/answered",
    "release old volume/do/answered",
)


@pytest.mark.spec("SWP-28", "SWP-36", "SWP-37", "SWP-38")
@pytest.mark.parametrize("place", PLACES)
def test_the_death_of_a_process_changes_nothing(place: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        cloud.hypervisors["host0"].faults.copying = 3.0
        died: list[str] = []

        def die(process: str) -> None:
            died.append(process)
            cloud.crash(process)

        told = await begun(cloud)
        cloud.at[f"/{place}" if "effect" not in place else place] = die
        await swap(cloud, told)
        await cloud.until(lambda: died)
        await cloud.boot(died[0])
        await cloud.rest(within=300.0)
        swapped(cloud, told)

    story()


UNDOS = (
    "start copy/undo/answered", "connect new volume/undo/answered", "begin detaching/undo/answered",
    "begin detaching/undo/committed",
)


@pytest.mark.spec("SWP-36", "SWP-38")
@pytest.mark.parametrize("place", UNDOS)
def test_a_death_while_it_is_undone_leaves_nothing_either(place: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        cloud.fail("pivot_volume", REFUSES)
        told = await begun(cloud)
        died: list[str] = []

        def die(process: str) -> None:
            died.append(process)
            cloud.crash(process)

        cloud.at[place] = die
        await swap(cloud, told)
        await cloud.until(lambda: died)
        await cloud.boot(died[0])
        await cloud.rest(within=300.0)
        unchanged(cloud, told)

    story()


@pytest.mark.spec("SWP-28", "SWP-37")
@in_cloud()
async def test_who_asks_again_is_not_answered_by_another_copy(cloud: SmallCloud) -> None:
    """Not while it goes on, nor when it is over."""
    story = await begun(cloud)
    server = cloud.server(story.server)

    async def asked() -> None:
        now = cloud.now
        await cloud.databases.cell.write(
            lambda conn: ask(Tx(conn, now), server, SwapVolume(story.old, story.new))
        )
        for conductor in cloud.conductors.values():
            conductor.wake()

    for _ in range(2):
        await asked()
    await cloud.rest()
    await asked()
    await cloud.rest()
    swapped(cloud, story)
    assert len(cloud.operations(story.server, "swap-volume")) == len(cloud.calls("start_copy")) == 1


@pytest.mark.spec("SWP-19")
@in_cloud()
async def test_the_volume_service_says_which_volume_the_server_has(cloud: SmallCloud) -> None:
    story = await begun(cloud)
    cloud.volumes.migrated = lambda _old, new, *, error: new  # type: ignore[method-assign]
    await swap(cloud, story)
    await cloud.rest()
    assert cloud.cell(lambda conn: block_devices.of_volume(conn, story.server, story.new)).uuid == story.before.uuid


@in_cloud()
async def test_a_guest_that_stands_still_can_change_over(cloud: SmallCloud) -> None:
    story = await begun(cloud)
    await cloud.drivers["host0"].pause(story.server)
    await cloud.change(story.server, vm_state=VmState.PAUSED)
    await swap(cloud, story)
    await cloud.rest()
    swapped(cloud, story)
