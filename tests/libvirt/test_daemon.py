"""The private libvirtd: apart from others, alive through the death of anything, gone when asked."""

from __future__ import annotations

import os
import signal
import uuid
from pathlib import Path

import libvirt
import pytest
from libvirt_installations import (
    Installation,
    Listener,
    empty_guest,
    eventually,
    is_alive,
    make_installation,
    qemu_pid,
    remove_installation,
)

from kilonova.domain.clock import SystemClock
from kilonova.domain.console import ConsoleKind
from kilonova.domain.errors import KilonovaError, Retryable
from kilonova.domain.states import PowerState
from kilonova.hypervisor.libvirt import daemon as daemon_module
from kilonova.hypervisor.libvirt.daemon import PrivateDaemon
from kilonova.hypervisor.libvirt.description import domain_name
from kilonova.hypervisor.libvirt.driver import LibvirtDriver


async def answers(driver: LibvirtDriver, uuid: str) -> bool:
    try:
        return await driver.power_state(uuid) is PowerState.RUNNING
    except Retryable:
        return False


async def test_screens_have_ports_of_the_installation(own_installation: Installation, listener: Listener) -> None:
    """Two libvirtds that look for a free port at the same time do not find the same one."""
    driver = own_installation.driver()
    await driver.start(listener)
    guest = empty_guest(properties={})
    await driver.create_disks(guest)
    await driver.spawn(guest)
    screen = await driver.console(guest.uuid, ConsoleKind.VNC)
    window = uuid.UUID((own_installation.directory / "libvirt/host_uuid").read_text().strip()).int % 26
    assert screen.port is not None
    assert 5900 + window * 1000 <= screen.port < 5900 + (window + 1) * 1000
    await driver.destroy(guest.uuid)
    await driver.close()


async def test_guests_outlive_everything_but_their_own_end(
    own_installation: Installation, listener: Listener
) -> None:
    """libvirtd killed, its supervisor killed, both stopped: the guest runs on and is found again."""
    driver = own_installation.driver()
    await driver.start(listener)
    guest = empty_guest()
    await driver.create_disks(guest)
    await driver.spawn(guest)
    process = qemu_pid(own_installation, domain_name(guest.uuid))

    first = own_installation.libvirtd_pid()
    os.kill(first, signal.SIGKILL)
    await eventually(lambda: answers(driver, guest.uuid))
    second = own_installation.libvirtd_pid()
    assert second != first

    supervisor = own_installation.supervisor_pid()
    os.kill(supervisor, signal.SIGKILL)
    os.kill(second, signal.SIGKILL)
    await eventually(lambda: answers(driver, guest.uuid))
    assert own_installation.supervisor_pid() != supervisor

    await driver.close()
    third = own_installation.libvirtd_pid()
    await own_installation.daemon().stop()
    assert not is_alive(third)
    assert is_alive(process)

    again = own_installation.driver()
    await again.start(listener)
    assert [found.uuid for found in await again.guests()] == [guest.uuid]
    await again.destroy(guest.uuid)
    assert not is_alive(process)
    await again.close()


async def test_an_orphaned_libvirtd_is_replaced(own_installation: Installation) -> None:
    """The supervisor died and its libvirtd did not: the next start puts both in order."""
    driver = own_installation.driver()
    await driver.start(lambda _event: None)
    orphan, supervisor = own_installation.libvirtd_pid(), own_installation.supervisor_pid()
    os.kill(supervisor, signal.SIGKILL)
    await driver.close()
    await eventually(lambda: _ended(supervisor))
    assert is_alive(orphan)

    again = own_installation.driver()
    await again.start(lambda _event: None)
    assert not is_alive(orphan)
    assert await again.guests() == []
    await again.close()


async def test_a_running_daemon_is_adopted_with_its_identity(own_installation: Installation) -> None:
    driver = own_installation.driver()
    await driver.start(lambda _event: None)
    pids = own_installation.supervisor_pid(), own_installation.libvirtd_pid()
    uuid = _host_uuid(own_installation)
    await driver.close()

    again = own_installation.driver()
    await again.start(lambda _event: None)
    assert (own_installation.supervisor_pid(), own_installation.libvirtd_pid()) == pids
    await again.close()
    await own_installation.daemon().stop()

    fresh = own_installation.driver()
    await fresh.start(lambda _event: None)
    assert _host_uuid(own_installation) == uuid
    await fresh.close()


async def test_installations_know_nothing_of_each_other(
    own_installation: Installation, listener: Listener
) -> None:
    other = make_installation()
    try:
        mine, theirs = own_installation.driver(), other.driver()
        await mine.start(listener)
        await theirs.start(listener)
        assert _host_uuid(own_installation) != _host_uuid(other)
        guest = empty_guest()
        await mine.create_disks(guest)
        await mine.spawn(guest)
        assert await theirs.guests() == []
        assert await theirs.power_state(guest.uuid) is PowerState.NOSTATE
        await theirs.destroy(guest.uuid)
        assert await mine.power_state(guest.uuid) is PowerState.RUNNING
        await mine.close()
        await theirs.close()
    finally:
        await remove_installation(other)


async def test_closing_leaves_no_connection_open(own_installation: Installation) -> None:
    keeper = own_installation.driver()
    await keeper.start(lambda _event: None)
    before = _open_sockets(own_installation)
    driver = own_installation.driver()
    await driver.start(lambda _event: None)
    assert _open_sockets(own_installation) > before
    await driver.close()

    async def closed() -> bool:
        return _open_sockets(own_installation) == before

    await eventually(closed)
    await keeper.close()


async def test_without_libvirtd_there_is_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_module, "SEARCH_PATH", str(tmp_path))
    daemon = PrivateDaemon(tmp_path / "libvirt", tmp_path / "guests", SystemClock())
    with pytest.raises(KilonovaError, match="libvirtd is not installed") as raised:
        await daemon.start(None)  # type: ignore[arg-type]
    assert raised.value.hint is not None and "libvirt-daemon" in raised.value.hint


async def test_a_libvirtd_that_ends_at_once_is_reported_with_its_last_words(
    own_installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon_module, "START_LIMIT", 4.0)
    programs = own_installation.directory / "bin"
    programs.mkdir()
    (programs / "libvirtd").write_text("#!/bin/sh\necho no luck today >&2\nexit 1\n")
    (programs / "libvirtd").chmod(0o755)
    monkeypatch.setattr(daemon_module, "SEARCH_PATH", str(programs))
    with pytest.raises(KilonovaError, match="did not accept connections") as raised:
        await own_installation.driver().start(lambda _event: None)
    assert "no luck today" in str(raised.value.hint)
    os.kill(own_installation.supervisor_pid(), signal.SIGTERM)

    async def gone() -> bool:
        return not own_installation.daemon().is_running()

    await eventually(gone)


async def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    with pytest.raises(KilonovaError, match="too long"):
        await PrivateDaemon(deep, tmp_path / "guests", SystemClock()).start(None)  # type: ignore[arg-type]


async def _ended(pid: int) -> bool:
    return not is_alive(pid)


def _host_uuid(installation: Installation) -> str:
    connection = libvirt.open(installation.daemon().uri)
    try:
        return str(connection.getCapabilities().split("<uuid>")[1].split("<")[0])
    finally:
        connection.close()


def _open_sockets(installation: Installation) -> int:
    """Sockets that libvirtd holds, one per client besides its own."""
    descriptors = Path(f"/proc/{installation.libvirtd_pid()}/fd")
    return sum(str(one.readlink()).startswith("socket:") for one in descriptors.iterdir())
