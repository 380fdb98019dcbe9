"""Resize: another flavor, with the way back kept open."""

from __future__ import annotations

import msgspec
import pytest
import structlog
from small_cloud import FLAVOR, OPTIONS, SmallCloud, in_cloud

from kilonova.db import build_requests, migration_records
from kilonova.db.placement import claims
from kilonova.domain.block_device import BlockDevice
from kilonova.domain.errors import (
    InstanceInvalidState,
    InstanceNotReady,
    InvalidInput,
    KilonovaError,
    TryElsewhere,
)
from kilonova.domain.flavor import Flavor
from kilonova.domain.migration import MigrationStatus, MigrationType
from kilonova.domain.operation import OperationState
from kilonova.domain.states import PowerState, TaskState, VmState
from kilonova.hypervisor.fake_state import Sizes
from kilonova.operations.confirm_resize import CONFIRM_RESIZE, ConfirmResize
from kilonova.operations.resize import RESIZE, ResizeServer
from kilonova.operations.restore import RESTORE, RestoreServer
from kilonova.operations.revert_resize import REVERT_RESIZE, RevertResize

BIG = Flavor(flavor_id="2", name="big", vcpus=2, memory_mib=2048, root_gib=5, ephemeral_gib=1, swap_mib=256)
OLD, NEW = {"VCPU": 1, "MEMORY_MB": 512, "DISK_GB": 1}, {"VCPU": 2, "MEMORY_MB": 2048, "DISK_GB": 7}
REFUSES = KilonovaError("the hypervisor refuses")


async def resize(cloud: SmallCloud, uuid: str, flavor: Flavor = BIG) -> None:
    await cloud.act(uuid, RESIZE, ResizeServer(flavor=flavor))


async def resized(cloud: SmallCloud, *, stopped: bool = False) -> str:
    """A server that was resized and waits for its user."""
    uuid = await (cloud.stopped() if stopped else cloud.build())
    await resize(cloud, uuid)
    await cloud.rest()
    assert cloud.server(uuid).vm_state is VmState.RESIZED
    return uuid


async def confirm(cloud: SmallCloud, uuid: str) -> None:
    await cloud.act(uuid, CONFIRM_RESIZE, ConfirmResize())


async def revert(cloud: SmallCloud, uuid: str) -> None:
    await cloud.act(uuid, REVERT_RESIZE, RevertResize())


def is_as_before(cloud: SmallCloud, uuid: str, vm_state: VmState = VmState.ACTIVE) -> None:
    """Fail unless the server has its old flavor, claim, disks and power, and nothing else is held or kept."""
    server, guest = cloud.server(uuid), cloud.guest(uuid)
    assert (server.vm_state, server.task_state, server.flavor) == (vm_state, None, FLAVOR)
    assert cloud.held(uuid) == {uuid: OLD}
    assert guest is not None
    assert (guest.sizes, guest.kept) == (Sizes(1, (), 0), {})
    if vm_state is VmState.ACTIVE:
        assert (guest.power_state, guest.vcpus, guest.memory_mib) == (PowerState.RUNNING, 1, 512)
    else:
        assert guest.power_state is PowerState.SHUTDOWN


# --- resize ---------------------------------------------------------------------------------------------


@pytest.mark.spec(
    "MIG-25", "MIG-31", "MIG-33", "MIG-45", "MIG-61", "MIG-63", "MIG-65", "MIG-77", "MIG-78", "MIG-80", "MIG-81",
    "MIG-82", "MIG-83",
)
@in_cloud()
async def test_a_server_is_resized(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    before = cloud.server(uuid)
    cloud.history.clear()
    cloud.effects.clear()
    await resize(cloud, uuid)
    await cloud.rest()
    assert cloud.states(uuid) == [
        ("active", "resize_prep"), ("active", "resize_migrating"), ("active", "resize_migrated"),
        ("active", "resize_finish"), ("resized", None),
    ]
    server = cloud.server(uuid)
    assert (server.flavor, server.host, server.power_state) == (BIG, "host0", PowerState.RUNNING)
    assert before.launched_at is not None
    assert server.launched_at is not None
    assert server.launched_at > before.launched_at
    (migration,) = cloud.migrations(uuid)
    assert (migration.migration_type, migration.status) == (MigrationType.RESIZE, MigrationStatus.FINISHED)
    assert (migration.source_compute, migration.dest_compute) == ("host0", "host0")
    assert (migration.old_flavor, migration.new_flavor, migration.old_vm_state) == (FLAVOR, BIG, VmState.ACTIVE)
    assert (migration.user_id, migration.project_id) == ("user", "project")
    assert cloud.held(uuid) == {migration.uuid: OLD, uuid: NEW}
    assert [call for _, call in cloud.calls("power_off", "resize_disks", "power_on")] == [
        "power_off", "resize_disks", "power_on",
    ]
    guest = cloud.guest(uuid)
    assert guest is not None
    assert (guest.vcpus, guest.memory_mib, guest.sizes) == (2, 2048, Sizes(5, (1,), 256))
    assert guest.kept == {migration.uuid: Sizes(1, (), 0)}
    assert cloud.api(lambda conn: build_requests.spec_of(conn, uuid)).flavor == BIG
    action = (await cloud.actions(uuid))[-1]
    assert (action.action, action.message) == ("resize", None)


@pytest.mark.spec("MIG-79", "INI-162")
@in_cloud()
async def test_a_stopped_server_is_not_started(cloud: SmallCloud) -> None:
    uuid = await resized(cloud, stopped=True)
    assert cloud.calls("power_on") == []
    assert cloud.server(uuid).power_state is PowerState.SHUTDOWN
    assert cloud.migrations(uuid)[0].old_vm_state is VmState.STOPPED
    assert cloud.power(uuid) is PowerState.SHUTDOWN


@in_cloud()
async def test_disks_that_were_asked_for_stay_as_they_are(cloud: SmallCloud) -> None:
    sizes: tuple[tuple[int | None, str | None], ...] = ((1, "ext4"), (1, None), (64, "swap"))
    devices = tuple(BlockDevice(uuid=str(number), source_type="blank", destination_type="local", volume_size=size,
                                guest_format=form) for number, (size, form) in enumerate(sizes))
    wide = msgspec.structs.replace(FLAVOR, ephemeral_gib=2, swap_mib=128)
    uuid = await cloud.build(flavor=wide, block_devices=devices)
    guest = cloud.guest(uuid)
    assert guest is not None
    assert guest.sizes == Sizes(1, (1, 1), 64)
    await resize(cloud, uuid, msgspec.structs.replace(BIG, ephemeral_gib=9))
    await cloud.rest()
    guest = cloud.guest(uuid)
    assert guest is not None
    assert guest.sizes == Sizes(5, (1, 1), 64)
    await revert(cloud, uuid)
    await cloud.rest()
    guest = cloud.guest(uuid)
    assert guest is not None
    assert guest.sizes == Sizes(1, (1, 1), 64)


@pytest.mark.spec("MIG-64")
@in_cloud()
async def test_the_guest_is_asked_to_shut_down_first(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    await resize(cloud, uuid)
    await cloud.rest()
    assert cloud.power_offs == [(OPTIONS.shutdown_timeout, OPTIONS.shutdown_retry_interval)]


@in_cloud()
async def test_what_was_kept_by_an_earlier_resize_is_never_taken_for_the_old_disks(cloud: SmallCloud) -> None:
    uuid = await resized(cloud)
    cloud.fail("drop_kept_disks", REFUSES)
    await confirm(cloud, uuid)
    await cloud.rest()
    guest = cloud.guest(uuid)
    assert guest is not None
    assert list(guest.kept.values()) == [Sizes(1, (), 0)]
    await resize(cloud, uuid, Flavor(flavor_id="3", name="huge", vcpus=4, memory_mib=4096, root_gib=9, ephemeral_gib=1))
    await cloud.rest()
    guest = cloud.guest(uuid)
    assert guest is not None
    assert guest.kept == {cloud.migrations(uuid)[0].uuid: Sizes(5, (1,), 256)}
    await revert(cloud, uuid)
    await cloud.rest()
    assert (cloud.server(uuid).flavor, cloud.held(uuid)) == (BIG, {uuid: NEW})


@pytest.mark.spec("API-068", "API-127")
@in_cloud()
async def test_states_in_which_a_server_is_not_resized(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    for vm_state in set(VmState) - {VmState.ACTIVE, VmState.STOPPED}:
        await cloud.change(uuid, vm_state=vm_state, host=None)
        with pytest.raises(InstanceInvalidState, match=f"Cannot 'resize' instance {uuid} while it is in vm_state"):
            await resize(cloud, uuid)
    await cloud.change(uuid, vm_state=VmState.ACTIVE)
    with pytest.raises(InstanceNotReady):
        await resize(cloud, uuid)
    assert cloud.migrations(uuid) == []
    assert cloud.server(uuid).task_state is None


# --- failures -------------------------------------------------------------------------------------------


@pytest.mark.spec(
    "MIG-07", "MIG-10", "MIG-46", "MIG-66", "MIG-69", "MIG-70", "MIG-86", "MIG-87", "FND-22", "INI-161", "INI-164",
    "INI-165",
)
@pytest.mark.parametrize(
    ("broken", "stopped"),
    [("power_on", False)] + [
        (broken, stopped) for broken in ("vifs", "power_off", "resize_disks", "vifs again") for stopped in (False, True)
    ],
)
def test_whatever_fails_is_taken_back(broken: str, stopped: bool) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await (cloud.stopped() if stopped else cloud.build())
        before = cloud.server(uuid)
        if broken == "vifs":
            cloud.net.fail["vifs"] = [REFUSES]
        elif broken == "vifs again":
            cloud.at["resize disks/do/committed"] = lambda _p: cloud.net.fail.__setitem__("vifs", [REFUSES])
        else:
            cloud.fail(broken, REFUSES)
        await resize(cloud, uuid)
        await cloud.rest()
        is_as_before(cloud, uuid, before.vm_state)
        after = cloud.server(uuid)
        assert msgspec.structs.replace(after, updated_at=before.updated_at) == before
        (migration,) = cloud.migrations(uuid)
        assert migration.status is MigrationStatus.ERROR
        fault = cloud.fault(uuid)
        assert fault is not None
        assert fault.message == "the hypervisor refuses"
        assert cloud.faults(uuid) == 1
        assert cloud.api(lambda conn: build_requests.spec_of(conn, uuid)).flavor == FLAVOR
        await resize(cloud, uuid)
        await cloud.rest()
        assert cloud.server(uuid).vm_state is VmState.RESIZED

    story()


@pytest.mark.spec("MIG-69", "MIG-37", "MIG-88", "INI-163", "INI-166")
@in_cloud()
async def test_a_guest_that_cannot_be_started_again_leaves_a_server_in_error_that_a_hard_reboot_mends(
    cloud: SmallCloud,
) -> None:
    uuid = await cloud.build()
    cloud.fail("resize_disks", TryElsewhere("This host has no disk space left."))
    cloud.always_fail("power_on", REFUSES)
    await resize(cloud, uuid)
    await cloud.rest()
    server = cloud.server(uuid)
    assert (server.vm_state, server.task_state, server.flavor) == (VmState.ERROR, None, FLAVOR)
    assert cloud.held(uuid) == {uuid: OLD}
    fault = cloud.fault(uuid)
    assert fault is not None
    assert "no disk space" in fault.message
    assert "reboot it hard" in fault.message
    cloud.heal()
    await cloud.reboot(uuid, hard=True)
    await cloud.rest()
    is_as_before(cloud, uuid)


@pytest.mark.spec("MIG-66")
@in_cloud()
async def test_a_disk_is_not_made_smaller(cloud: SmallCloud) -> None:
    uuid = await cloud.build(flavor=BIG)
    await resize(cloud, uuid, FLAVOR)
    await cloud.rest()
    server = cloud.server(uuid)
    assert (server.vm_state, server.task_state, server.flavor) == (VmState.ACTIVE, None, BIG)
    assert cloud.power(uuid) is PowerState.RUNNING
    assert cloud.held(uuid) == {uuid: NEW}
    fault = cloud.fault(uuid)
    assert fault is not None
    assert "smaller" in fault.message
    assert fault.code == 400


@pytest.mark.spec("MIG-15")
@in_cloud()
async def test_a_host_that_has_no_room_beside_the_old_flavor_refuses(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    for vcpus, memory in ((1, 16384), (512, 512)):
        await resize(cloud, uuid, Flavor(flavor_id="9", name="all", vcpus=vcpus, memory_mib=memory, root_gib=1))
        await cloud.rest()
        is_as_before(cloud, uuid)
        fault = cloud.fault(uuid)
        assert fault is not None
        assert fault.message.startswith("No valid host was found.")
    assert {m.status for m in cloud.migrations(uuid)} == {MigrationStatus.ERROR}
    assert cloud.calls("power_off") == []


@in_cloud(options=msgspec.structs.replace(OPTIONS, allow_resize_to_same_host=False))
async def test_a_server_may_be_kept_from_staying_on_its_host(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    await resize(cloud, uuid)
    await cloud.rest()
    is_as_before(cloud, uuid)
    fault = cloud.fault(uuid)
    assert fault is not None
    assert fault.message.startswith("No valid host was found.")


@pytest.mark.spec("MIG-14")
@in_cloud()
async def test_a_database_that_is_away_is_no_reason_to_believe_that_nothing_is_held(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.fail("resize_disks", REFUSES)
    cloud.at["claim/undo/before"] = lambda _p: setattr(cloud.trouble, "db_error", 1.0)
    await resize(cloud, uuid)
    await cloud.until(lambda: cloud.trouble.db_error)
    assert len(cloud.held(uuid)) == 2
    cloud.trouble.calm()
    await cloud.rest(within=600)
    is_as_before(cloud, uuid)


@pytest.mark.spec("MIG-04", "MIG-05", "MIG-62", "INI-115", "FND-26")
@in_cloud()
async def test_a_server_that_something_else_has_taken_over_is_left_as_it_is(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    cloud.at["claim/do/answered"] = lambda _p: cloud.wire.spawn(cloud.change(uuid, task_state=TaskState.REBUILDING))
    await resize(cloud, uuid)
    await cloud.until(lambda: cloud.operation(uuid, "resize").finished_at)
    server = cloud.server(uuid)
    assert (server.vm_state, server.task_state, server.flavor) == (VmState.ACTIVE, TaskState.REBUILDING, FLAVOR)
    assert cloud.calls("power_off", "resize_disks") == []
    assert cloud.held(uuid) == {uuid: OLD}
    assert cloud.migrations(uuid)[0].status is MigrationStatus.ERROR
    assert cloud.faults(uuid) == 0


@pytest.mark.spec("INI-109", "INI-168")
@pytest.mark.parametrize("who", ["conductor0", "host0"])
@pytest.mark.parametrize("step", ["claim", "power off", "resize disks", "connect", "start guest"])
def test_a_resize_that_is_cut_off_goes_on(step: str, who: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        cloud.at[f"{step}/do/"] = lambda _p: cloud.crash(who)
        await resize(cloud, uuid)
        await cloud.until(lambda: not cloud.processes[who].alive)
        await cloud.boot(who)
        await cloud.rest()
        server = cloud.server(uuid)
        assert (server.vm_state, server.task_state, server.flavor) == (VmState.RESIZED, None, BIG)
        assert len(cloud.held(uuid)) == 2
        guest = cloud.guest(uuid)
        assert guest is not None
        assert (guest.vcpus, guest.sizes, list(guest.kept.values())) == (2, Sizes(5, (1,), 256), [Sizes(1, (), 0)])
        assert cloud.faults(uuid) == 0

    story()


# --- confirm --------------------------------------------------------------------------------------------


@pytest.mark.spec("RSZ-02", "RSZ-10", "RSZ-11", "RSZ-12", "RSZ-15", "RSZ-21")
@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_a_resize_is_confirmed(stopped: bool) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await resized(cloud, stopped=stopped)
        cloud.history.clear()
        await confirm(cloud, uuid)
        await cloud.rest()
        settled = "stopped" if stopped else "active"
        assert cloud.states(uuid) == [("resized", "resize_confirming"), (settled, None)]
        assert cloud.held(uuid) == {uuid: NEW}
        assert cloud.migrations(uuid)[0].status is MigrationStatus.CONFIRMED
        guest = cloud.guest(uuid)
        assert guest is not None
        assert (guest.kept, guest.sizes) == ({}, Sizes(5, (1,), 256))
        assert (await cloud.actions(uuid))[-1].action == "confirmResize"
        with pytest.raises(InstanceInvalidState):
            await confirm(cloud, uuid)

    story()


@pytest.mark.spec("RSZ-12")
@in_cloud()
async def test_a_guest_that_was_found_off_makes_a_stopped_server(cloud: SmallCloud) -> None:
    uuid = await resized(cloud)
    await cloud.change(uuid, power_state=PowerState.SHUTDOWN)
    await confirm(cloud, uuid)
    await cloud.until(lambda: cloud.operation(uuid, "confirm-resize").finished_at)
    assert cloud.server(uuid).vm_state is VmState.STOPPED


@pytest.mark.spec("RSZ-01", "RSZ-04", "RSZ-38")
@in_cloud()
async def test_of_a_confirm_and_a_revert_only_one_is_accepted(cloud: SmallCloud) -> None:
    uuid = await resized(cloud)
    await confirm(cloud, uuid)
    with pytest.raises(InstanceInvalidState):
        await revert(cloud, uuid)
    await confirm(cloud, uuid)  # that is being done already
    await cloud.rest()
    assert cloud.server(uuid).vm_state is VmState.ACTIVE
    assert [o.kind for o in cloud.operations(uuid)] == ["build", "resize", "confirm-resize"]


@pytest.mark.spec("RSZ-03", "API-128", "API-129")
@pytest.mark.parametrize("act", [confirm, revert])
def test_a_server_without_a_finished_migration_was_not_resized(act: object) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        await cloud.change(uuid, vm_state=VmState.RESIZED)
        with pytest.raises(InvalidInput, match="Instance has not been resized"):
            await act(cloud, uuid)  # type: ignore[operator]
        assert cloud.server(uuid).task_state is None

    story()


@pytest.mark.spec("RSZ-06", "RSZ-17", "RSZ-19")
@in_cloud()
async def test_a_guest_that_runs_well_is_not_in_error_because_of_its_old_disks(cloud: SmallCloud) -> None:
    uuid = await resized(cloud)
    cloud.always_fail("drop_kept_disks", REFUSES)
    await confirm(cloud, uuid)
    await cloud.rest()
    server = cloud.server(uuid)
    assert (server.vm_state, server.task_state, server.flavor) == (VmState.ACTIVE, None, BIG)
    assert cloud.held(uuid) == {uuid: NEW}
    assert cloud.migrations(uuid)[0].status is MigrationStatus.ERROR
    fault = cloud.fault(uuid)
    assert fault is not None
    assert fault.message == "the hypervisor refuses"
    cloud.heal()
    await cloud.rest(within=900.0, debts=True)
    guest = cloud.guest(uuid)
    assert guest is not None
    assert guest.kept == {}
    assert cloud.migrations(uuid)[0].status is MigrationStatus.CONFIRMED
    await cloud.delete(uuid)
    await cloud.rest()
    cloud.gone(uuid)


@pytest.mark.spec("RSZ-22", "RSZ-20")
@in_cloud()
async def test_a_confirm_waits_for_the_database_of_claims_and_owes_what_a_dead_host_is_to_remove(
    cloud: SmallCloud,
) -> None:
    uuid = await resized(cloud)
    cloud.crash("host0")
    await confirm(cloud, uuid)
    await cloud.rest()
    assert (cloud.server(uuid).vm_state, cloud.held(uuid)) == (VmState.ACTIVE, {uuid: NEW})
    assert cloud.migrations(uuid)[0].status is MigrationStatus.CONFIRMED
    await cloud.boot("host0")
    await cloud.rest(debts=True)
    guest = cloud.guest(uuid)
    assert guest is not None
    assert guest.kept == {}


@pytest.mark.spec("RSZ-05")
@in_cloud()
async def test_a_confirm_whose_record_is_gone_frees_everything_all_the_same(cloud: SmallCloud) -> None:
    uuid = await resized(cloud)
    cloud.at["remove old disks/do/before"] = lambda _p: cloud.wire.spawn(cloud.erase(uuid))
    await confirm(cloud, uuid)
    await cloud.until(lambda: cloud.operation(uuid, "confirm-resize").finished_at)
    assert cloud.operation(uuid, "confirm-resize").state is OperationState.SUCCEEDED
    assert cloud.held(uuid) == {uuid: NEW}
    assert cloud.migrations(uuid)[0].status is MigrationStatus.CONFIRMED


@pytest.mark.spec("RSZ-13", "RSZ-18")
@in_cloud()
async def test_a_delete_during_a_confirm_keeps_its_task(cloud: SmallCloud) -> None:
    uuid = await resized(cloud)
    cloud.history.clear()
    cloud.hypervisors["host0"].faults.latency = 3.0
    await confirm(cloud, uuid)
    await cloud.until(lambda: cloud.calls("drop_kept_disks"))
    await cloud.delete(uuid)
    await cloud.rest()
    assert cloud.states(uuid) == [
        ("resized", "resize_confirming"), ("resized", "deleting"), ("active", "deleting"), ("deleted", None),
    ]
    cloud.gone(uuid)
    assert cloud.migrations(uuid)[0].status is MigrationStatus.CONFIRMED


# --- revert ---------------------------------------------------------------------------------------------


@pytest.mark.spec(
    "MIG-10", "MIG-16", "RSZ-26", "RSZ-28", "RSZ-46", "RSZ-53", "RSZ-54", "RSZ-55", "RSZ-59", "RSZ-60", "RSZ-62",
    "RSZ-65",
)
@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_a_resize_is_reverted(stopped: bool) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await resized(cloud, stopped=stopped)
        before = cloud.server(uuid)
        cloud.history.clear()
        cloud.effects.clear()
        await revert(cloud, uuid)
        await cloud.rest()
        settled = "stopped" if stopped else "active"
        assert cloud.states(uuid) == [("resized", "resize_reverting"), (settled, None)]
        is_as_before(cloud, uuid, VmState(settled))
        assert cloud.migrations(uuid)[0].status is MigrationStatus.REVERTED
        launched = cloud.server(uuid).launched_at
        assert launched is not None
        assert before.launched_at is not None
        assert launched > before.launched_at
        assert len(cloud.calls("power_on")) == (0 if stopped else 1)
        assert cloud.api(lambda conn: build_requests.spec_of(conn, uuid)).flavor == FLAVOR
        assert (await cloud.actions(uuid))[-1].action == "revertResize"

    story()


@pytest.mark.spec("RSZ-50")
@pytest.mark.parametrize("broken", ["vifs", "power_off"])
def test_a_revert_that_gave_nothing_up_can_be_asked_for_again(broken: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await resized(cloud)
        if broken == "vifs":
            cloud.net.fail["vifs"] = [REFUSES]
        else:
            cloud.fail(broken, REFUSES)
        await revert(cloud, uuid)
        await cloud.rest()
        assert (cloud.server(uuid).vm_state, cloud.server(uuid).task_state) == (VmState.RESIZED, None)
        assert cloud.migrations(uuid)[0].status is MigrationStatus.FINISHED
        assert cloud.faults(uuid) == 1
        await revert(cloud, uuid)
        await cloud.rest()
        is_as_before(cloud, uuid)

    story()


@pytest.mark.spec("RSZ-49", "RSZ-50", "RSZ-64", "RSZ-66")
@pytest.mark.parametrize("broken", ["revert_disks", "power_on"])
def test_a_revert_that_fails_later_leaves_a_server_of_the_old_flavor_in_error(broken: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await resized(cloud)
        cloud.fail(broken, REFUSES)
        await revert(cloud, uuid)
        await cloud.rest()
        server = cloud.server(uuid)
        assert (server.vm_state, server.task_state, server.flavor) == (VmState.ERROR, None, FLAVOR)
        assert cloud.held(uuid) == {uuid: OLD}
        assert cloud.migrations(uuid)[0].status is MigrationStatus.ERROR
        assert cloud.faults(uuid) == 1
        await cloud.reboot(uuid, hard=True)
        await cloud.rest()
        assert cloud.server(uuid).vm_state is VmState.ACTIVE
        guest = cloud.guest(uuid)
        assert guest is not None
        assert (guest.vcpus, guest.memory_mib) == (1, 512)

    story()


@pytest.mark.spec("RSZ-29", "MIG-12", "MIG-13")
@in_cloud()
async def test_a_revert_does_not_go_on_without_the_old_claim(cloud: SmallCloud) -> None:
    uuid = await resized(cloud)
    cloud.at["return claim/do/before"] = lambda _p: setattr(cloud.trouble, "db_error", 1.0)
    await revert(cloud, uuid)
    await cloud.until(lambda: cloud.trouble.db_error)
    assert len(cloud.held(uuid)) == 2
    assert cloud.calls("revert_disks") == []
    cloud.trouble.calm()
    await cloud.rest(within=600)
    is_as_before(cloud, uuid)


@pytest.mark.spec("MIG-11")
@in_cloud()
async def test_a_revert_whose_old_claim_is_lost_says_so_and_leaves_placement_alone(cloud: SmallCloud) -> None:
    uuid = await resized(cloud)
    (migration,) = cloud.migrations(uuid)
    await cloud.databases.api.write(lambda conn: claims.release(conn, migration.uuid))
    held = cloud.held(uuid)
    with structlog.testing.capture_logs() as logs:
        await revert(cloud, uuid)
        await cloud.rest()
    assert cloud.held(uuid) == held
    told = [line for line in logs if line["log_level"] == "error" and line.get("migration") == migration.uuid]
    assert [line["instance"] for line in told] == [uuid]


@pytest.mark.spec("RSZ-47", "RSZ-68")
@pytest.mark.parametrize("who", ["conductor0", "host0"])
@pytest.mark.parametrize("step", ["power off", "return claim", "revert disks", "start guest"])
def test_a_revert_that_is_cut_off_goes_on(step: str, who: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await resized(cloud)
        cloud.at[f"revert-resize/{step}/do/"] = lambda _p: cloud.crash(who)
        await revert(cloud, uuid)
        await cloud.until(lambda: not cloud.processes[who].alive)
        await cloud.boot(who)
        await cloud.rest()
        is_as_before(cloud, uuid)
        assert cloud.migrations(uuid)[0].status is MigrationStatus.REVERTED

    story()


# --- delete ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["claim", "power off", "resize disks", "connect", "start guest"])
def test_a_delete_during_a_resize_frees_everything(step: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        cloud.at[f"resize/{step}/do/before"] = lambda _p: cloud.wire.spawn(cloud.delete(uuid))
        await resize(cloud, uuid)
        await cloud.until(lambda: cloud.server(uuid).deleted_at is not None)
        await cloud.rest()
        cloud.gone(uuid)
        assert cloud.migrations(uuid)[0].status is MigrationStatus.ERROR

    story()


@pytest.mark.parametrize("act", [None, confirm, revert])
def test_a_delete_of_a_resized_server_frees_everything(act: object) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await resized(cloud)
        cloud.hypervisors["host0"].faults.latency = 1.0
        if act is not None:
            await act(cloud, uuid)  # type: ignore[operator]
        await cloud.delete(uuid)
        await cloud.rest()
        cloud.gone(uuid)
        assert cloud.migrations(uuid)[0].status in (MigrationStatus.CONFIRMED, MigrationStatus.REVERTED)

    story()


@in_cloud()
async def test_a_delete_while_the_host_is_dead_frees_both_claims(cloud: SmallCloud) -> None:
    uuid = await resized(cloud)
    cloud.crash("host0")
    await cloud.delete(uuid)
    await cloud.rest()
    assert cloud.held(uuid) == {}
    await cloud.boot("host0")
    await cloud.rest(debts=True)
    cloud.gone(uuid)


@pytest.mark.spec("RSZ-13")
@pytest.mark.parametrize("act", [None, confirm, revert])
def test_a_resize_outlives_a_soft_delete(act: object) -> None:
    """What is being decided is decided; what is not decided waits for its user after the restore."""
    @in_cloud(options=msgspec.structs.replace(OPTIONS, reclaim_instance_interval=10_000.0))
    async def story(cloud: SmallCloud) -> None:
        uuid = await resized(cloud)
        cloud.hypervisors["host0"].faults.latency = 1.0
        if act is not None:
            await act(cloud, uuid)  # type: ignore[operator]
            await cloud.until(lambda: cloud.calls("drop_kept_disks", "revert_disks"))
        await cloud.delete(uuid)
        await cloud.rest()
        assert cloud.server(uuid).vm_state is VmState.SOFT_DELETED
        await cloud.act(uuid, RESTORE, RestoreServer())
        await cloud.rest()
        if act is None:
            assert cloud.server(uuid).vm_state is VmState.RESIZED
            await revert(cloud, uuid)
            await cloud.rest()
        assert (cloud.server(uuid).vm_state, cloud.server(uuid).task_state) == (VmState.ACTIVE, None)
        if act is confirm:
            assert (cloud.server(uuid).flavor, cloud.held(uuid)) == (BIG, {uuid: NEW})
        else:
            is_as_before(cloud, uuid)

    story()


@pytest.mark.spec("RSZ-18", "PER-45")
@pytest.mark.parametrize("act", [confirm, revert])
def test_a_resize_whose_migration_is_in_error_can_still_be_decided_on(act: object) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await resized(cloud)
        (migration,) = cloud.migrations(uuid)
        await cloud.databases.cell.write(lambda conn: migration_records.change(
            conn, migration.uuid, now=cloud.now, was=(MigrationStatus.FINISHED,), status=MigrationStatus.ERROR
        ))
        await act(cloud, uuid)  # type: ignore[operator]
        await cloud.rest()
        assert cloud.server(uuid).vm_state is VmState.ACTIVE
        assert list(cloud.held(uuid)) == [uuid]
        assert cloud.migrations(uuid)[0].status in (MigrationStatus.CONFIRMED, MigrationStatus.REVERTED)

    story()
