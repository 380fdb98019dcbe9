"""Starting servers again that were taken from their hosts."""

from __future__ import annotations

import msgspec
import pytest
import structlog
from small_cloud import CONTEXT, OPTIONS, SmallCloud, in_cloud
from test_shelve_offload import is_offloaded, offload, offloaded

from kilonova.db import build_requests
from kilonova.domain.errors import Forbidden, InstanceInvalidState, InstanceNotReady, KilonovaError, TryElsewhere
from kilonova.domain.instance import InjectedFile
from kilonova.domain.states import PowerState, TaskState, VmState
from kilonova.operations.shelve import UNSHELVE, UnshelveServer
from kilonova.operations.unshelve_offloaded import UNSHELVE_OFFLOADED, UnshelveOffloaded
from kilonova.services.placement import Pin

REFUSES = KilonovaError("the hypervisor refuses")
WIRED = UnshelveOffloaded(wiring_timeout=30.0)


async def unshelve(cloud: SmallCloud, uuid: str, request: UnshelveOffloaded = WIRED) -> None:
    await cloud.act(uuid, UNSHELVE_OFFLOADED, request)


def runs(cloud: SmallCloud, uuid: str, host: str) -> None:
    """Fail unless the server runs on that host, and needs its shelf no more."""
    server = cloud.server(uuid)
    assert (server.vm_state, server.task_state, server.power_state) == (VmState.ACTIVE, None, PowerState.RUNNING)
    assert (server.host, server.node, server.launched_on) == (host, host, host)
    assert not [key for key in server.system_metadata if key.startswith("shelved")]
    assert cloud.power(uuid) is PowerState.RUNNING
    assert cloud.claims(uuid) == [host]
    assert [port.binding_host for port in cloud.net.of(uuid)] == [host]
    assert cloud.images.kept() == []


@pytest.mark.spec("SHV-32", "SHV-33", "SHV-35", "SHV-36", "SHV-38", "SHV-48", "SHV-54", "SHV-55")
@in_cloud()
async def test_the_guest_is_made_from_the_image_of_the_shelf(cloud: SmallCloud) -> None:
    uuid = await cloud.build(
        key_name="key", key_data="ssh-rsa AAAA", auto_disk_config=True, admin_password="secret",
        injected_files=(InjectedFile("/x", b"x"),),
    )
    before = cloud.server(uuid)
    await cloud.compute.shelve(CONTEXT, await cloud.located(uuid))
    await cloud.rest()
    (image,) = cloud.images.kept()
    await offload(cloud, uuid)
    await cloud.rest()
    cloud.history.clear()
    cloud.effects.clear()
    await unshelve(cloud, uuid)
    await cloud.rest()
    runs(cloud, uuid, "host0")
    _, _, guest = cloud.guests_made[-1]
    assert guest.image is not None
    assert (guest.image.id, guest.metadata.keys, guest.metadata.admin_password, guest.metadata.files) == (
        image.id, {}, "", ())
    after = cloud.server(uuid)
    assert after.launched_at is not None
    assert before.launched_at is not None
    assert after.launched_at > before.launched_at
    for record in cloud.history:
        assert (record.image_ref, record.image, record.key_data, record.auto_disk_config) == (
            before.image_ref, before.image, "ssh-rsa AAAA", True)
    assert cloud.states(uuid) == [
        ("shelved_offloaded", "unshelving"), ("shelved_offloaded", "spawning"), ("active", "spawning"),
        ("active", None),
    ]
    hosts = [i.host for i in cloud.history]
    assert [n for _, n in cloud.calls("go_to_host", "create_disks", "spawn")] == ["go_to_host", "create_disks", "spawn"]
    assert hosts[0] is None


@pytest.mark.spec("SHV-49")
@in_cloud()
async def test_the_image_goes_when_nothing_needs_it(cloud: SmallCloud) -> None:
    uuid = await offloaded(cloud)
    seen: list[VmState] = []
    cloud.at["unshelve-offloaded/drop image/do/before"] = lambda _p: seen.append(cloud.server(uuid).vm_state)
    await unshelve(cloud, uuid)
    await cloud.rest()
    assert seen == [VmState.ACTIVE]
    runs(cloud, uuid, "host0")


@pytest.mark.spec("SHV-33", "PWR-21")
@in_cloud()
async def test_an_image_that_stays_keeps_no_server_offloaded(cloud: SmallCloud) -> None:
    uuid = await offloaded(cloud)
    cloud.images.fail["delete"] = [Forbidden("protected")]
    with structlog.testing.capture_logs() as logs:
        await unshelve(cloud, uuid)
        await cloud.rest()
    assert (cloud.server(uuid).vm_state, cloud.faults(uuid)) == (VmState.ACTIVE, 0)
    assert [e["log_level"] for e in logs if e["event"] == "image left over"] == ["warning"]


@pytest.mark.spec("SHV-42", "SHV-43", "SHV-44", "SHV-46")
@pytest.mark.parametrize("call", ["go_to_host", "create_disks", "spawn", "resume"])
def test_a_server_that_cannot_be_unshelved_stays_on_its_shelf(call: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await offloaded(cloud)
        if call == "go_to_host":
            cloud.net.fail[call] = [REFUSES]
        else:
            cloud.fail(call, REFUSES)
        await unshelve(cloud, uuid)
        await cloud.rest()
        is_offloaded(cloud, uuid)
        fault = cloud.fault(uuid)
        assert fault is not None
        assert fault.message == REFUSES.message
        await unshelve(cloud, uuid)
        await cloud.rest()
        runs(cloud, uuid, "host0")

    story()


@pytest.mark.spec("SHV-43")
@in_cloud()
async def test_one_clean_up_that_fails_keeps_no_other_from_its_work(cloud: SmallCloud) -> None:
    uuid = await offloaded(cloud)
    cloud.fail("spawn", REFUSES)
    cloud.always_fail("delete_disks", KilonovaError("disks stay"))
    await unshelve(cloud, uuid)
    await cloud.until(lambda: cloud.server(uuid).task_state is None, within=900.0)
    server = cloud.server(uuid)
    assert (server.vm_state, server.host, cloud.claims(uuid)) == (VmState.SHELVED_OFFLOADED, None, [])
    assert [port.binding_host for port in cloud.net.of(uuid)] == [""]
    fault = cloud.fault(uuid)
    assert fault is not None
    assert fault.message == REFUSES.message
    cloud.heal()
    await cloud.rest(debts=True, within=900.0)
    is_offloaded(cloud, uuid)


@pytest.mark.spec("SHV-42")
@in_cloud(hosts=2)
async def test_a_host_that_cannot_take_it_is_left_for_another(cloud: SmallCloud) -> None:
    uuid = await offloaded(cloud)
    cloud.fail("spawn", TryElsewhere("no room here"))
    await unshelve(cloud, uuid)
    await cloud.rest()
    tried, taken = [host for host, name in cloud.calls("spawn")][-2:]
    assert tried != taken
    runs(cloud, uuid, taken)


@pytest.mark.spec("SHV-53")
@in_cloud(hosts=2)
async def test_a_guest_that_may_run_on_a_silent_host_is_made_nowhere_else(cloud: SmallCloud) -> None:
    uuid = await offloaded(cloud)
    left: list[str] = []

    def die(_process: str) -> None:
        host = cloud.server(uuid).host
        assert host is not None
        left.append(host)
        cloud.crash(host)

    cloud.at["unshelve-offloaded/start guest/do/answered"] = die
    await unshelve(cloud, uuid)
    await cloud.until(lambda: left and cloud.server(uuid).task_state is None, within=900.0)
    server = cloud.server(uuid)
    assert (server.vm_state, server.host, cloud.claims(uuid)) == (VmState.ERROR, left[0], left)
    with pytest.raises(InstanceInvalidState):
        await unshelve(cloud, uuid)
    await cloud.restart(left[0])
    await cloud.until(lambda: cloud.server(uuid).host is None, within=900.0)
    await cloud.rest(debts=True, within=900.0)
    is_offloaded(cloud, uuid, PowerState.NOSTATE)


@pytest.mark.spec("SHV-52", "SHV-53", "SHV-48", "INI-108")
@pytest.mark.parametrize("step", [
    "claim host", "bind ports", "create disks", "start guest", "let guest run", "drop image",
])
@pytest.mark.parametrize("moment", ["before", "answered"])
def test_an_unshelving_that_was_cut_off_goes_on(step: str, moment: str) -> None:
    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        uuid = await offloaded(cloud)

        def die(_process: str) -> None:
            cloud.crash("host0")
            cloud.crash("conductor0")

        cloud.at[f"unshelve-offloaded/{step}/do/{moment}"] = die
        await unshelve(cloud, uuid)
        await cloud.until(lambda: not cloud.at)
        await cloud.restart("host0", "conductor0")
        await cloud.rest()
        runs(cloud, uuid, "host0")
        assert cloud.faults(uuid) == 0

    story()


@pytest.mark.spec("SHV-50")
@in_cloud()
async def test_a_record_that_changed_meanwhile_is_left_alone(cloud: SmallCloud) -> None:
    uuid = await offloaded(cloud)
    await unshelve(cloud, uuid)
    cloud.wire.spawn(cloud.change(uuid, task_state=TaskState.REBUILDING))
    await cloud.rest()
    assert cloud.guest(uuid) is None
    assert cloud.claims(uuid) == []
    assert cloud.server(uuid).task_state is TaskState.REBUILDING


@pytest.mark.spec("SHV-51")
@in_cloud()
async def test_a_guest_whose_record_cannot_be_saved_goes_again(cloud: SmallCloud) -> None:
    uuid = await offloaded(cloud)

    def steal(_process: str) -> None:
        cloud.wire.spawn(cloud.change(uuid, task_state=TaskState.REBUILDING))

    cloud.at["unshelve-offloaded/let guest run/do/before"] = steal
    await unshelve(cloud, uuid)
    await cloud.rest()
    assert cloud.guest(uuid) is None
    assert cloud.claims(uuid) == []


@in_cloud()
async def test_a_shelf_without_an_image_claims_nothing(cloud: SmallCloud) -> None:
    uuid = await offloaded(cloud)
    cloud.images.images.popitem()
    await unshelve(cloud, uuid)
    await cloud.rest()
    server = cloud.server(uuid)
    assert (server.vm_state, server.task_state, server.host) == (VmState.SHELVED_OFFLOADED, None, None)
    fault = cloud.fault(uuid)
    assert fault is not None
    assert "could not be found" in fault.message
    assert cloud.claims(uuid) == []


@in_cloud()
async def test_no_host_can_take_it(cloud: SmallCloud) -> None:
    uuid = await offloaded(cloud)
    await unshelve(cloud, uuid, UnshelveOffloaded(host="nowhere", wiring_timeout=30.0))
    await cloud.rest()
    is_offloaded(cloud, uuid)
    fault = cloud.fault(uuid)
    assert fault is not None
    assert "No valid host" in fault.message


@pytest.mark.spec("API-577", "API-591")
@in_cloud(hosts=2)
async def test_it_goes_where_it_is_asked_to(cloud: SmallCloud) -> None:
    for host in ("host0", "host1"):
        uuid = await offloaded(cloud)
        await unshelve(cloud, uuid, msgspec.structs.replace(WIRED, host=host, pin=Pin("nova")))
        await cloud.rest()
        runs(cloud, uuid, host)
        spec = cloud.api(lambda conn, of=uuid: build_requests.spec_of(conn, of))
        assert (spec.availability_zone, spec.requested_host) == ("nova", None)
        await cloud.compute.shelve(CONTEXT, await cloud.located(uuid))
        await cloud.delete(uuid)
        await cloud.rest()
    uuid = await offloaded(cloud)
    await unshelve(cloud, uuid, msgspec.structs.replace(WIRED, pin=Pin("mars")))
    await cloud.rest()
    is_offloaded(cloud, uuid)
    assert cloud.api(lambda conn: build_requests.spec_of(conn, uuid)).availability_zone is None
    await unshelve(cloud, uuid, msgspec.structs.replace(WIRED, pin=Pin(None)))
    await cloud.rest()
    assert cloud.server(uuid).vm_state is VmState.ACTIVE


@pytest.mark.spec("EMG-31")
@in_cloud()
async def test_the_service_chooses_the_way_by_the_state(cloud: SmallCloud) -> None:
    uuid = await offloaded(cloud)
    with pytest.raises(InstanceNotReady):
        await cloud.act(uuid, UNSHELVE, UnshelveServer())
    await cloud.compute.unshelve(CONTEXT, await cloud.located(uuid))
    await cloud.rest()
    runs(cloud, uuid, "host0")
    assert [action.action for action in await cloud.actions(uuid)] == ["create", "shelve", "shelveOffload", "unshelve"]
    assert OPTIONS.vif_plugging_timeout == 30.0


@in_cloud()
async def test_a_delete_ends_an_unshelving(cloud: SmallCloud) -> None:
    uuid = await offloaded(cloud)
    cloud.at["unshelve-offloaded/start guest/do/answered"] = lambda _p: cloud.wire.spawn(cloud.delete(uuid))
    await unshelve(cloud, uuid)
    await cloud.until(lambda: cloud.server(uuid).deleted_at)
    await cloud.rest()
    cloud.gone(uuid)
    assert cloud.images.kept() == []
