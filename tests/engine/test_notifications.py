"""Who is told of what, when, and what becomes of it if something goes wrong on the way."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from simulation.listeners import LISTENERS
from simulation.run import ASKED
from small_cloud import CONTEXT, IMAGE, SmallCloud, in_cloud

from kilonova.db import block_devices
from kilonova.db.outbox import cell_outbox
from kilonova.domain.block_device import AttachState
from kilonova.domain.errors import KilonovaError
from kilonova.domain.image import Image
from kilonova.domain.notification import Notification
from kilonova.domain.operation import ExternalEvent, OperationState
from kilonova.domain.states import VmState
from kilonova.notifications.sinks import Refused
from kilonova.operations import notices
from kilonova.operations.attach_volume import ATTACH_VOLUME, AttachVolume
from kilonova.operations.catalogue import CELL_OPERATIONS
from kilonova.operations.detach_interface import DETACH_INTERFACE, DetachInterface
from kilonova.operations.detach_volume import DETACH_VOLUME, DetachVolume
from kilonova.operations.fixed_ip import REMOVE_FIXED_IP, RemoveFixedIp
from kilonova.operations.pause import PAUSE_SERVER, PauseServer
from kilonova.operations.rebuild import REBUILD, Origin, RebuildServer
from kilonova.operations.rebuild_root_volume import REBUILD_ROOT_VOLUME, RebuildRootVolume
from kilonova.operations.shelve_volumes import SHELVE_VOLUMES, ShelveOnVolumes
from kilonova.operations.snapshot import SnapshotServer
from kilonova.operations.snapshot_volumes import SNAPSHOT_VOLUMES
from kilonova.operations.swap_volume import SWAP_VOLUME, SwapVolume
from kilonova.services.image import NewImage
from kilonova.shapes.quiesce import Quiesce

Ask = Callable[[SmallCloud, str], Awaitable[Any]]
LEFT, RIGHT = LISTENERS
REFUSES = KilonovaError("the hypervisor refuses")
OTHER_IMAGE = Image(id="33333333-3333-4333-8333-333333333333", name="other")


def asked(name: str) -> Ask:
    return lambda cloud, uuid: cloud.act(uuid, *ASKED[name])


async def rebuild(cloud: SmallCloud, uuid: str) -> None:
    before = Origin.of(cloud.server(uuid))
    after = msgspec.structs.replace(before, image=OTHER_IMAGE, image_ref=OTHER_IMAGE.id)
    await cloud.act(uuid, REBUILD, RebuildServer(before=before, after=after, admin_password="secret"))


async def rebuild_root_volume(cloud: SmallCloud, uuid: str) -> None:
    """As if the server had been made to boot from the volume that it has."""
    (device,) = cloud.devices(uuid)
    now = cloud.now
    await cloud.databases.cell.write(lambda conn: block_devices.update(
        conn, device.uuid, now=now, was=tuple(AttachState), boot_index=0
    ))
    before = Origin.of(cloud.server(uuid))
    request = RebuildRootVolume(before=before, after=before, image_id=OTHER_IMAGE.id, admin_password="secret")
    await cloud.act(uuid, REBUILD_ROOT_VOLUME, request)


async def detach(cloud: SmallCloud, uuid: str) -> None:
    await cloud.act(uuid, DETACH_INTERFACE, DetachInterface(cloud.server(uuid).network_info[0].id))


async def attach_volume(cloud: SmallCloud, uuid: str) -> None:
    await cloud.act(uuid, ATTACH_VOLUME, AttachVolume(volume_id=cloud.volumes.add()))


async def detach_volume(cloud: SmallCloud, uuid: str) -> None:
    await cloud.act(uuid, DETACH_VOLUME, DetachVolume(cloud.devices(uuid)[0].volume_id or ""))


async def swap_volume(cloud: SmallCloud, uuid: str) -> None:
    old = cloud.devices(uuid)[0].volume_id or ""
    await cloud.act(uuid, SWAP_VOLUME, SwapVolume(old, cloud.volumes.migrate(old)))


async def remove_address(cloud: SmallCloud, uuid: str) -> None:
    address = cloud.server(uuid).network_info[0].fixed_ips[0].address
    await cloud.act(uuid, REMOVE_FIXED_IP, RemoveFixedIp(address))


async def image(cloud: SmallCloud, uuid: str) -> None:
    await cloud.compute.create_image(CONTEXT, await cloud.located(uuid), "snap", {})


async def image_of_volumes(cloud: SmallCloud, uuid: str) -> None:
    image = NewImage(id="44444444-3333-4333-8333-333333333333", name="snap", owner="project")
    await cloud.act(uuid, SNAPSHOT_VOLUMES, SnapshotServer(image=image, quiesce=Quiesce.TRY))


async def backup(cloud: SmallCloud, uuid: str) -> None:
    located = await cloud.located(uuid)
    await cloud.compute.create_backup(CONTEXT, located, "backup", {}, backup_type="daily", rotation=1)


async def shelve_on_volumes(cloud: SmallCloud, uuid: str) -> None:
    await cloud.act(uuid, SHELVE_VOLUMES, ShelveOnVolumes(grace=20.0, interval=5.0))


async def shelve(cloud: SmallCloud, uuid: str) -> None:
    await cloud.compute.shelve(CONTEXT, await cloud.located(uuid))


REQUESTS: dict[str, tuple[tuple[str, ...], Ask, str, str]] = {
    "stop": ((), SmallCloud.stop, "power_off", "power_off"),
    "start": (("stop",), asked("start"), "power_on", "power_on"),
    "soft-reboot": ((), SmallCloud.reboot, "reboot", "reboot"),
    "hard-reboot": ((), lambda cloud, uuid: cloud.reboot(uuid, hard=True), "reboot", "reboot"),
    "pause": ((), asked("pause"), "pause", "pause"),
    "unpause": (("pause",), asked("unpause"), "unpause", "unpause"),
    "suspend": ((), asked("suspend"), "suspend", "suspend"),
    "resume": (("suspend",), asked("resume"), "resume", "resume"),
    "trigger-crash-dump": ((), asked("crash dump"), "trigger_crash_dump", "trigger_crash_dump"),
    "attach-interface": ((), asked("attach"), "interface_attach", ""),
    "detach-interface": ((), detach, "interface_detach", ""),
    "attach-volume": ((), attach_volume, "volume_attach", "volume.attach"),
    "detach-volume": (("attach-volume",), detach_volume, "volume_detach", "volume.detach"),
    "swap-volume": (("attach-volume",), swap_volume, "volume_swap", ""),
    "attach-share": (("stop",), asked("attach share"), "share_attach", ""),
    "detach-share": (("attach-share",), asked("detach share"), "share_detach", ""),
    "add-fixed-ip": ((), asked("add address"), "", "create_ip"),
    "remove-fixed-ip": ((), remove_address, "", "delete_ip"),
    "rebuild": ((), rebuild, "rebuild", "rebuild"),
    "rebuild-root-volume": (("attach-volume",), rebuild_root_volume, "rebuild", "rebuild"),
    "rescue": ((), asked("rescue"), "rescue", "rescue"),
    "unrescue": (("rescue",), asked("unrescue"), "unrescue", "unrescue"),
    "snapshot": ((), image, "snapshot", "snapshot"),
    "snapshot-volumes": ((), image_of_volumes, "snapshot", "snapshot"),
    "backup": ((), backup, "snapshot", "snapshot"),
    "shelve": ((), shelve, "shelve", "shelve"),
    "shelve-on-volumes": ((), shelve_on_volumes, "shelve", "shelve"),
    "unshelve": (("shelve",), asked("unshelve"), "unshelve", "unshelve"),
    "shelve-offload": (("shelve",), asked("offload"), "shelve_offload", "shelve_offload"),
    "unshelve-offloaded": (("shelve-offload",), asked("unshelve offloaded"), "unshelve", "unshelve"),
    "soft-delete": ((), asked("soft-delete"), "soft_delete", "soft_delete"),
    "restore": (("soft-delete",), asked("restore"), "restore", "restore"),
    "confirm-resize": (("resize",), asked("confirm"), "resize_confirm", "resize.confirm"),
    "revert-resize": (("resize",), asked("revert"), "resize_revert", "resize.revert"),
    "delete": ((), SmallCloud.delete, "delete", "delete"),
}
"""By operation: what leads to it, how it is asked for, and its names in both forms."""
OF_PARTS = {"resize": ((), asked("resize"), "", "")}
ONCE = ("volume.attach", "volume.detach")
"""In the older form told when it is done, and without a phase."""
GO_FORWARD = ("confirm-resize", "delete")


def story_of(operation: str) -> tuple[tuple[str, ...], Ask, str, str]:
    return (REQUESTS | OF_PARTS)[operation]


async def done(cloud: SmallCloud, uuid: str, operation: str) -> None:
    before, ask, *_ = story_of(operation)
    for earlier in before:
        await done(cloud, uuid, earlier)
    await ask(cloud, uuid)
    await cloud.rest()


async def everything_told(cloud: SmallCloud) -> None:
    rows = sa.select(sa.func.count()).select_from(cell_outbox.rows)
    await cloud.until(lambda: cloud.cell(lambda conn: conn.execute(rows).scalar()) == 0)


async def heard(cloud: SmallCloud, *, versioned: bool = True, sink: str = LEFT) -> list[Notification]:
    """What a listener knows, each message once."""
    await everything_told(cloud)
    return [message for message in cloud.ears.once(sink) if message.versioned is versioned]


def names(messages: list[Notification], *about: str) -> list[str]:
    """Their types, in order; those about these actions, or all."""
    return [m.event_type for m in messages if not about or m.event_type.rpartition(".")[0] in about]


def once(messages: list[Notification], older: str) -> list[str]:
    """Those that have no phase."""
    return [m.event_type for m in messages if m.event_type == f"compute.instance.{older}"]


# --- every operation ------------------------------------------------------------------------------------


def test_others_are_told_of_every_operation_that_users_see() -> None:
    """What the history of a server shows, others are told of; and each of these is asked for below."""
    told = {o.name for o in CELL_OPERATIONS if any(isinstance(n, notices.InstanceAction) for n in o.notices)}
    shown = {o.name for o in CELL_OPERATIONS if o.action}
    assert shown - told == {"change-password", "extend-volume"}  # of which only failures are told
    assert told == {*REQUESTS, *OF_PARTS, "build"}
    assert {o.name for o in CELL_OPERATIONS if not o.notices} & shown == set()


@pytest.mark.spec(
    "BLD-43", "PWR-08", "PWR-19", "PWR-26", "RBT-07", "RBT-13", "SUS-01", "SUS-02", "SUS-15", "SNP-12", "SNP-15",
    "IFC-25", "IFC-32", "IFC-45", "RSZ-07", "RSZ-14", "RSZ-52", "RBD-34", "DEL-27", "FIP-01", "FIP-02", "SHV-03",
    "SHV-19", "SHV-39", "VOL-16", "VOL-19", "VOL-39", "VOL-14", "SWP-08", "SWP-21",
)
@pytest.mark.parametrize("operation", REQUESTS)
def test_an_operation_is_told_from_its_start_to_its_end(operation: str) -> None:
    @in_cloud(told=True)
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        before, ask, action, older = story_of(operation)
        for earlier in before:
            await done(cloud, uuid, earlier)
        await everything_told(cloud)
        cloud.ears.heard.clear()
        await ask(cloud, uuid)
        await cloud.rest()
        assert cloud.operation(uuid, operation).state is OperationState.SUCCEEDED
        messages = await heard(cloud)
        expected = [f"instance.{action}.start", f"instance.{action}.end"] if action else []
        assert names(messages, f"instance.{action}") == expected
        others = await heard(cloud, versioned=False)
        expected = [f"compute.instance.{older}.start", f"compute.instance.{older}.end"] if older else []
        expected = [f"compute.instance.{older}"] if older in ONCE else expected
        assert names(others, f"compute.instance.{older}") + once(others, older) == expected
        for message in [*messages, *others]:
            assert (message.subject, message.priority, message.request_id) == (uuid, "INFO", "req-1")
            homeless = operation == "unshelve-offloaded" and message.event_type.endswith(".start")
            told_by = ("nova-api:", "api.") if homeless else ("nova-compute:host0", "compute.host0")
            assert message.publisher_id.startswith(told_by)

    story()


@pytest.mark.spec(
    "PWR-15", "RBT-17", "SUS-10", "SNP-20", "IFC-33", "IFC-49", "DEL-83", "RBD-59", "VOL-02", "VOL-22", "VOL-43",
    "SWP-22", "SWP-29",
)
@pytest.mark.parametrize("operation", [name for name in REQUESTS if name not in GO_FORWARD])
def test_an_operation_that_fails_tells_so_and_tells_no_end(operation: str) -> None:
    """The error closes the pair, and tells what a user finds in the fault."""
    @in_cloud(told=True)
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        before, ask, action, older = story_of(operation)
        for earlier in before:
            await done(cloud, uuid, earlier)
        await everything_told(cloud)
        cloud.ears.heard.clear()
        for call in EVERY_CALL:
            cloud.always_fail(call, REFUSES)
        for call in ("add_address", "set_addresses"):
            cloud.net.fail[call] = [KilonovaError("no addresses")]
        await ask(cloud, uuid)
        await cloud.rest(within=2000.0)
        ended = cloud.operation(uuid, operation)
        assert ended.state is OperationState.FAILED
        messages = await heard(cloud)
        expected = [f"instance.{action}.start", f"instance.{action}.error"] if action else []
        assert names(messages, f"instance.{action}", "compute") == [*expected, "compute.exception"]
        for message in (m for m in messages if m.priority == "ERROR"):
            data = message.payload["nova_object.data"]
            error = (data.get("fault") or message.payload)["nova_object.data"]
            assert ended.failure is not None
            assert error["exception_message"] == ended.failure.message
        others = await heard(cloud, versioned=False)
        expected = [f"compute.instance.{older}.start", f"compute.instance.{older}.error"] if older else []
        expected = [] if older in ONCE else expected
        assert names(others, f"compute.instance.{older}") + once(others, older) == expected

    story()


EVERY_CALL = (
    "power_off", "power_on", "soft_reboot", "hard_reboot", "pause", "resume", "suspend", "wake", "inject_nmi",
    "attach_interface", "detach_interface", "snapshot", "freeze", "prepare_disks", "prepare_rescue",
    "absent_shares", "power_state", "attach_volume", "detach_volume", "start_copy",
)



# --- what is told ---------------------------------------------------------------------------------------


@pytest.mark.spec("BLD-83", "BLD-84", "BLD-100")
@in_cloud(told=True)
async def test_a_build_is_told_in_both_forms(cloud: SmallCloud) -> None:
    uuid = await cloud.build(hostname="vm", tags=("one",), key_name="mine", key_data="ssh-rsa AAAA")
    start, end = await heard(cloud)
    assert names([start, end]) == ["instance.create.start", "instance.create.end"]
    assert start.publisher_id == end.publisher_id == "nova-compute:host0"
    before, after = (m.payload["nova_object.data"] for m in (start, end))
    assert end.payload["nova_object.name"] == "InstanceCreatePayload"
    assert (end.payload["nova_object.namespace"], end.payload["nova_object.version"]) == ("nova", "1.12")
    assert (before["state"], before["task_state"], before["host"], before["ip_addresses"]) == (
        "building", "scheduling", None, []
    )
    assert (after["state"], after["task_state"], after["power_state"], after["host"]) == (
        "active", None, "running", "host0"
    )
    assert (after["uuid"], after["tenant_id"], after["host_name"], after["fault"]) == (uuid, "project", "vm", None)
    assert (after["tags"], [key["nova_object.data"]["name"] for key in after["keypairs"]]) == (["one"], ["mine"])
    assert after["flavor"]["nova_object.data"]["memory_mb"] == 512
    address = after["ip_addresses"][0]["nova_object.data"]
    fixed = cloud.server(uuid).network_info[0].fixed_ips[0]
    assert (address["address"], address["port_uuid"]) == (fixed.address, cloud.ports(uuid)[0])
    older = await heard(cloud, versioned=False)
    assert names(older) == ["compute.instance.create.start", "compute.instance.create.end"]
    assert [(m.payload["message"], m.payload["image_name"]) for m in older] == [("", IMAGE.name), ("Success", "")]
    told = older[1].payload
    assert (told["instance_id"], told["memory_mb"], told["fixed_ips"][0]["address"]) == (uuid, 512, fixed.address)


@pytest.mark.spec("VOL-16", "VOL-19")
@in_cloud(told=True)
async def test_the_volumes_of_a_server_are_told(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    await heard(cloud)
    cloud.ears.heard.clear()
    volume = await cloud.attach(uuid, tag="data", delete_on_termination=True)
    start, end = await heard(cloud)
    assert names([start, end]) == ["instance.volume_attach.start", "instance.volume_attach.end"]
    for message in (start, end):
        data = message.payload["nova_object.data"]
        assert (message.payload["nova_object.name"], data["volume_id"]) == ("InstanceActionVolumePayload", volume)
        assert [one["nova_object.data"] for one in data["block_devices"]] == [{
            "device_name": "/dev/vdb", "tag": "data", "volume_id": volume, "delete_on_termination": True,
            "boot_index": None,
        }]
    (older,) = await heard(cloud, versioned=False)
    assert (older.event_type, older.payload["volume_id"]) == ("compute.instance.volume.attach", volume)
    await done(cloud, uuid, "stop")
    assert (await heard(cloud))[-1].payload["nova_object.data"]["block_devices"] != []
    await cloud.act(uuid, DETACH_VOLUME, DetachVolume(volume))
    await cloud.rest()
    end = (await heard(cloud))[-1]
    assert end.event_type == "instance.volume_detach.end"
    assert end.payload["nova_object.data"]["block_devices"] == []


@pytest.mark.spec("BLD-84", "BLD-92", "BLD-93", "BLD-100", "BLD-117", "BLD-25")
@in_cloud(told=True, hosts=2)
async def test_a_build_that_fails_everywhere_tells_so_once(cloud: SmallCloud) -> None:
    cloud.always_fail("spawn", REFUSES)
    uuid = await cloud.ask(cloud.new())
    await cloud.until(lambda: cloud.server(uuid).vm_state is VmState.ERROR)
    messages = await heard(cloud)
    assert names(messages, "instance.create") == ["instance.create.start", "instance.create.error"]
    assert names(messages, "instance.shutdown") == ["instance.shutdown.start", "instance.shutdown.end"]
    assert messages[-1].event_type == "compute.exception"


@pytest.mark.spec("BLD-06", "PWD-10")
@in_cloud(told=True)
async def test_no_secret_is_ever_told(cloud: SmallCloud) -> None:
    uuid = await cloud.build(admin_password="s3cret-pass", user_data="c2VjcmV0")
    cloud.always_fail("set_password", KilonovaError("no"))
    with pytest.raises(KilonovaError):
        await cloud.compute.change_password(CONTEXT, await cloud.located(uuid), "s3cret-pass")
    await cloud.rest()
    await everything_told(cloud)
    told = msgspec.json.encode(cloud.ears.heard[LEFT])
    assert b"s3cret-pass" not in told and b"c2VjcmV0" not in told


@pytest.mark.spec("DEL-12", "DEL-27")
@in_cloud(told=True)
async def test_a_delete_tells_of_the_shutdown_within_it(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    await heard(cloud)
    cloud.ears.heard.clear()
    await cloud.delete(uuid)
    await cloud.rest()
    messages = await heard(cloud)
    assert names(messages) == [
        "instance.delete.start", "instance.shutdown.start", "instance.shutdown.end", "instance.delete.end",
    ]
    states = [(m.payload["nova_object.data"]["state"], m.payload["nova_object.data"]["task_state"]) for m in messages]
    assert states == [("active", "deleting")] * 3 + [("deleted", None)]
    assert messages[-1].payload["nova_object.data"]["deleted_at"] is not None


@pytest.mark.spec("DEL-12")
@in_cloud(told=True)
async def test_a_shutdown_that_is_owed_has_not_succeeded(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    await heard(cloud)
    cloud.ears.heard.clear()
    cloud.crash("host0")
    await cloud.delete(uuid)
    await cloud.rest(within=600.0)
    assert names(await heard(cloud)) == [
        "instance.delete.start", "instance.shutdown.start", "instance.shutdown.error", "instance.delete.end",
    ]


@pytest.mark.spec("MIG-48", "MIG-49", "MIG-76", "MIG-93")
@in_cloud(told=True)
async def test_a_resize_is_told_in_three_parts(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    await heard(cloud)
    cloud.ears.heard.clear()
    await done(cloud, uuid, "resize")
    messages = await heard(cloud)
    assert names(messages) == [
        "instance.exists", "instance.resize_prep.start", "instance.resize_prep.end", "instance.resize.start",
        "instance.resize.end", "instance.resize_finish.start", "instance.resize_finish.end",
    ]
    flavors = [m.payload["nova_object.data"]["new_flavor"]["nova_object.data"]["name"] for m in messages[1:3]]
    assert flavors == ["bigger", "bigger"]
    older = await heard(cloud, versioned=False)
    assert names(older) == ["compute.instance.exists"] + [
        f"compute.instance.{part}.{phase}"
        for part in ("resize.prep", "resize", "finish_resize") for phase in ("start", "end")
    ]
    assert [m.payload.get("new_instance_type") for m in older] == [None, "bigger", "bigger"] + [None] * 4


@pytest.mark.spec("RBD-21", "RSC-12", "RSC-09", "SHV-03", "RSZ-39")
@pytest.mark.parametrize(
    ("operation", "at", "more"),
    [
        ("rebuild", 0, {"image_name": "other"}), ("rescue", 1, {"rescue_image_name": ""}), ("shelve", 0, {}),
        ("revert-resize", 0, {}),
    ],
)
def test_the_usage_so_far_is_told_before_something_changes_it(
    operation: str, at: int, more: dict[str, str]
) -> None:
    @in_cloud(told=True)
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        before, ask, action, _ = story_of(operation)
        for earlier in before:
            await done(cloud, uuid, earlier)
        await heard(cloud)
        cloud.ears.heard.clear()
        await ask(cloud, uuid)
        await cloud.rest()
        pair = [f"instance.{action}.start", f"instance.{action}.end"]
        pair.insert(at, "instance.exists")
        assert names(await heard(cloud)) == pair
        told = await heard(cloud, versioned=False)
        exists = told[at].payload
        assert exists["audit_period_beginning"].endswith("-01 00:00:00")
        assert exists["audit_period_beginning"] < exists["audit_period_ending"]
        assert all(more.items() <= m.payload.items() for m in told if m.event_type != "compute.instance.exists")

    story()


# --- order and delivery ---------------------------------------------------------------------------------


@pytest.mark.spec("RBT-08", "PWR-15")
@in_cloud(told=True)
async def test_what_is_preempted_tells_its_error_before_the_next_starts(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    await heard(cloud)
    cloud.ears.heard.clear()
    cloud.hypervisors["host0"].faults.latency = 5.0
    await cloud.act(uuid, PAUSE_SERVER, PauseServer())
    await cloud.until(lambda: "pause" in [e.name for e in cloud.effects])
    await cloud.delete(uuid)
    await cloud.rest()
    messages = names(await heard(cloud), "instance.pause", "instance.delete")
    assert messages[:2] in (["instance.pause.start", "instance.pause.error"],
                            ["instance.pause.start", "instance.pause.end"])
    assert messages[2:] == ["instance.delete.start", "instance.delete.end"]


@in_cloud(told=True, conductors=2)
async def test_a_crash_between_the_change_and_its_delivery_loses_nothing(cloud: SmallCloud) -> None:
    """Nor is anything told that did not happen: what the process told twice has the same message ID."""
    uuid = await cloud.build()
    await heard(cloud)
    cloud.ears.heard.clear()
    cloud.ears.deaf = set(LISTENERS)
    await cloud.stop(uuid)
    await cloud.rest()
    waiting = cloud.cell(lambda conn: cell_outbox.pending(conn, LEFT, without=(), count=100))
    assert [p.message.event_type for p in waiting if p.message.versioned] == [
        "instance.power_off.start", "instance.power_off.end",
    ]
    await cloud.restart("conductor0", "conductor1")
    cloud.ears.deaf = set()
    await everything_told(cloud)
    assert [m.message_id for m in cloud.ears.once(LEFT)] == [p.message.message_id for p in waiting]


@in_cloud(told=True)
async def test_an_answer_that_was_lost_makes_the_same_message_come_again(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    await heard(cloud)
    cloud.ears.heard.clear()
    original = cloud.ears.hear

    async def no_answer(sink: str, message: Notification) -> None:
        await original(sink, message)
        if len(cloud.ears.heard[sink]) == 1:
            raise KilonovaError("the answer is lost")

    cloud.ears.hear = no_answer  # type: ignore[method-assign]
    await cloud.stop(uuid)
    await cloud.rest()
    await everything_told(cloud)
    ids = [m.message_id for m in cloud.ears.heard[LEFT]]
    assert len(ids) == 5 and ids[0] == ids[1]
    assert names(await heard(cloud)) == ["instance.power_off.start", "instance.power_off.end"]


@in_cloud(told=True)
async def test_a_sink_that_is_away_holds_up_neither_the_other_nor_any_operation(cloud: SmallCloud) -> None:
    cloud.ears.deaf = {LEFT}
    uuid = await cloud.build()
    asked_at = cloud.loop.time()
    await cloud.stop(uuid)
    await cloud.rest()
    assert cloud.loop.time() - asked_at < 5.0
    await cloud.until(lambda: len(cloud.ears.once(RIGHT)) == 8)
    assert cloud.ears.heard[LEFT] == []
    (left, right) = cloud.cell(cell_outbox.states)
    assert (left.sink, left.pending, left.error) == (LEFT, 8, "nobody listens")
    assert (right.sink, right.pending, right.error) == (RIGHT, 0, "")
    cloud.ears.deaf = set()
    await cloud.until(lambda: len(cloud.ears.once(LEFT)) == 8)
    assert [m.message_id for m in cloud.ears.once(LEFT)] == [m.message_id for m in cloud.ears.once(RIGHT)]


@in_cloud(told=True)
async def test_a_message_that_is_refused_holds_up_only_those_about_the_same_server(cloud: SmallCloud) -> None:
    one, other = await cloud.build(), await cloud.build()
    await heard(cloud)
    cloud.ears.heard.clear()
    original = cloud.ears.hear

    async def picky(sink: str, message: Notification) -> None:
        if sink == LEFT and message.subject == one and message.versioned and message.event_type.endswith("off.start"):
            raise Refused("not this one")
        await original(sink, message)

    cloud.ears.hear = picky  # type: ignore[method-assign]
    await cloud.stop(one)
    await cloud.stop(other)
    await cloud.rest()
    await cloud.until(lambda: len([m for m in cloud.ears.once(LEFT) if m.subject == other]) == 4)
    await cloud.until(lambda: len(cloud.ears.once(RIGHT)) == 8)
    assert names([m for m in cloud.ears.once(LEFT) if m.subject == one]) == ["compute.instance.power_off.start"]
    cloud.ears.hear = original  # type: ignore[method-assign]
    assert names([m for m in await heard(cloud) if m.subject == one]) == [
        "instance.power_off.start", "instance.power_off.end",
    ]


@in_cloud(told=True, conductors=2)
async def test_of_two_conductors_one_delivers(cloud: SmallCloud) -> None:
    """The other goes on when the first has died, when its lease has run out."""
    uuid = await cloud.build()
    await heard(cloud)
    assert len(cloud.ears.heard[LEFT]) == len(cloud.ears.once(LEFT))
    cloud.crash("conductor0")
    await cloud.stop(uuid)
    await cloud.rest()
    await everything_told(cloud)
    assert len(cloud.ears.heard[LEFT]) == 8


@pytest.mark.spec("BLD-44", "BLD-104", "DEL-32", "MIG-06", "VOL-05")
@pytest.mark.parametrize("operation", ["stop", "delete", "resize", "rebuild", "detach-volume"])
def test_a_notification_that_cannot_be_made_changes_nothing(
    operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_arguments: Any, **_more: Any) -> None:
        raise ValueError("a defect")

    @in_cloud(told=True)
    async def story(cloud: SmallCloud) -> None:
        monkeypatch.setattr(notices, "tell", broken)
        uuid = await cloud.build()
        await done(cloud, uuid, operation)
        assert cloud.operation(uuid, operation).state is OperationState.SUCCEEDED
        assert cloud.fault(uuid) is None

    story()


@in_cloud(told=True)
async def test_what_nobody_takes_for_too_long_is_given_up_and_counted(cloud: SmallCloud) -> None:
    cloud.ears.deaf = {LEFT}
    uuid = await cloud.build()
    await cloud.rest()
    now = cloud.now
    dropped = await cloud.databases.cell.write(lambda conn: cell_outbox.give_up(conn, now - 3600.0))
    assert dropped == {}
    dropped = await cloud.databases.cell.write(lambda conn: cell_outbox.give_up(conn, now + 1.0))
    assert dropped == {LEFT: 4}
    assert [(s.sink, s.dropped) for s in cloud.cell(cell_outbox.states)] == [(LEFT, 4), (RIGHT, 0)]
    assert cloud.server(uuid).vm_state is VmState.ACTIVE


@in_cloud()
async def test_nothing_is_kept_if_nobody_listens(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    await cloud.stop(uuid)
    await cloud.rest()
    assert cloud.cell(lambda conn: conn.execute(sa.select(cell_outbox.rows)).all()) == []
    assert cloud.ears.heard == {}


@pytest.mark.spec("XEV-37", "XEV-39", "XEV-44")
@pytest.mark.parametrize("cut", [False, True])
def test_a_power_update_is_told_from_its_start_to_its_end(cut: bool) -> None:
    """Also if a delete takes the server away from it."""
    @in_cloud(told=True)
    async def story(cloud: SmallCloud) -> None:
        uuid = await cloud.build()
        await heard(cloud)
        cloud.ears.heard.clear()
        cloud.hypervisors["host0"].faults.latency = 5.0 if cut else 0.0
        update = ExternalEvent(subject=uuid, name="power-update", tag="POWER_OFF")
        await cloud.compute.tell(await cloud.located(uuid), update)
        await cloud.until(lambda: cloud.calls("power_off"))
        if cut:
            await cloud.delete(uuid)
        await cloud.rest()
        told = names(await heard(cloud), "instance.power_off")
        assert told[0] == "instance.power_off.start"
        assert len(told) == 2
        assert told[1].removeprefix("instance.power_off.") in (("end", "error") if cut else ("end",))
        legacy = names(await heard(cloud, versioned=False), "compute.instance.power_off")
        assert legacy[0] == "compute.instance.power_off.start"

    story()
