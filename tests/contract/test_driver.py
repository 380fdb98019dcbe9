"""What every hypervisor driver does: the simulated one must not be kinder than the real one."""

from __future__ import annotations

import asyncio
import secrets
import subprocess
import uuid
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path

import msgspec
import pytest
from domain_cases import local, port, vif
from host_devices import GPUS, PORT_FUNCTIONS
from libvirt_installations import Installation, empty_guest, started
from signed_images import Signer, elliptic, rules

from kilonova.domain.clock import SystemClock
from kilonova.domain.console import ConsoleKind
from kilonova.domain.errors import (
    Conflict,
    DeviceDetachFailed,
    GuestAgentAway,
    InvalidInput,
    KilonovaError,
    NotFound,
    NotSupported,
    TryElsewhere,
)
from kilonova.domain.image import Image
from kilonova.domain.states import PowerState
from kilonova.hypervisor.driver import Driver
from kilonova.hypervisor.fake import FakeDriver, FakeHypervisor
from kilonova.hypervisor.guest import BesideDisks, Guest, GuestShare, HostDevice
from kilonova.imaging import qcow2
from kilonova.imaging.inspect import check
from kilonova.shapes.quiesce import Quiesce


@pytest.fixture
def certificates(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where the host finds the certificates that it knows."""
    if "libvirt" not in request.node.name:
        return tmp_path
    known: Path = request.getfixturevalue("installation").certificates
    return known


@pytest.fixture(params=["fake", pytest.param("libvirt", marks=pytest.mark.servers)])
async def driver(request: pytest.FixtureRequest, certificates: Path) -> AsyncIterator[Driver]:
    if request.param == "fake":
        made: Driver = FakeDriver(FakeHypervisor("host", signatures=rules(certificates)), SystemClock())
    else:
        made = request.getfixturevalue("installation").driver()
    async with started(made):
        yield made


@pytest.fixture
def bridge(request: pytest.FixtureRequest) -> Iterator[str]:
    """One that exists, if the driver is a real one."""
    name = f"kn{secrets.token_hex(4)}"
    if "libvirt" not in request.node.name:
        yield name
        return
    subprocess.run(["ip", "link", "add", name, "type", "bridge"], check=True)
    yield name
    subprocess.run(["ip", "link", "del", name], check=True)


@pytest.fixture
def tiny(request: pytest.FixtureRequest, tmp_path: Path) -> Image:
    """An image without anything in it."""
    if "libvirt" not in request.node.name:
        return Image(id="tiny")
    path = tmp_path / "tiny.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "1M"], check=True)
    image: Image = request.getfixturevalue("installation").images.add(path)
    return image


@pytest.fixture
async def guest(driver: Driver) -> Guest:
    """One whose disks exist."""
    made = empty_guest()
    await driver.create_disks(made)
    return made


async def states(driver: Driver) -> dict[str, PowerState]:
    return {found.uuid: found.power_state for found in await driver.guests()}


async def test_a_host_says_what_it_has(driver: Driver) -> None:
    inventory = await driver.inventory()
    assert inventory.hostname
    assert inventory.vcpus > 0
    assert 0 < inventory.memory_free_mib <= inventory.memory_mib
    assert 0 <= inventory.disk_available_gib <= inventory.local_gib
    assert inventory.supported
    assert "COMPUTE_RESCUE_BFV" in inventory.traits


async def test_making_disks_twice_makes_them_once(driver: Driver, guest: Guest) -> None:
    await driver.create_disks(guest)
    assert await driver.disks() == [guest.uuid]
    assert await states(driver) == {}


@pytest.mark.spec("PWR-01", "PWR-02")
async def test_a_guest_without_a_definition_has_no_power_state(driver: Driver, guest: Guest) -> None:
    assert await driver.power_state(guest.uuid) is PowerState.NOSTATE
    assert await driver.power_state(str(uuid.uuid4())) is PowerState.NOSTATE


async def test_a_spawned_guest_runs_and_spawning_it_again_leaves_it_alone(driver: Driver, guest: Guest) -> None:
    for _ in range(2):
        await driver.plug(guest)
        await driver.spawn(guest)
        assert await states(driver) == {guest.uuid: PowerState.RUNNING}
        assert await driver.power_state(guest.uuid) is PowerState.RUNNING


async def test_a_guest_starts_with_the_directories_of_its_shares(
    driver: Driver, guest: Guest, tmp_path: Path
) -> None:
    gone = str(tmp_path / "gone")
    if isinstance(driver, FakeDriver):
        driver.hypervisor.faults.absent.add(gone)
    assert {"COMPUTE_STORAGE_VIRTIO_FS", "COMPUTE_MEM_BACKING_FILE"} <= set((await driver.inventory()).traits)
    assert await driver.absent_shares((str(tmp_path), gone)) == (gone,)
    shares = msgspec.structs.replace(guest, shares=(GuestShare("one", str(tmp_path)), GuestShare("two", str(tmp_path))))
    lacking = msgspec.structs.replace(guest, shares=(GuestShare("three", gone),))
    with pytest.raises(TryElsewhere, match="'three'"):
        await driver.power_on(lacking)
    assert await driver.power_state(guest.uuid) is PowerState.NOSTATE
    await driver.power_on(shares)
    assert await driver.power_state(guest.uuid) is PowerState.RUNNING
    with pytest.raises(TryElsewhere, match="'three'"):
        await driver.hard_reboot(lacking)
    assert await driver.power_state(guest.uuid) is PowerState.RUNNING
    await driver.hard_reboot(guest)
    assert await driver.power_state(guest.uuid) is PowerState.RUNNING


async def test_a_guest_without_its_pci_device_is_tried_elsewhere(driver: Driver, guest: Guest) -> None:
    there = [device.address for device in await driver.pci_devices()]
    assert there == sorted(set(there))
    absent = HostDevice("0000:fe:1f.7")
    assert absent.address not in there
    with pytest.raises(TryElsewhere):
        await driver.spawn(msgspec.structs.replace(guest, host_devices=(absent,)))
    assert await driver.power_state(guest.uuid) in (PowerState.NOSTATE, PowerState.SHUTDOWN)
    await driver.destroy(guest.uuid)
    assert await driver.held_devices() == {}
    await driver.spawn(guest)
    assert await driver.held_devices() == {}


@pytest.mark.parametrize("vnic_type", ["direct", "macvtap", "direct-physical"])
async def test_a_port_that_is_no_device_of_the_host_is_tried_elsewhere(
    driver: Driver, guest: Guest, vnic_type: str
) -> None:
    absent = port(1, vnic_type, profile={"pci_slot": "0000:fe:1f.7"})
    with pytest.raises(TryElsewhere, match="0000:fe:1f"):
        await driver.attach_interface(msgspec.structs.replace(guest, vifs=(absent,)), absent)
    await driver.detach_interface(guest.uuid, absent)
    with pytest.raises(TryElsewhere):
        await driver.spawn(msgspec.structs.replace(guest, vifs=(absent,)))
    assert await driver.power_state(guest.uuid) in (PowerState.NOSTATE, PowerState.SHUTDOWN)
    await driver.destroy(guest.uuid)
    with pytest.raises(KilonovaError, match=f"Port {absent.id} of instance {guest.uuid} has no PCI device"):
        await driver.spawn(msgspec.structs.replace(guest, vifs=(port(1, vnic_type, profile={}),)))
    assert await driver.held_devices() == {}


async def test_a_guest_of_the_simulated_host_holds_the_devices_of_its_ports() -> None:
    hypervisor = FakeHypervisor("host")
    hypervisor.devices = PORT_FUNCTIONS
    driver = FakeDriver(hypervisor, SystemClock())
    first, second = (port(n, "direct", profile={"pci_slot": PORT_FUNCTIONS[n].address}) for n in range(2))
    one, other = empty_guest(vifs=(first,)), empty_guest(vifs=(first,))
    for each in (one, other):
        await driver.create_disks(each)
    await driver.spawn(one)
    await driver.plug(one)
    await driver.attach_interface(msgspec.structs.replace(one, vifs=(first, second)), second)
    assert await driver.held_devices() == {one.uuid: (PORT_FUNCTIONS[0].address, PORT_FUNCTIONS[1].address)}
    with pytest.raises(TryElsewhere, match=f"is used by guest {one.uuid}"):
        await driver.spawn(other)
    for _ in range(2):
        await driver.detach_interface(one.uuid, first)
    assert await driver.held_devices() == {one.uuid: (PORT_FUNCTIONS[1].address,)}
    await driver.spawn(other)


async def test_two_guests_of_the_simulated_host_never_have_one_device() -> None:
    """As libvirt refuses it: the claims of servers are not all that keeps them apart."""
    hypervisor = FakeHypervisor("host")
    hypervisor.devices = (GPUS[0],)
    driver = FakeDriver(hypervisor, SystemClock())
    first, second = (empty_guest(host_devices=(HostDevice(GPUS[0].address),)) for _ in range(2))
    for one in (first, second):
        await driver.create_disks(one)
    await driver.spawn(first)
    assert await driver.held_devices() == {first.uuid: (GPUS[0].address,)}
    with pytest.raises(TryElsewhere, match=f"is used by guest {first.uuid}"):
        await driver.spawn(second)
    await driver.power_off(first.uuid, grace=0.0, interval=1.0)
    await driver.spawn(second)
    with pytest.raises(TryElsewhere, match=second.uuid):
        await driver.power_on(first)


async def test_a_guest_that_was_started_paused_runs_when_resumed(driver: Driver, guest: Guest) -> None:
    for _ in range(2):
        await driver.spawn(guest, paused=True)
        assert await driver.power_state(guest.uuid) is PowerState.PAUSED
    for _ in range(2):
        await driver.resume(guest.uuid)
        assert await driver.power_state(guest.uuid) is PowerState.RUNNING
    await driver.spawn(guest, paused=True)
    assert await driver.power_state(guest.uuid) is PowerState.RUNNING


async def test_a_guest_is_paused_and_goes_on(driver: Driver, guest: Guest) -> None:
    await driver.spawn(guest)
    for _ in range(2):
        for _ in range(2):
            await driver.pause(guest.uuid)
            assert await states(driver) == {guest.uuid: PowerState.PAUSED}
        for _ in range(2):
            await driver.resume(guest.uuid)
            assert await states(driver) == {guest.uuid: PowerState.RUNNING}


async def test_only_a_guest_that_is_on_can_be_paused(driver: Driver, guest: Guest) -> None:
    await driver.spawn(guest)
    await driver.power_off(guest.uuid, grace=0, interval=0)
    for call in (driver.pause, driver.resume):
        with pytest.raises(KilonovaError):
            await call(guest.uuid)
    assert await states(driver) == {guest.uuid: PowerState.SHUTDOWN}
    with pytest.raises(NotFound):
        await driver.pause(str(uuid.uuid4()))


async def test_a_paused_guest_is_powered_off_and_rebooted(driver: Driver, guest: Guest) -> None:
    await driver.spawn(guest)
    await driver.pause(guest.uuid)
    await driver.hard_reboot(guest)
    assert await states(driver) == {guest.uuid: PowerState.RUNNING}
    await driver.pause(guest.uuid)
    await driver.power_off(guest.uuid, grace=5, interval=1)
    assert await states(driver) == {guest.uuid: PowerState.SHUTDOWN}


async def test_a_guest_is_suspended_and_wakes(driver: Driver, guest: Guest) -> None:
    await driver.spawn(guest)
    for _ in range(2):
        for _ in range(2):
            await driver.suspend(guest.uuid)
            assert await states(driver) == {guest.uuid: PowerState.SUSPENDED}
            assert await driver.power_state(guest.uuid) is PowerState.SUSPENDED
        for _ in range(2):
            await driver.wake(guest.uuid)
            assert await states(driver) == {guest.uuid: PowerState.RUNNING}


async def test_only_a_guest_that_runs_is_suspended_and_only_a_saved_one_wakes(driver: Driver, guest: Guest) -> None:
    await driver.spawn(guest, paused=True)
    with pytest.raises(KilonovaError):
        await driver.suspend(guest.uuid)
    assert await states(driver) == {guest.uuid: PowerState.PAUSED}
    await driver.power_off(guest.uuid, grace=0, interval=0)
    for call in (driver.suspend, driver.wake):
        with pytest.raises(KilonovaError):
            await call(guest.uuid)
        assert await states(driver) == {guest.uuid: PowerState.SHUTDOWN}
        with pytest.raises(NotFound):
            await call(str(uuid.uuid4()))


@pytest.mark.parametrize("way", ["power_off", "power_on", "hard_reboot", "destroy"])
async def test_what_was_saved_is_dropped(driver: Driver, guest: Guest, way: str) -> None:
    await driver.spawn(guest)
    await driver.suspend(guest.uuid)
    if way == "power_off":
        await driver.power_off(guest.uuid, grace=5, interval=1)
        assert await states(driver) == {guest.uuid: PowerState.SHUTDOWN}
    elif way == "destroy":
        await driver.destroy(guest.uuid)
        assert await states(driver) == {}
        await driver.power_on(guest)
    else:
        await (driver.power_on if way == "power_on" else driver.hard_reboot)(guest)
    await driver.power_off(guest.uuid, grace=0, interval=0)
    assert await driver.power_state(guest.uuid) is PowerState.SHUTDOWN
    with pytest.raises(KilonovaError):
        await driver.wake(guest.uuid)


async def test_a_guest_that_is_on_takes_an_interrupt(driver: Driver, guest: Guest) -> None:
    await driver.spawn(guest)
    for _ in range(2):
        await driver.inject_nmi(guest.uuid)
    await driver.pause(guest.uuid)
    await driver.inject_nmi(guest.uuid)
    assert await states(driver) == {guest.uuid: PowerState.PAUSED}
    await driver.power_off(guest.uuid, grace=0, interval=0)
    with pytest.raises(Conflict):
        await driver.inject_nmi(guest.uuid)
    with pytest.raises(NotFound):
        await driver.inject_nmi(str(uuid.uuid4()))


@pytest.mark.spec("PWD-05")
async def test_a_guest_in_which_nothing_answers_sets_no_password(driver: Driver, guest: Guest) -> None:
    if isinstance(driver, FakeDriver):
        driver.hypervisor.faults.booting.add(guest.uuid)
    await driver.spawn(guest)
    with pytest.raises(GuestAgentAway):
        await driver.set_password(guest.uuid, "root", "secret")
    await driver.power_off(guest.uuid, grace=0, interval=0)
    with pytest.raises(Conflict) as caught:
        await driver.set_password(guest.uuid, "root", "secret")
    assert not isinstance(caught.value, GuestAgentAway)


async def test_what_a_guest_does_is_counted(driver: Driver, guest: Guest) -> None:
    await driver.spawn(guest)
    found = await driver.diagnostics(guest.uuid)
    assert (found.state, found.driver) == ("running", "libvirt")  # the API has no name for a simulated one
    assert [cpu.id for cpu in found.cpus] == [0]
    assert found.cpus[0].time is not None
    assert found.memory.maximum is not None
    own = await driver.own_diagnostics(guest.uuid)
    assert own["cpu0_time"] >= 0
    assert own["memory"] > 0
    for call in (driver.diagnostics, driver.own_diagnostics):
        with pytest.raises(NotFound):
            await call(str(uuid.uuid4()))


async def test_power_off_and_on(driver: Driver, guest: Guest) -> None:
    await driver.spawn(guest)
    for _ in range(2):
        await driver.power_off(guest.uuid, grace=0, interval=0)
        assert await states(driver) == {guest.uuid: PowerState.SHUTDOWN}
    for _ in range(2):
        await driver.power_on(guest)
        assert await states(driver) == {guest.uuid: PowerState.RUNNING}


@pytest.mark.spec("PWR-16")
async def test_there_is_nothing_to_power_off_where_there_is_no_guest(driver: Driver, guest: Guest) -> None:
    for missing in (guest.uuid, str(uuid.uuid4())):
        await driver.power_off(missing, grace=1, interval=1)
        assert await driver.power_state(missing) is PowerState.NOSTATE
    assert await states(driver) == {}


async def test_a_guest_that_was_forgotten_is_powered_on_from_its_disks(driver: Driver, guest: Guest) -> None:
    await driver.spawn(guest)
    await driver.destroy(guest.uuid)
    await driver.power_on(guest)
    assert await states(driver) == {guest.uuid: PowerState.RUNNING}


async def test_a_hard_reboot_starts_whatever_the_guest_was(driver: Driver, guest: Guest) -> None:
    await driver.spawn(guest)
    await driver.hard_reboot(guest)
    assert await states(driver) == {guest.uuid: PowerState.RUNNING}
    await driver.power_off(guest.uuid, grace=0, interval=0)
    await driver.hard_reboot(guest)
    assert await states(driver) == {guest.uuid: PowerState.RUNNING}
    await driver.destroy(guest.uuid)
    await driver.hard_reboot(guest)
    assert await states(driver) == {guest.uuid: PowerState.RUNNING}


@pytest.mark.spec("IFC-50")
async def test_a_guest_that_is_off_or_starting_is_given_an_interface(driver: Driver, guest: Guest, bridge: str) -> None:
    given = vif(7, bridge=bridge)
    await driver.spawn(guest)
    for _ in range(2):
        await driver.attach_interface(guest, given)
        assert await states(driver) == {guest.uuid: PowerState.RUNNING}
    await driver.power_off(guest.uuid, grace=0, interval=0)
    for _ in range(2):
        await driver.detach_interface(guest.uuid, given)
    for _ in range(2):
        await driver.attach_interface(guest, given)
    for _ in range(2):
        await driver.detach_interface(guest.uuid, given)
        assert await states(driver) == {guest.uuid: PowerState.SHUTDOWN}


async def test_there_is_nothing_to_detach_where_there_is_no_guest(driver: Driver, guest: Guest) -> None:
    for missing in (guest.uuid, str(uuid.uuid4())):
        await driver.detach_interface(missing, vif(7))
    assert await states(driver) == {}


@pytest.mark.spec("IFC-48")
async def test_a_guest_that_does_not_let_go_keeps_its_interface(
    driver: Driver, guest: Guest, bridge: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Firmware that runs alone lets go of nothing."""
    given = vif(7, bridge=bridge)
    if isinstance(driver, FakeDriver):
        driver.hypervisor.faults.disobedient.add(guest.uuid)
    monkeypatch.setattr("kilonova.hypervisor.libvirt.hotplug.DETACH_ATTEMPTS", 2)
    monkeypatch.setattr("kilonova.hypervisor.libvirt.hotplug.DETACH_WAIT", 1.0)
    await driver.spawn(guest)
    await driver.attach_interface(guest, given)
    for _ in range(2):
        with pytest.raises(DeviceDetachFailed):
            await driver.detach_interface(guest.uuid, given)


async def test_destroying_leaves_the_disks_and_is_repeatable(driver: Driver, guest: Guest) -> None:
    await driver.spawn(guest)
    for _ in range(2):
        await driver.destroy(guest.uuid)
        assert await states(driver) == {}
        assert await driver.disks() == [guest.uuid]
    await driver.spawn(guest)
    assert await states(driver) == {guest.uuid: PowerState.RUNNING}


async def test_disks_outlive_their_guest_only(driver: Driver, guest: Guest) -> None:
    await driver.spawn(guest)
    with pytest.raises(KilonovaError):
        await driver.delete_disks(guest.uuid)
    assert await driver.disks() == [guest.uuid]
    await driver.destroy(guest.uuid)
    for _ in range(2):
        await driver.delete_disks(guest.uuid)
        assert await driver.disks() == []


async def test_what_never_was_is_removed_without_a_word(driver: Driver) -> None:
    never = str(uuid.uuid4())
    await driver.destroy(never)
    await driver.unplug(never, ("tapnever",))
    await driver.delete_disks(never)
    assert await states(driver) == {}


async def test_a_guest_without_disks_is_not_started(driver: Driver) -> None:
    diskless = empty_guest()
    for start in (driver.spawn, driver.power_on, driver.hard_reboot):
        with pytest.raises(KilonovaError):
            await start(diskless)
        assert await driver.power_state(diskless.uuid) in (PowerState.NOSTATE, PowerState.SHUTDOWN)


async def test_a_guest_that_is_not_there_cannot_be_resumed_and_has_no_console(driver: Driver) -> None:
    with pytest.raises(NotFound):
        await driver.resume(str(uuid.uuid4()))
    with pytest.raises(NotFound):
        await driver.console_output(str(uuid.uuid4()), 100)


async def copied(driver: Driver, uuid_: str, image_id: str) -> bytes:
    return b"".join([chunk async for chunk in driver.snapshot_data(uuid_, image_id)])


@pytest.fixture
async def with_disk(driver: Driver, installation: Installation, tmp_path: Path) -> Guest:
    """One that has a root disk."""
    file = tmp_path / "image.qcow2"
    file.write_bytes(qcow2.empty(1 << 20))
    made = empty_guest(image=installation.images.add(file))
    await driver.create_disks(made)
    return made


@pytest.mark.parametrize("running", [True, False])
async def test_a_snapshot_depends_on_nothing_and_leaves_the_guest_alone(
    driver: Driver, with_disk: Guest, running: bool, tmp_path: Path
) -> None:
    uuid_, image_id = with_disk.uuid, str(uuid.uuid4())
    await driver.spawn(with_disk)
    if not running:
        await driver.power_off(uuid_, grace=0, interval=0)
    before = await driver.power_state(uuid_)
    await driver.snapshot(uuid_, image_id)
    first = await copied(driver, uuid_, image_id)
    await driver.snapshot(uuid_, image_id)
    assert await copied(driver, uuid_, image_id) == first
    assert await driver.power_state(uuid_) is before
    (tmp_path / "copy").write_bytes(first)
    assert check(tmp_path / "copy", "qcow2").virtual_size == 1 << 20
    for _ in range(2):
        await driver.discard_snapshot(uuid_, image_id)
        with pytest.raises(NotFound):
            await copied(driver, uuid_, image_id)


@pytest.mark.spec("QUI-02")
@pytest.mark.parametrize("running", [True, False])
async def test_file_systems_of_a_guest_without_an_agent_are_not_held_still(
    driver: Driver, with_disk: Guest, running: bool
) -> None:
    uuid_, first, second = with_disk.uuid, str(uuid.uuid4()), str(uuid.uuid4())
    await driver.spawn(with_disk)
    if running:
        with pytest.raises(NotSupported, match="os_require_quiesce"):
            await driver.snapshot(uuid_, first, quiesce=Quiesce.MUST)
        await driver.discard_snapshot(uuid_, first)
        with pytest.raises(NotSupported, match="os_require_quiesce"):
            await driver.freeze(uuid_, quiesce=Quiesce.MUST)
    else:
        await driver.power_off(uuid_, grace=0, interval=0)
        await driver.freeze(uuid_, quiesce=Quiesce.MUST)
        await driver.snapshot(uuid_, first, quiesce=Quiesce.MUST)
    await driver.freeze(uuid_, quiesce=Quiesce.TRY)
    for _ in range(2):
        await driver.thaw(uuid_)
    await driver.snapshot(uuid_, second, quiesce=Quiesce.TRY)
    assert await copied(driver, uuid_, second)


async def test_a_snapshot_goes_with_the_disks_and_needs_one(driver: Driver, with_disk: Guest) -> None:
    uuid_, image_id = with_disk.uuid, str(uuid.uuid4())
    await driver.snapshot(uuid_, image_id)
    await driver.delete_disks(uuid_)
    with pytest.raises(NotFound):
        await copied(driver, uuid_, image_id)
    with pytest.raises(NotFound):
        await driver.snapshot(uuid_, image_id)
    await driver.discard_snapshot(uuid_, image_id)
    assert await driver.disks() == []


async def test_a_console_is_cut_to_its_last_bytes(driver: Driver, guest: Guest) -> None:
    await driver.spawn(guest)
    assert len(await driver.console_output(guest.uuid, 10)) <= 10


@pytest.mark.spec("CON-15", "CON-16", "CON-24")
async def test_consoles_listen_as_long_as_the_guest_runs(driver: Driver) -> None:
    guest = empty_guest(properties={})
    await driver.create_disks(guest)
    for kind in ConsoleKind:
        with pytest.raises(NotFound):
            await driver.console(guest.uuid, kind)
    await driver.spawn(guest)
    screen = await driver.console(guest.uuid, ConsoleKind.VNC)
    assert screen.host == "127.0.0.1"
    assert screen.port is not None
    assert screen.port >= 5900
    assert await driver.console(guest.uuid, ConsoleKind.VNC) == screen
    line = await driver.console(guest.uuid, ConsoleKind.SERIAL)
    assert (line.port, line.internal_access_path.endswith("console.sock")) == (None, True)
    assert guest.uuid in line.internal_access_path
    for kind in (ConsoleKind.SPICE, ConsoleKind.RDP, ConsoleKind.MKS):
        with pytest.raises(NotSupported):
            await driver.console(guest.uuid, kind)
    await driver.power_off(guest.uuid, grace=0, interval=0)
    for kind in ConsoleKind:
        with pytest.raises(Conflict):
            await driver.console(guest.uuid, kind)


@pytest.mark.spec("RBD-46")
async def test_disks_are_exchanged_and_put_back(driver: Driver, guest: Guest) -> None:
    await driver.spawn(guest)
    for _ in range(2):
        await driver.prepare_disks(guest, keep_ephemeral=False)
    assert await states(driver) == {guest.uuid: PowerState.RUNNING}
    with pytest.raises(KilonovaError, match="still uses"):
        await driver.replace_disks(guest)
    await driver.destroy(guest.uuid)
    for _ in range(2):
        await driver.replace_disks(guest)
    await driver.spawn(guest)
    with pytest.raises(KilonovaError, match="still uses"):
        await driver.restore_disks(guest.uuid)
    await driver.destroy(guest.uuid)
    for _ in range(2):
        await driver.restore_disks(guest.uuid)
    await driver.spawn(guest)
    for _ in range(2):
        await driver.restore_disks(guest.uuid)  # nothing was put aside: a guest that runs is no obstacle
    assert await states(driver) == {guest.uuid: PowerState.RUNNING}


async def test_old_disks_are_dropped_while_the_new_ones_are_used(driver: Driver, guest: Guest) -> None:
    await driver.prepare_disks(guest, keep_ephemeral=False)
    await driver.replace_disks(guest)
    await driver.spawn(guest)
    for _ in range(2):
        await driver.drop_old_disks(guest.uuid)
    await driver.restore_disks(guest.uuid)
    await driver.hard_reboot(guest)
    assert await states(driver) == {guest.uuid: PowerState.RUNNING}


async def test_disks_that_were_lost_are_made_anew(driver: Driver) -> None:
    lost = empty_guest()
    await driver.prepare_disks(lost, keep_ephemeral=False)
    await driver.replace_disks(lost)
    await driver.spawn(lost)
    assert await states(driver) == {lost.uuid: PowerState.RUNNING}


async def test_what_never_was_is_neither_restored_nor_dropped(driver: Driver) -> None:
    never = str(uuid.uuid4())
    await driver.restore_disks(never)
    await driver.drop_old_disks(never)
    assert await driver.disks() == []


async def test_disks_get_another_size_and_the_old_ones_are_kept(driver: Driver) -> None:
    old = empty_guest(swap_mib=1, ephemeral_gib=1)
    new = msgspec.structs.replace(old, swap_mib=2, ephemeral_gib=2, vcpus=2, memory_mib=96)
    await driver.create_disks(old)
    await driver.spawn(old)
    for call in (driver.resize_disks(old, new, keep="k"), driver.revert_disks(old, keep="k")):
        with pytest.raises(KilonovaError):
            await call
    await driver.power_off(old.uuid, grace=0, interval=0)
    for _ in range(2):
        await driver.resize_disks(old, new, keep="k")
    await driver.power_on(new)
    assert await states(driver) == {old.uuid: PowerState.RUNNING}
    await driver.power_off(old.uuid, grace=0, interval=0)
    for _ in range(2):
        await driver.revert_disks(old, keep="k")
    await driver.power_on(old)
    assert await states(driver) == {old.uuid: PowerState.RUNNING}
    for _ in range(2):
        await driver.drop_kept_disks(old.uuid, keep="k")
    assert await driver.disks() == [old.uuid]


async def test_disks_that_were_asked_for_keep_their_sizes(driver: Driver) -> None:
    asked = (local("a", volume_size=1), local("b", volume_size=2), local("c", volume_size=8, guest_format="swap"))
    old = empty_guest(ephemeral_gib=3, swap_mib=16, block_devices=asked)
    await driver.create_disks(old)
    await driver.spawn(old)
    await driver.power_off(old.uuid, grace=0, interval=0)
    with pytest.raises(InvalidInput, match="smaller"):
        await driver.resize_disks(old, msgspec.structs.replace(old, ephemeral_gib=2), keep="k")
    new = msgspec.structs.replace(old, ephemeral_gib=4, swap_mib=0)
    for _ in range(2):
        await driver.resize_disks(old, new, keep="k")
    await driver.power_on(new)
    assert (await driver.power_state(old.uuid)) is PowerState.RUNNING
    await driver.power_off(old.uuid, grace=0, interval=0)
    await driver.revert_disks(old, keep="k")
    await driver.hard_reboot(old)
    assert (await driver.power_state(old.uuid)) is PowerState.RUNNING


@pytest.mark.spec("MIG-66")
async def test_an_ephemeral_disk_is_not_made_smaller(driver: Driver) -> None:
    old = empty_guest(ephemeral_gib=2)
    await driver.create_disks(old)
    for smaller in (0, 1):
        with pytest.raises(InvalidInput, match="smaller"):
            await driver.resize_disks(old, msgspec.structs.replace(old, ephemeral_gib=smaller), keep="k")


async def test_nothing_kept_is_restored_and_dropped_without_a_word(driver: Driver, guest: Guest) -> None:
    never = empty_guest()
    for one in (guest, never):
        await driver.revert_disks(one, keep="k")
        await driver.drop_kept_disks(one.uuid, keep="k")
    assert await driver.disks() == [guest.uuid]
    with pytest.raises(KilonovaError):
        await driver.resize_disks(never, never, keep="k")


async def test_kept_disks_go_with_the_others(driver: Driver) -> None:
    old = empty_guest(swap_mib=1)
    await driver.create_disks(old)
    await driver.resize_disks(old, msgspec.structs.replace(old, swap_mib=2), keep="k")
    await driver.delete_disks(old.uuid)
    assert await driver.disks() == []


@pytest.mark.spec("RSC-11", "RSC-21")
async def test_a_guest_runs_from_a_rescue_disk_and_then_from_its_own(
    driver: Driver, guest: Guest, tiny: Image
) -> None:
    rescued = msgspec.structs.replace(guest, rescue=tiny)
    await driver.spawn(guest)
    for _ in range(2):
        await driver.prepare_rescue(rescued)
    assert await states(driver) == {guest.uuid: PowerState.RUNNING}
    await driver.power_off(guest.uuid, grace=0, interval=0)
    for _ in range(2):
        await driver.power_on(rescued)
    await driver.hard_reboot(rescued)
    assert await states(driver) == {guest.uuid: PowerState.RUNNING}
    await driver.power_off(guest.uuid, grace=0, interval=0)
    for _ in range(2):
        await driver.drop_rescue(guest.uuid)
    with pytest.raises(KilonovaError):
        await driver.power_on(rescued)
    await driver.power_on(guest)
    assert await states(driver) == {guest.uuid: PowerState.RUNNING}


async def test_a_rescue_disk_goes_with_the_guest(driver: Driver, guest: Guest, tiny: Image) -> None:
    await driver.prepare_rescue(msgspec.structs.replace(guest, rescue=tiny))
    await driver.delete_disks(guest.uuid)
    assert await driver.disks() == []
    await driver.drop_rescue(guest.uuid)
    await driver.drop_rescue(str(uuid.uuid4()))
    assert await driver.disks() == []


async def test_a_rescue_disk_is_not_taken_from_a_guest_that_runs_from_it(
    driver: Driver, guest: Guest, tiny: Image
) -> None:
    rescued = msgspec.structs.replace(guest, rescue=tiny)
    await driver.prepare_rescue(rescued)
    await driver.power_on(rescued)
    await driver.drop_rescue(guest.uuid)
    await driver.tidy_disks(guest.uuid, kept=True)
    assert [(one.uuid, one.rescue) for one in await driver.beside_disks()] == [(guest.uuid, True)]
    await driver.hard_reboot(guest)
    assert await driver.beside_disks() == []
    await driver.prepare_rescue(rescued)
    await driver.power_off(guest.uuid, grace=0.0, interval=0.0)
    await driver.power_on(guest)
    assert await driver.beside_disks() == []


async def test_what_lies_beside_the_disks_is_told_and_removed(driver: Driver, guest: Guest, tiny: Image) -> None:
    with_disk = msgspec.structs.replace(guest, image=tiny, root_gib=1)
    await driver.delete_disks(guest.uuid)
    await driver.create_disks(with_disk)
    assert await driver.beside_disks() == []
    await driver.resize_disks(with_disk, msgspec.structs.replace(with_disk, root_gib=2), keep="a-migration")
    await driver.prepare_rescue(msgspec.structs.replace(with_disk, rescue=tiny))
    await driver.prepare_disks(with_disk, keep_ephemeral=False)
    await driver.snapshot(guest.uuid, tiny.id)
    everything = BesideDisks(uuid=guest.uuid, rescue=True, kept=True, put_aside=True, snapshots=True)
    assert await driver.beside_disks() == [everything]
    await driver.tidy_disks(guest.uuid, kept=False)
    assert await driver.beside_disks() == [BesideDisks(uuid=guest.uuid, kept=True)]
    await driver.tidy_disks(guest.uuid, kept=True)
    await driver.tidy_disks(str(uuid.uuid4()), kept=True)
    assert (await driver.beside_disks(), await driver.disks()) == ([], [guest.uuid])
    await driver.power_on(with_disk)


@pytest.mark.spec("IMC-08", "IMC-12")
async def test_an_image_is_cached_once_and_forgotten_when_no_disk_uses_it(driver: Driver, tiny: Image) -> None:
    assert await driver.cache_image(tiny)
    assert not await driver.cache_image(tiny)
    assert tiny.id not in await driver.age_cache(minimum_age=1000.0)
    made = msgspec.structs.replace(empty_guest(), image=tiny, root_gib=1)
    await driver.create_disks(made)
    await asyncio.sleep(0.01)
    assert tiny.id not in await driver.age_cache(minimum_age=0.0)
    await driver.delete_disks(made.uuid)
    assert tiny.id in await driver.age_cache(minimum_age=0.0)
    assert await driver.cache_image(tiny)


async def test_disks_are_made_of_images_that_are_signed_as_they_have_to_be(
    driver: Driver, tiny: Image, certificates: Path, request: pytest.FixtureRequest
) -> None:
    def make_disks(signer: Signer, image: Image) -> Awaitable[None]:
        return driver.create_disks(msgspec.structs.replace(made, image=image, trusted_certs=(signer.id,)))

    assert "COMPUTE_TRUSTED_CERTS" in (await driver.inventory()).traits
    data = b"" if isinstance(driver, FakeDriver) else request.getfixturevalue("installation").images.files[
        tiny.id].read_bytes()
    signer, forger = elliptic(certificates), elliptic(certificates)
    made = empty_guest(root_gib=1)
    forged = forger.signed(tiny, data + b"?")
    if isinstance(driver, FakeDriver):
        driver.hypervisor.faults.forged.add(tiny.id)
    for by, image, why in (
        (signer, tiny, "it lacks img_signature"), (signer, forged, "is not trusted"), (forger, forged, "not what was"),
    ):
        with pytest.raises(InvalidInput, match=why):
            await make_disks(by, image)
        rescue = msgspec.structs.replace(made, rescue=image, trusted_certs=(by.id,))
        with pytest.raises(InvalidInput, match=why):
            await driver.prepare_rescue(rescue)
        await driver.delete_disks(made.uuid)
        assert await driver.disks() == []
        assert tiny.id not in await driver.age_cache(minimum_age=0.0)
    if isinstance(driver, FakeDriver):
        driver.hypervisor.faults.forged.clear()
    await make_disks(signer, signer.signed(tiny, data))
    (certificates / f"{signer.id}.pem").unlink()
    await make_disks(signer, signer.signed(tiny, data))  # a disk that exists is not judged again
    assert await driver.disks() == [made.uuid]
