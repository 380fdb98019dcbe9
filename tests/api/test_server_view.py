"""How one server looks, at every microversion and to every audience."""

import hashlib
import uuid

import pytest
from compute_cloud import CIRROS, HOST, PROJECT, ComputeCloud, vif

from kilonova.api.compute.server_status import states_of, status_of
from kilonova.db import block_devices, build_requests
from kilonova.domain.block_device import BlockDevice
from kilonova.domain.instance import Fault, Instance, RequestSpec
from kilonova.domain.states import PowerState, TaskState, VmState

ALWAYS = {
    "id", "name", "status", "tenant_id", "user_id", "created", "updated", "hostId", "accessIPv4", "accessIPv6",
    "addresses", "image", "flavor", "links", "metadata", "progress", "key_name", "config_drive", "OS-DCF:diskConfig",
    "OS-EXT-AZ:availability_zone", "OS-EXT-STS:vm_state", "OS-EXT-STS:task_state", "OS-EXT-STS:power_state",
    "OS-SRV-USG:launched_at", "OS-SRV-USG:terminated_at", "os-extended-volumes:volumes_attached",
}
SINCE = {
    "locked": 9, "description": 19, "tags": 26, "trusted_image_certificates": 63, "server_groups": 71,
    "locked_reason": 73, "OS-EXT-SRV-ATTR:hostname": 90, "pinned_availability_zone": 96, "scheduler_hints": 100,
}
ADMIN_SINCE = {
    "OS-EXT-SRV-ATTR:host": 1, "OS-EXT-SRV-ATTR:hypervisor_hostname": 1, "OS-EXT-SRV-ATTR:instance_name": 1,
    **{f"OS-EXT-SRV-ATTR:{name}": 3 for name in (
        "hostname", "reservation_id", "launch_index", "kernel_id", "ramdisk_id", "root_device_name", "user_data")},
    "host_status": 16,
}
REDUCED = {
    "id", "name", "status", "tenant_id", "user_id", "created", "updated", "hostId", "accessIPv4", "accessIPv6",
    "addresses", "image", "flavor", "links", "metadata", "progress", "OS-DCF:diskConfig",
}
REDUCED_SINCE = {name: SINCE[name] for name in (
    "locked", "description", "tags", "trusted_image_certificates", "server_groups", "locked_reason")}


def fields_at(always: set[str], version: int, *ranges: dict[str, int]) -> set[str]:
    return always | {name for fields in ranges for name, since in fields.items() if version >= since}


@pytest.mark.spec(
    "API-401", "API-402", "API-403", "API-404", "API-405", "API-406", "API-407", "API-408", "API-409", "API-410",
    "API-411", "API-412", "API-413", "API-414", "API-415", "API-417", "API-418", "API-420", "API-421", "API-422",
    "API-423", "API-424", "API-425", "API-426", "API-427", "API-428", "API-429", "API-430", "API-431", "API-432",
    "API-433", "API-434", "API-435", "API-436", "API-438", "API-439", "API-440", "API-441", "API-442",
    "API-443", "API-444", "API-445", "API-446", "API-503", "API-509", "API-516", "API-519", "API-526", "API-547",
    "API-563", "API-571", "API-573", "API-575", "API-590", "API-596", "API-598", "API-600", "API-016", "API-045",
    "API-110",
)
@pytest.mark.parametrize("as_", ["reader", "admin"])
@pytest.mark.parametrize("version", range(1, 105))
async def test_fields_of_show(cloud: ComputeCloud, version: int, as_: str) -> None:
    server = await cloud.boot()
    answer = await cloud.get(f"/servers/{server.uuid}", version=f"2.{version}", as_=as_)
    expected = fields_at(ALWAYS, version, SINCE, ADMIN_SINCE if as_ == "admin" else {})
    assert set(answer.json()["server"]) == expected


@pytest.mark.spec("API-107", "API-443")
@pytest.mark.parametrize("version", [1, 3, 16, 71, 89, 90, 104])
async def test_fields_of_detail(cloud: ComputeCloud, version: int) -> None:
    await cloud.boot()
    for as_ in ("reader", "admin"):
        (entry,) = (await cloud.get("/servers/detail", version=f"2.{version}", as_=as_)).json()["servers"]
        expected = fields_at(ALWAYS, version, SINCE, ADMIN_SINCE if as_ == "admin" else {}) - {"server_groups"}
        assert set(entry) == expected


@pytest.mark.spec("API-449", "API-575", "API-111")
@pytest.mark.parametrize("version", [1, 9, 18, 19, 26, 63, 71, 73, 74, 75, 104])
async def test_fields_of_update(cloud: ComputeCloud, version: int) -> None:
    server = await cloud.boot()
    answer = await cloud.put(f"/servers/{server.uuid}", {"server": {"name": "new"}}, version=f"2.{version}")
    expected = fields_at(REDUCED, version, REDUCED_SINCE) if version < 75 else fields_at(ALWAYS, version, SINCE)
    assert set(answer.json()["server"]) == expected


@pytest.mark.spec("API-450", "API-106")
async def test_fields_of_list(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    (entry,) = (await cloud.get("/servers", version="2.104")).json()["servers"]
    assert set(entry) == {"id", "name", "links"}
    assert (entry["id"], entry["name"]) == (server.uuid, "vm")


@pytest.mark.spec("API-401", "API-402", "API-404", "API-405", "API-406", "API-407", "API-408", "API-409", "API-414",
                  "API-415", "API-417", "API-418", "API-420", "API-421", "API-422", "API-423", "API-424", "API-425",
                  "API-426", "API-427", "API-428", "API-429", "API-430", "API-431", "API-432", "API-433", "API-434",
                  "API-435", "API-438", "API-440", "API-441", "API-442", "API-444", "API-055")
async def test_values(cloud: ComputeCloud) -> None:
    server = await cloud.boot(
        display_description="mine", updated_at=cloud.clock.now() + 5.7, access_ip_v4="192.0.2.1", progress=40,
        access_ip_v6="2001:db8::1", metadata={"a": "b"}, key_name="key", config_drive="True", auto_disk_config=False,
        kernel_id="k", ramdisk_id="r", root_device_name="/dev/vda", user_data="aGk=", launch_index=3,
        tags=("x", "y"), trusted_certs=("c1",), locked_by="owner", locked_reason="why",
        launched_at=cloud.clock.now() + 0.25, hostname="guest", node="node-1", power_state=PowerState.RUNNING,
    )
    shown = (await cloud.get(f"/servers/{server.uuid}", version="2.95", as_="admin")).json()["server"]
    attribute = "OS-EXT-SRV-ATTR:"
    expected = {
        "id": server.uuid, "name": "vm", "status": "ACTIVE", "tenant_id": PROJECT, "user_id": "user-of-member",
        "created": "2023-11-14T22:13:20Z", "updated": "2023-11-14T22:13:25Z",
        "hostId": hashlib.sha224(f"{PROJECT}{HOST}".encode()).hexdigest(),
        "accessIPv4": "192.0.2.1", "accessIPv6": "2001:db8::1", "metadata": {"a": "b"}, "progress": 40,
        "key_name": "key", "config_drive": "True", "OS-DCF:diskConfig": "MANUAL",
        "OS-EXT-AZ:availability_zone": "nova", f"{attribute}host": HOST, f"{attribute}hypervisor_hostname": "node-1",
        f"{attribute}instance_name": f"instance-{server.uuid}", f"{attribute}hostname": "guest",
        f"{attribute}reservation_id": "r-abcdefgh", f"{attribute}launch_index": 3, f"{attribute}kernel_id": "k",
        f"{attribute}ramdisk_id": "r", f"{attribute}root_device_name": "/dev/vda", f"{attribute}user_data": "aGk=",
        "OS-EXT-STS:vm_state": "active", "OS-EXT-STS:task_state": None, "OS-EXT-STS:power_state": 1,
        "OS-SRV-USG:launched_at": "2023-11-14T22:13:20.250000", "OS-SRV-USG:terminated_at": None,
        "locked": True, "locked_reason": "why", "description": "mine", "tags": ["x", "y"],
        "trusted_image_certificates": ["c1"], "host_status": "UP",
    }
    assert {name: shown[name] for name in expected} == expected


@pytest.mark.spec("API-411", "API-412", "API-547", "API-598")
async def test_image_and_flavor(cloud: ComputeCloud) -> None:
    server = await cloud.boot(system_metadata={
        "image_hw_disk_bus": "virtio", "image_min_ram": "1", "image_custom": "x", "other": "y"})
    path = f"/servers/{server.uuid}"
    linked = (await cloud.get(path, version="2.46")).json()["server"]
    image_links = [{"rel": "bookmark", "href": f"http://cloud.test/compute/images/{CIRROS}"}]
    assert linked["image"] == {"id": CIRROS, "links": image_links}
    assert linked["flavor"] == {
        "id": "1", "links": [{"rel": "bookmark", "href": "http://cloud.test/compute/flavors/1"}]}
    embedded = (await cloud.get(path, version="2.98")).json()["server"]
    assert embedded["flavor"] == {
        "vcpus": 1, "ram": 512, "disk": 1, "ephemeral": 0, "swap": 0, "original_name": "tiny",
        "extra_specs": {"hw:cpu_policy": "shared"}}
    assert embedded["image"] == {"id": CIRROS, "links": image_links, "properties": {"hw_disk_bus": "virtio"}}
    volume_backed = await cloud.boot(image_ref="")
    assert (await cloud.get(f"/servers/{volume_backed.uuid}")).json()["server"]["image"] == ""


@pytest.mark.spec("API-410", "API-156", "API-157")
async def test_addresses(cloud: ComputeCloud) -> None:
    server = await cloud.boot(network_info=(vif(floating=("203.0.113.9",)),))
    shown = (await cloud.get(f"/servers/{server.uuid}")).json()["server"]["addresses"]["private"]
    assert [(a["addr"], a["version"], a["OS-EXT-IPS:type"]) for a in shown] == [
        ("10.0.0.5", 4, "fixed"), ("fd00::5", 6, "fixed"), ("203.0.113.9", 4, "floating")]
    assert {a["OS-EXT-IPS-MAC:mac_addr"] for a in shown} == {"fa:16:3e:00:00:01"}
    plain = [{"version": 4, "addr": "10.0.0.5"}, {"version": 6, "addr": "fd00::5"},
             {"version": 4, "addr": "203.0.113.9"}]
    assert (await cloud.get(f"/servers/{server.uuid}/ips")).json() == {"addresses": {"private": plain}}
    assert (await cloud.get(f"/servers/{server.uuid}/ips/private")).json() == {"private": plain}
    assert (await cloud.get(f"/servers/{server.uuid}/ips/public")).status_code == 404
    updated = await cloud.put(f"/servers/{server.uuid}", {"server": {}}, version="2.74")
    assert updated.json()["server"]["addresses"]["private"] == plain
    building = await cloud.boot(vm_state=VmState.BUILDING, network_info=(vif(),))
    assert (await cloud.get(f"/servers/{building.uuid}")).json()["server"]["addresses"] == {}


@pytest.mark.spec("API-419")
async def test_security_groups_come_from_the_ports(cloud: ComputeCloud) -> None:
    port = vif()
    server = await cloud.boot(network_info=(port,), security_groups=("default",))
    cloud.networks.group_names[port.id] = "web"
    shown = (await cloud.get(f"/servers/{server.uuid}")).json()["server"]
    assert shown["security_groups"] == [{"name": "web"}]
    alone = await cloud.boot(security_groups=("default",))
    assert "security_groups" not in (await cloud.get(f"/servers/{alone.uuid}")).json()["server"]


@pytest.mark.spec("API-416")
async def test_fault(cloud: ComputeCloud) -> None:
    server = await cloud.boot(vm_state=VmState.ERROR)
    await cloud.fail(server.uuid, Fault(code=500, message="old", created_at=1.0))
    await cloud.fail(server.uuid, Fault(code=500, message="no host", details="trace", created_at=1_700_000_000.0))
    path = f"/servers/{server.uuid}"
    shown = (await cloud.get(path)).json()["server"]["fault"]
    assert shown == {"code": 500, "message": "no host", "created": "2023-11-14T22:13:20Z"}
    assert (await cloud.get(path, as_="admin")).json()["server"]["fault"]["details"] == "trace"
    assert (await cloud.get("/servers/detail")).json()["servers"][0]["fault"]["message"] == "no host"
    await cloud.fail(server.uuid, Fault(code=404, message="gone", details="x", created_at=2.0))
    assert (await cloud.get(path)).json()["server"]["fault"]["details"] == "x"
    healthy = await cloud.boot()
    await cloud.fail(healthy.uuid, Fault(code=500, message="past"))
    assert "fault" not in (await cloud.get(f"/servers/{healthy.uuid}")).json()["server"]


@pytest.mark.spec("API-439")
async def test_host_status(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    cloud.hosts.known[HOST] = "MAINTENANCE"
    path = f"/servers/{server.uuid}"
    assert (await cloud.get(path, version="2.16", as_="admin")).json()["server"]["host_status"] == "MAINTENANCE"
    homeless = await cloud.boot(host=None)
    shown = (await cloud.get(f"/servers/{homeless.uuid}", version="2.16", as_="admin")).json()["server"]
    assert shown["host_status"] == ""


@pytest.mark.spec("API-445", "API-446")
async def test_what_was_asked_for(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    path = f"/servers/{server.uuid}"
    shown = (await cloud.get(path, version="2.100")).json()["server"]
    assert (shown["pinned_availability_zone"], shown["scheduler_hints"]) == (None, {})
    listed = (await cloud.get("/servers/detail", version="2.100")).json()["servers"][0]
    assert listed["scheduler_hints"] is None
    await remember(cloud, server, availability_zone="east", scheduler_hints={"same_host": ["u"], "l": ["a", "b"]})
    shown = (await cloud.get(path, version="2.100")).json()["server"]
    assert shown["pinned_availability_zone"] == "east"
    assert shown["scheduler_hints"] == {"same_host": "u", "l": ["a", "b"]}


async def remember(cloud: ComputeCloud, server: Instance, **fields: object) -> None:
    image = cloud.images.images[CIRROS]
    spec = RequestSpec(instance_uuid=server.uuid, project_id=PROJECT, user_id="u", flavor=server.flavor, image=image,
                       **fields)  # type: ignore[arg-type]
    await cloud.cells.api.write(lambda conn: conn.execute(
        build_requests.request_specs.insert(), {"uuid": server.uuid, "body": spec}))


STATUSES = [
    ("API-480", VmState.ACTIVE, TaskState.DELETING, True, "DELETED"),
    *[("API-481", VmState.ACTIVE, task, False, "REBOOT") for task in (
        TaskState.REBOOTING, TaskState.REBOOT_PENDING, TaskState.REBOOT_STARTED)],
    *[("API-482", VmState.ACTIVE, task, False, "HARD_REBOOT") for task in (
        TaskState.REBOOTING_HARD, TaskState.REBOOT_PENDING_HARD, TaskState.REBOOT_STARTED_HARD)],
    ("API-483", VmState.ACTIVE, TaskState.UPDATING_PASSWORD, False, "PASSWORD"),
    *[("API-484", vm, task, False, "REBUILD") for vm in (VmState.ACTIVE, VmState.STOPPED, VmState.ERROR) for task in (
        TaskState.REBUILDING, TaskState.REBUILD_BLOCK_DEVICE_MAPPING, TaskState.REBUILD_SPAWNING)],
    *[("API-485", vm, TaskState.MIGRATING, False, "MIGRATING") for vm in (VmState.ACTIVE, VmState.PAUSED)],
    *[("API-486", vm, task, False, "RESIZE") for vm in (VmState.ACTIVE, VmState.STOPPED) for task in (
        TaskState.RESIZE_PREP, TaskState.RESIZE_MIGRATING, TaskState.RESIZE_MIGRATED, TaskState.RESIZE_FINISH)],
    ("API-487", VmState.RESIZED, TaskState.RESIZE_REVERTING, False, "REVERT_RESIZE"),
    *[("API-488", vm, None, False, status) for vm, status in (
        (VmState.ACTIVE, "ACTIVE"), (VmState.BUILDING, "BUILD"), (VmState.STOPPED, "SHUTOFF"),
        (VmState.RESIZED, "VERIFY_RESIZE"), (VmState.PAUSED, "PAUSED"), (VmState.SUSPENDED, "SUSPENDED"),
        (VmState.RESCUED, "RESCUE"), (VmState.ERROR, "ERROR"), (VmState.DELETED, "DELETED"),
        (VmState.SOFT_DELETED, "SOFT_DELETED"), (VmState.SHELVED, "SHELVED"),
        (VmState.SHELVED_OFFLOADED, "SHELVED_OFFLOADED"))],
    ("API-488", VmState.ACTIVE, TaskState.POWERING_OFF, False, "ACTIVE"),
    ("API-488", VmState.PAUSED, TaskState.REBUILDING, False, "PAUSED"),
]


@pytest.mark.spec(
    "API-480", "API-481", "API-482", "API-483", "API-484", "API-485", "API-486", "API-487", "API-488", "API-403",
)
@pytest.mark.parametrize(("spec", "vm", "task", "deleted", "status"), STATUSES)
def test_status(spec: str, vm: VmState, task: TaskState | None, deleted: bool, status: str) -> None:
    assert status_of(vm, task, deleted) == status


@pytest.mark.spec("API-490")
def test_status_as_filter() -> None:
    assert states_of(["active"]) == ({VmState.ACTIVE}, None)
    assert states_of(["Reboot"]) == (
        {VmState.ACTIVE}, {TaskState.REBOOTING, TaskState.REBOOT_PENDING, TaskState.REBOOT_STARTED})
    assert states_of(["REBOOT", "ERROR"]) == ({VmState.ACTIVE, VmState.ERROR}, None)
    assert states_of(["nonsense"]) == (frozenset(), frozenset())


@pytest.mark.spec("API-415")
@pytest.mark.parametrize(("vm", "has"), [
    (VmState.ACTIVE, True), (VmState.BUILDING, True), (VmState.RESIZED, True), (VmState.STOPPED, False),
    (VmState.ERROR, False)])
async def test_progress_only_in_some_states(cloud: ComputeCloud, vm: VmState, has: bool) -> None:
    server = await cloud.boot(vm_state=vm)
    assert ("progress" in (await cloud.get(f"/servers/{server.uuid}")).json()["server"]) is has


@pytest.mark.spec("API-042", "API-043", "API-110")
async def test_servers_that_are_not_there(cloud: ComputeCloud) -> None:
    server = await cloud.boot()
    for server_id, as_ in ((server.uuid, "stranger"), (str(uuid.uuid4()), "member"), ("no-uuid", "member")):
        answer = await cloud.get(f"/servers/{server_id}", as_=as_)
        assert answer.status_code == 404
        assert answer.json()["itemNotFound"]["message"] == f"Instance {server_id} could not be found."
    assert (await cloud.get(f"/servers/{server.uuid}", as_="nobody")).status_code == 403
    elsewhere = await cloud.boot(project_id="c" * 32)
    assert (await cloud.get(f"/servers/{elsewhere.uuid}", as_="admin")).status_code == 200


@pytest.mark.spec("API-437", "API-503")
async def test_volumes_of_servers(cloud: ComputeCloud) -> None:
    """Oldest first, with one look-up for all servers of a list; a server's answer to a change up to 2.74 has none."""
    servers = [await cloud.boot() for _ in range(3)]
    given = [(servers[0], True), (servers[1], False), (servers[0], False)]
    volumes = [str(uuid.uuid4()) for _ in given]
    for (server, deleted), id_ in zip(given, volumes, strict=True):
        device = BlockDevice(
            uuid=str(uuid.uuid4()), source_type="volume", destination_type="volume", volume_id=id_,
            delete_on_termination=deleted,
        )
        await cloud.cell.database.write(lambda conn, s=server, d=device: block_devices.insert(conn, s.uuid, d, now=1.0))
    waits = BlockDevice(uuid=str(uuid.uuid4()), source_type="blank", destination_type="volume", volume_size=1)
    await cloud.cell.database.write(lambda conn: block_devices.insert(conn, servers[2].uuid, waits, now=1.0))

    field = "os-extended-volumes:volumes_attached"
    looked: list[int] = []
    look_up = block_devices.shown_of
    for version in (2, 3, 104):
        shown = [{"id": id_, **({"delete_on_termination": deleted} if version >= 3 else {})}
                 for id_, (_, deleted) in zip(volumes, given, strict=True)]
        expected = {servers[0].uuid: [shown[0], shown[2]], servers[1].uuid: [shown[1]], servers[2].uuid: []}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(block_devices, "shown_of", lambda conn, ids: looked.append(len(ids)) or look_up(conn, ids))
            listed = (await cloud.get("/servers/detail", version=f"2.{version}")).json()["servers"]
        assert {one["id"]: one[field] for one in listed} == expected
        for uuid_, volumes_ in expected.items():
            one = (await cloud.get(f"/servers/{uuid_}", version=f"2.{version}", as_="reader")).json()["server"]
            assert one[field] == volumes_
    assert looked == [3, 3, 3]
    body = {"server": {"name": "new"}}
    for version in (74, 75):
        changed = (await cloud.put(f"/servers/{servers[1].uuid}", body, version=f"2.{version}")).json()["server"]
        assert changed.get(field) == (None if version == 74 else [{"id": volumes[1], "delete_on_termination": False}])
