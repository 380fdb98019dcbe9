"""A guest that has shut down while its QEMU is still there, for which libvirt has a state of its own. It is too short
to be met with a real guest, so that libvirt's part is played here."""

from __future__ import annotations

from typing import Any

import libvirt  # type: ignore[import-untyped]

from kilonova.domain.states import PowerState
from kilonova.hypervisor.libvirt import power

UUID = "11111111-1111-4111-8111-111111111111"


class Ending:
    """Both the connection and its only guest."""

    def __init__(self) -> None:
        self.now = libvirt.VIR_DOMAIN_SHUTDOWN
        self.asked: list[str] = []

    def lookupByUUIDString(self, uuid: str) -> Ending:
        assert uuid == UUID
        return self

    def state(self) -> list[int]:
        return [self.now, 0]

    def isActive(self) -> bool:
        return self.now != libvirt.VIR_DOMAIN_SHUTOFF

    def hasManagedSaveImage(self) -> bool:
        return False

    def destroy(self) -> None:
        self.asked.append("destroy")
        self.now = libvirt.VIR_DOMAIN_SHUTOFF

    def shutdownFlags(self, _flags: int) -> None:
        self.asked.append("shut down")

    def defineXML(self, _xml: str) -> Ending:
        return self

    def createWithFlags(self, _flags: int) -> None:
        assert not self.isActive()
        self.asked.append("create")
        self.now = libvirt.VIR_DOMAIN_RUNNING


class Described:
    uuid = UUID

    def xml(self) -> str:
        return "<domain/>"


def test_it_is_on_until_its_disks_are_free() -> None:
    guest: Any = Ending()
    assert power.state(guest, UUID) is PowerState.RUNNING
    guest.now = libvirt.VIR_DOMAIN_SHUTOFF
    assert power.state(guest, UUID) is PowerState.SHUTDOWN


def test_its_button_is_not_pressed_again() -> None:
    guest: Any = Ending()
    assert power.press_button(guest, UUID) is PowerState.RUNNING
    assert guest.asked == []


def test_a_start_is_not_lost_to_its_end() -> None:
    guest: Any = Ending()
    described: Any = Described()
    power.start(guest, described, paused=False)
    assert guest.asked == ["destroy", "create"]
    power.start(guest, described, paused=False)
    assert guest.asked == ["destroy", "create"]
