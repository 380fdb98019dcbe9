"""What every hypervisor driver does with volumes."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import AsyncIterator, Iterator

import msgspec
import pytest
from libvirt_installations import (
    empty_guest,
    eventually,
    started,
)
from nbd_daemon import NbdDaemon

from kilonova.domain.clock import SystemClock
from kilonova.domain.errors import Conflict, DeviceDetachFailed, KilonovaError, NotFound, Retryable
from kilonova.domain.states import PowerState
from kilonova.hypervisor.driver import Driver
from kilonova.hypervisor.fake import FakeDriver, FakeHypervisor
from kilonova.hypervisor.guest import Guest
from kilonova.hypervisor.volumes import CopyState, GuestVolume, HeldVolume, NbdSource, VolumeSource, VolumeUsage

MIB = 1 << 20


class SimulatedExports:
    """What is served to a simulated host."""

    def __init__(self) -> None:
        self.sizes: dict[VolumeSource, int] = {}

    def add(self, size: int) -> NbdSource:
        source = NbdSource(export=secrets.token_hex(4), socket="/nowhere")
        self.sizes[source] = size
        return source

    def resize(self, source: NbdSource, size: int) -> None:
        self.sizes[source] = size

    def withdraw(self, source: NbdSource) -> None:
        del self.sizes[source]

    def serve(self, source: NbdSource) -> None:
        self.sizes[source] = MIB


Exports = SimulatedExports | NbdDaemon


@pytest.fixture
def exports(request: pytest.FixtureRequest) -> Iterator[Exports]:
    if "libvirt" not in request.node.name:
        yield SimulatedExports()
        return
    daemon = NbdDaemon()
    daemon.start()
    yield daemon
    daemon.close()


@pytest.fixture(params=["fake", pytest.param("libvirt", marks=pytest.mark.servers)])
async def driver(request: pytest.FixtureRequest, exports: Exports) -> AsyncIterator[Driver]:
    if isinstance(exports, SimulatedExports):
        hypervisor = FakeHypervisor("host")
        hypervisor.served = exports.sizes.get
        made = FakeDriver(hypervisor, SystemClock())
    else:
        made = request.getfixturevalue("installation").driver()
    async with started(made):
        yield made


@pytest.fixture
async def guest(driver: Driver) -> Guest:
    made = empty_guest()
    await driver.create_disks(made)
    return made


def volume(source: NbdSource, **changes: object) -> GuestVolume:
    values: dict[str, object] = {"id": str(uuid.uuid4()), "source": source}
    return GuestVolume(**(values | changes))  # type: ignore[arg-type]


def having(guest: Guest, *volumes: GuestVolume) -> Guest:
    return msgspec.structs.replace(guest, volumes=volumes)


async def held(driver: Driver, guest: Guest) -> list[tuple[str, str, bool, bool]]:
    """Id, name, and whether the running guest and its definition have it."""
    return [
        (one.id, one.device_name, one.running is not None, one.defined is not None)
        for one in (await driver.held_volumes()).get(guest.uuid, ())
    ]


async def test_a_running_guest_is_given_a_volume_and_it_is_taken_again(
    driver: Driver, guest: Guest, exports: Exports
) -> None:
    """Off, because nothing runs in the guest that could let go of it."""
    wanted = volume(exports.add(MIB))
    await driver.spawn(guest)
    assert await driver.held_volumes() == {}
    assert driver.volume_device_name(guest, wanted) == "/dev/vda"
    for _ in range(2):
        await driver.attach_volume(having(guest, wanted), wanted)
        assert await driver.held_volumes() == {guest.uuid: (
            HeldVolume(id=wanted.id, device_name="/dev/vda", running=wanted.source, defined=wanted.source),
        )}
    assert await driver.power_state(guest.uuid) is PowerState.RUNNING
    await driver.power_off(guest.uuid, grace=0, interval=0)
    assert await held(driver, guest) == [(wanted.id, "/dev/vda", False, True)]
    for _ in range(2):
        await driver.detach_volume(guest.uuid, wanted.id)
        assert await driver.held_volumes() == {}


async def test_a_guest_that_is_off_is_given_a_volume_and_starts_with_it(
    driver: Driver, guest: Guest, exports: Exports
) -> None:
    first, second = volume(exports.add(MIB), device_name="/dev/vdd"), volume(exports.add(MIB))
    both = having(guest, first, second)
    await driver.spawn(guest)
    await driver.power_off(guest.uuid, grace=0, interval=0)
    for one in (first, second):
        for _ in range(2):
            await driver.attach_volume(both, one)
    assert await held(driver, guest) == [(second.id, "/dev/vda", False, True), (first.id, "/dev/vdd", False, True)]
    await driver.power_on(both)
    assert await held(driver, guest) == [(second.id, "/dev/vda", True, True), (first.id, "/dev/vdd", True, True)]
    await driver.hard_reboot(having(guest, second))
    assert await held(driver, guest) == [(second.id, "/dev/vda", True, True)]
    await driver.destroy(guest.uuid)
    assert await driver.held_volumes() == {}
    await driver.attach_volume(both, first)  # it gets it with its next start
    assert await driver.held_volumes() == {}


async def test_there_is_nothing_to_detach_extend_or_count_where_there_is_no_guest(driver: Driver, guest: Guest) -> None:
    await driver.spawn(guest)
    for one in (guest.uuid, str(uuid.uuid4())):
        await driver.detach_volume(one, "absent")
        await driver.extend_volume(one, "absent", MIB)
        await driver.abort_copy(one, "absent")
        assert await driver.volume_usage(one) == {}


@pytest.mark.spec("VOL-24")
async def test_a_volume_that_is_not_served_is_not_half_attached(
    driver: Driver, guest: Guest, exports: Exports
) -> None:
    lost = volume(exports.add(MIB))
    assert isinstance(lost.source, NbdSource)
    exports.withdraw(lost.source)
    await driver.spawn(guest)
    with pytest.raises(KilonovaError):
        await driver.attach_volume(having(guest, lost), lost)
    assert await driver.held_volumes() == {}
    exports.serve(lost.source)
    await driver.attach_volume(having(guest, lost), lost)
    assert await held(driver, guest) == [(lost.id, "/dev/vda", True, True)]


async def test_two_volumes_never_have_one_name(driver: Driver, guest: Guest, exports: Exports) -> None:
    first, second = (volume(exports.add(MIB), device_name="/dev/vdb") for _ in range(2))
    await driver.spawn(having(guest, first))
    with pytest.raises(KilonovaError):
        await driver.attach_volume(having(guest, first, second), second)
    assert await held(driver, guest) == [(first.id, "/dev/vdb", True, True)]


async def test_a_guest_that_does_not_let_go_keeps_its_volume(
    driver: Driver, guest: Guest, exports: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Firmware that runs alone lets go of nothing, and neither does a guest that stands still."""
    kept = volume(exports.add(MIB))
    if isinstance(driver, FakeDriver):
        driver.hypervisor.faults.disobedient.add(guest.uuid)
    monkeypatch.setattr("kilonova.hypervisor.libvirt.hotplug.DETACH_ATTEMPTS", 2)
    monkeypatch.setattr("kilonova.hypervisor.libvirt.hotplug.DETACH_WAIT", 1.0)
    await driver.spawn(having(guest, kept))
    for _ in range(2):
        with pytest.raises(DeviceDetachFailed, match="/dev/vda"):
            await driver.detach_volume(guest.uuid, kept.id)
        assert await held(driver, guest) == [(kept.id, "/dev/vda", True, True)]
    await driver.pause(guest.uuid)
    with pytest.raises(DeviceDetachFailed, match="stands still"):
        await driver.detach_volume(guest.uuid, kept.id)
    assert await held(driver, guest) == [(kept.id, "/dev/vda", True, True)]


async def test_a_guest_sees_that_a_volume_has_grown(
    driver: Driver, guest: Guest, exports: Exports, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown = volume(exports.add(MIB))
    assert isinstance(grown.source, NbdSource)
    await driver.spawn(having(guest, grown))
    with monkeypatch.context() as impatient, pytest.raises(Retryable):
        impatient.setattr("kilonova.hypervisor.libvirt.calls.volumes.EXTEND_LIMIT", 0.5)
        await driver.extend_volume(guest.uuid, grown.id, 3 * MIB)
    exports.resize(grown.source, 3 * MIB)
    for _ in range(2):
        await driver.extend_volume(guest.uuid, grown.id, 3 * MIB)

    async def runs() -> bool:
        """It may have stood still for the moment in which its server of NBD had let go of it."""
        return await driver.power_state(guest.uuid) is PowerState.RUNNING

    await eventually(runs)


@pytest.mark.spec("SWP-01")
async def test_a_guest_changes_from_one_volume_to_another(driver: Driver, guest: Guest, exports: Exports) -> None:
    old, new = volume(exports.add(MIB)), volume(exports.add(MIB))
    await driver.spawn(having(guest, old))
    assert (await driver.copy_state(guest.uuid, old.id, new)).state is CopyState.NONE
    with pytest.raises(Conflict):
        await driver.pivot_volume(guest.uuid, old.id, new)
    for _ in range(2):
        await driver.start_copy(guest.uuid, old.id, new)

    async def ready() -> bool:
        return (await driver.copy_state(guest.uuid, old.id, new)).state is CopyState.READY

    await eventually(ready)
    await driver.start_copy(guest.uuid, old.id, new)
    assert await ready()
    with pytest.raises(Conflict):
        await driver.detach_volume(guest.uuid, old.id)
    assert await driver.held_volumes() == {guest.uuid: (
        HeldVolume(id=old.id, device_name="/dev/vda", running=old.source, defined=old.source),
    )}
    for _ in range(2):
        await driver.pivot_volume(guest.uuid, old.id, new)
        await driver.abort_copy(guest.uuid, old.id)  # too late
        assert (await driver.copy_state(guest.uuid, old.id, new)).state is CopyState.DONE
        assert await driver.held_volumes() == {guest.uuid: (
            HeldVolume(id=old.id, device_name="/dev/vda", running=new.source, defined=new.source),
        )}
    await driver.start_copy(guest.uuid, old.id, new)
    await driver.power_off(guest.uuid, grace=0, interval=0)
    assert (await driver.copy_state(guest.uuid, old.id, new)).state is CopyState.DONE


async def test_a_copy_is_ended_and_the_guest_keeps_its_volume(driver: Driver, guest: Guest, exports: Exports) -> None:
    old, new, third = (volume(exports.add(MIB)) for _ in range(3))
    if isinstance(driver, FakeDriver):
        driver.hypervisor.faults.copying = 600.0
    await driver.spawn(having(guest, old))
    await driver.start_copy(guest.uuid, old.id, new)
    with pytest.raises(Conflict):
        await driver.start_copy(guest.uuid, old.id, third)
    for _ in range(2):
        await driver.abort_copy(guest.uuid, old.id)
        assert (await driver.copy_state(guest.uuid, old.id, new)).state is CopyState.NONE
    await driver.start_copy(guest.uuid, old.id, third)
    await driver.power_off(guest.uuid, grace=0, interval=0)
    assert (await driver.copy_state(guest.uuid, old.id, third)).state is CopyState.NONE
    assert await held(driver, guest) == [(old.id, "/dev/vda", False, True)]
    with pytest.raises(Conflict):
        await driver.start_copy(guest.uuid, old.id, new)


async def test_only_a_volume_that_the_guest_has_is_copied_and_only_to_one_of_its_size(
    driver: Driver, guest: Guest, exports: Exports
) -> None:
    old, larger = volume(exports.add(MIB)), volume(exports.add(2 * MIB))
    await driver.spawn(having(guest, old))
    for call in (driver.start_copy, driver.copy_state, driver.pivot_volume):
        with pytest.raises(NotFound):
            await call(guest.uuid, larger.id, larger)
    with pytest.raises(KilonovaError):
        await driver.start_copy(guest.uuid, old.id, larger)
    assert (await driver.copy_state(guest.uuid, old.id, larger)).state is CopyState.NONE


async def test_what_a_guest_does_with_a_volume_is_counted_while_it_runs(
    driver: Driver, guest: Guest, exports: Exports
) -> None:
    used = volume(exports.add(MIB))
    await driver.spawn(having(guest, used))
    if isinstance(driver, FakeDriver):
        driver.use_volume(guest.uuid, used.id, VolumeUsage(
            read_requests=1, read_bytes=512, write_requests=0, write_bytes=0,
        ))
    found = await driver.volume_usage(guest.uuid)
    assert list(found) == [used.id]
    assert min(msgspec.structs.astuple(found[used.id])) >= 0
    await driver.power_off(guest.uuid, grace=0, interval=0)
    assert await driver.volume_usage(guest.uuid) == {}
