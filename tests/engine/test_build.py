"""Build: what a server goes through until it runs."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest
from simulation.network import NETWORK
from small_cloud import CONTEXT, OPTIONS, SmallCloud, in_cloud

from kilonova.agent.steps.environment import HostEnvironment
from kilonova.agent.steps.power import CREATE_DISKS, DEVICE_TAGGING, GuestArgs
from kilonova.api.compute.field_types import BASE64
from kilonova.api.compute.personality import injected_files
from kilonova.db.journal import cell_journal
from kilonova.domain.block_device import BlockDevice
from kilonova.domain.clock import SystemClock
from kilonova.domain.errors import InstanceInvalidState, InvalidInput, TryElsewhere
from kilonova.domain.instance import InjectedFile
from kilonova.domain.network import Vif
from kilonova.domain.operation import Asker
from kilonova.domain.states import PowerState, TaskState, VmState
from kilonova.engine import submit
from kilonova.engine.host import HostExecutor
from kilonova.engine.operation import Tx
from kilonova.hypervisor.fake import FakeDriver, FakeHypervisor
from kilonova.hypervisor.guest import Guest, GuestMetadata
from kilonova.metadata.configdrive import drive_files
from kilonova.operations.build import BUILD, BuildServer
from kilonova.services.placement import Target


@pytest.mark.spec("BLD-35", "BLD-37", "BLD-49", "BLD-88", "BLD-91", "NET-07")
@in_cloud(hosts=2)
async def test_a_server_is_built(cloud: SmallCloud) -> None:
    uuid = await cloud.ask(cloud.new())
    assert cloud.effects == []  # it was accepted before anything was done
    await cloud.rest()
    server = cloud.server(uuid)
    assert (server.vm_state, server.task_state, server.power_state) == (VmState.ACTIVE, None, PowerState.RUNNING)
    assert server.host is not None
    assert server.host == server.node == server.launched_on
    assert server.launched_at == pytest.approx(cloud.now, abs=20.0)
    assert cloud.states(uuid) == [
        ("building", "scheduling"), ("building", "networking"), ("building", "block_device_mapping"),
        ("building", "spawning"), ("active", None),
    ]
    spawning = next(i for i in cloud.history if i.task_state is TaskState.SPAWNING)
    (port,) = cloud.ports(uuid)
    assert [vif.id for vif in spawning.network_info] == [port]
    assert cloud.net.ports[port].binding_host == server.host
    assert cloud.claims(uuid) == [server.host]
    assert cloud.power(uuid) is PowerState.RUNNING
    here = server.host
    assert cloud.calls("create_port", "create_disks", "spawn", "resume") == [
        ("network", "create_port"), (here, "create_disks"), (here, "spawn"), (here, "resume"),
    ]


@pytest.mark.spec("BLD-35")
@in_cloud()
async def test_the_power_state_that_is_stored_was_read_from_the_driver(cloud: SmallCloud) -> None:
    driver = cloud.drivers["host0"]

    async def power_state(_uuid: str) -> PowerState:
        return PowerState.PAUSED

    driver.power_state = power_state  # type: ignore[method-assign]
    uuid = await cloud.ask(cloud.new())
    await cloud.rest()
    active = next(i for i in cloud.history if i.vm_state is VmState.ACTIVE)
    assert active.power_state is PowerState.PAUSED
    assert cloud.server(uuid).vm_state is VmState.ACTIVE


@pytest.mark.spec("BLD-36")
@in_cloud(options=msgspec.structs.replace(OPTIONS, force_config_drive=True))
async def test_a_forced_config_drive_is_recorded_before_the_first_launch_is(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    launched = next(i for i in cloud.history if i.launched_at is not None)
    assert launched.config_drive == "True"
    cloud.options = msgspec.structs.replace(OPTIONS, force_config_drive=False)
    await cloud.restart("conductor0")
    await cloud.reboot(uuid, hard=True)
    await cloud.rest()
    assert [(call, guest.config_drive) for _, call, guest in cloud.guests_made][-1] == ("hard_reboot", True)


@pytest.mark.spec("BLD-89", "BLD-90")
@pytest.mark.parametrize(
    ("given", "network", "expected"),
    [
        ({}, "private", ("10.0.0.5", "fd00::5")),
        ({}, "other", (None, None)),
        ({"access_ip_v4": "192.0.2.1"}, "private", ("192.0.2.1", None)),
        ({"access_ip_v6": "2001:db8::1"}, "private", (None, "2001:db8::1")),
    ],
)
def test_access_addresses_come_from_the_first_interface_on_the_network(
    given: dict[str, str], network: str, expected: tuple[str | None, str | None]
) -> None:
    @in_cloud(options=msgspec.structs.replace(OPTIONS, default_access_ip_network_name=network))
    async def story(cloud: SmallCloud) -> None:
        cloud.net.addresses = ("10.0.0.5", "fd00::5", "10.0.0.6")
        uuid = await cloud.build(networks=2, **given)
        server = cloud.server(uuid)
        assert (server.access_ip_v4, server.access_ip_v6) == expected
        if not given and network == "private":
            assert server.network_info[0].fixed_ips[0].address == server.access_ip_v4

    story()


@pytest.mark.spec("NET-01", "NET-20")
@in_cloud()
async def test_without_networking_the_network_service_is_not_called(cloud: SmallCloud) -> None:
    uuid = await cloud.build(networks=0)
    assert cloud.server(uuid).network_info == ()
    cloud.always_fail("create_disks", InvalidInput("no"))
    broken = await cloud.ask(cloud.new(networks=0))
    await cloud.rest()
    assert cloud.server(broken).vm_state is VmState.ERROR
    assert [where for where, _ in cloud.calls() if where == "network"] == []


CONTENT = b"\x00not text\xff"


@pytest.mark.spec("BLD-01", "BLD-03")
@in_cloud(hosts=2)
async def test_injected_files_reach_the_guest_as_bytes_whichever_host_builds_it(cloud: SmallCloud) -> None:
    cloud.fail("create_disks", TryElsewhere("no space"))
    encoded = base64.b64encode(CONTENT).decode()
    await cloud.build(injected_files=(InjectedFile("/etc/motd", encoded),))
    made = [(host, guest) for host, call, guest in cloud.guests_made if call == "create_disks"]
    assert {host for host, _ in made} == {"host0", "host1"}
    for _, guest in made:
        assert guest.metadata.files == (InjectedFile("/etc/motd", encoded),)
        assert guest.config_drive  # or the guest would never see them
        assert CONTENT in drive_files(guest.metadata, lambda n: bytes(n)).values()
    await cloud.build()
    assert cloud.guests_made[-1][2].metadata.files == ()
    assert not cloud.guests_made[-1][2].config_drive


@pytest.mark.spec("BLD-04")
@pytest.mark.parametrize("contents", ["aGVsbG8=", "aGVs\nbG8=\n", "aGVs bG8="])
def test_what_the_api_accepts_as_base64_decodes_on_the_host(contents: str) -> None:
    assert accepted(contents)
    (file,) = injected_files([{"path": "/x", "contents": contents}])
    assert b"hello" in drive_files(metadata(files=(file,)), lambda n: bytes(n)).values()


@pytest.mark.spec("BLD-04")
@pytest.mark.parametrize("contents", ["%", "aGVsbG8", "aGV$sbG8=", "é"])
def test_what_does_not_decode_never_reaches_a_host(contents: str) -> None:
    assert not accepted(contents)


def accepted(contents: str) -> bool:
    assert BASE64.format is not None
    return BASE64.format[1](contents)


def metadata(**fields: Any) -> GuestMetadata:
    return GuestMetadata(instance_uuid="u", name="n", hostname="h", project_id="p", flavor_name="f", **fields)


def guest(**fields: Any) -> Guest:
    return Guest(
        uuid="44444444-4444-4444-8444-444444444444", name="n", project_id="p", user_id="u", vcpus=1, memory_mib=1,
        root_gib=1, metadata=metadata(), **fields,
    )


@pytest.mark.spec("BDM-11", "BDM-15")
@pytest.mark.parametrize(
    ("asked", "stored"), [((), "/dev/xvda"), ((None,), "/dev/xvda"), (("/dev/sdx",), "/dev/sdx")]
)
def test_the_record_names_the_root_device_as_asked_or_as_the_driver_does(
    asked: tuple[str | None, ...], stored: str
) -> None:
    devices = tuple(
        BlockDevice(uuid="1", source_type="image", destination_type="local", boot_index=0, device_name=name)
        for name in asked
    )

    @in_cloud()
    async def story(cloud: SmallCloud) -> None:
        cloud.drivers["host0"].root_device_name = lambda _guest: "/dev/xvda"  # type: ignore[method-assign]
        other = BlockDevice(uuid="2", source_type="blank", destination_type="local", device_name="/dev/sdy")
        uuid = await cloud.build(block_devices=(other, *devices))
        assert cloud.server(uuid).root_device_name == stored
        named = next(i for i in cloud.history if i.root_device_name is not None)
        assert named.task_state is TaskState.SPAWNING  # before the guest is started

    story()


@pytest.mark.spec("BLD-30")
async def test_a_host_that_cannot_show_tags_refuses_a_guest_that_needs_them() -> None:
    hypervisor = FakeHypervisor("host0")
    hypervisor.traits = tuple(trait for trait in hypervisor.traits if trait != DEVICE_TAGGING)
    environment = HostEnvironment("host0", FakeDriver(hypervisor, SystemClock()), SystemClock())
    vif = Vif(id="1", mac="fa:16:3e:00:00:01", network_id=NETWORK, network_name="n", devname="tap1")
    with pytest.raises(InvalidInput, match="tags"):
        await CREATE_DISKS.do(environment, GuestArgs(guest(vifs=(msgspec.structs.replace(vif, tag="nic"),))))
    assert hypervisor.guests == {}
    await CREATE_DISKS.do(environment, GuestArgs(guest(vifs=(vif,))))
    assert hypervisor.guests


@pytest.mark.spec("BLD-31")
@in_cloud()
async def test_a_host_that_cannot_check_certificates_refuses_an_image_that_needs_it(cloud: SmallCloud) -> None:
    request = cloud.new()
    request.instance.trusted_certs = ("c",)  # which the scheduler was not told
    uuid = await cloud.ask(request)
    await cloud.rest()
    fault = cloud.fault(uuid)
    assert fault is not None
    assert (fault.code, fault.message) == (400, "Host host0 cannot check images against trusted certificates.")
    assert cloud.server(uuid).vm_state is VmState.ERROR
    assert cloud.guests_made == []
    assert (cloud.ports(uuid), cloud.claims(uuid)) == ([], [])


@pytest.mark.spec("BLD-50", "BLD-51", "FND-54", "INI-004")
@pytest.mark.parametrize(
    ("limits", "at_once"),
    [((1, 0), 1), ((2, 0), 2), ((0, 0), 4), ((0, 1), 1), ((3, 2), 2)],
)
def test_so_many_builds_run_at_once(limits: tuple[int, int], at_once: int) -> None:
    @in_cloud(max_concurrent_builds=limits[0], max_concurrent_disk_ops=limits[1])
    async def story(cloud: SmallCloud) -> None:
        cloud.hypervisors["host0"].faults.latency = 5.0
        running: set[str] = set()
        most = 0
        driver = cloud.drivers["host0"]
        create_disks = driver.create_disks

        async def counted(guest: Guest) -> None:
            nonlocal most
            running.add(guest.uuid)
            most = max(most, len(running))
            await create_disks(guest)
            running.discard(guest.uuid)

        driver.create_disks = counted  # type: ignore[method-assign]
        servers = [await cloud.ask(cloud.new()) for _ in range(4)]
        await cloud.until(lambda: len(running) == at_once)
        for uuid in servers:
            with pytest.raises(InstanceInvalidState):
                await cloud.reboot(uuid, hard=True)
        await cloud.until(lambda: all(cloud.server(u).vm_state is VmState.ACTIVE for u in servers), within=400.0)
        assert most == at_once

    story()


@pytest.mark.spec("FND-62")
@pytest.mark.parametrize("option", ["max_heavy", "max_disk_work"])
def test_a_negative_limit_is_refused(option: str) -> None:
    with pytest.raises(InvalidInput, match="must not be negative"):
        HostExecutor("h", {}, None, None, SystemClock(), **{option: -1})  # type: ignore[arg-type]


@pytest.mark.spec("BLD-61", "INI-180", "BLD-57")
@in_cloud()
async def test_a_repeated_request_touches_nothing_of_a_server_that_is_there(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    before, effects = cloud.server(uuid), list(cloud.effects)
    target = Target(host="host0", node="host0", provider=cloud.provider("host0"))
    request = cloud.new(uuid=uuid)
    again = BuildServer(instance=request.instance, spec=request.spec, targets=(target,))
    await cloud.databases.cell.write(lambda conn: submit.submit(
        Tx(conn, cloud.now), cell_journal, BUILD, uuid, again, Asker(request_id=CONTEXT.request_id)
    ))
    await cloud.rest()
    assert cloud.operation(uuid, "build").failure is not None
    assert cloud.server(uuid) == before
    assert cloud.effects == effects
    assert cloud.claims(uuid) == ["host0"]
    assert cloud.faults(uuid) == 0
