"""Taking devices from guests, as far as it is decided without libvirt."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any, cast

import pytest

from kilonova.domain.clock import Clock
from kilonova.hypervisor.libvirt.connection import Connection
from kilonova.hypervisor.libvirt.hotplug import DETACH_PAUSE, LIVE, STORED, taken


class Guest:
    """One with a device, as a connection and a domain of libvirt show it. slow: it lets go while it is waited for."""

    def __init__(self, *, slow: bool) -> None:
        self._slow = slow
        self.has = {LIVE, STORED}
        self.slept: list[float] = []

    def lookupByUUIDString(self, _uuid: str) -> Guest:
        return self

    def isActive(self) -> bool:
        return True

    def XMLDesc(self, flags: int) -> str:
        device = "<disk/>" if (STORED if flags else LIVE) in self.has else ""
        return f"<domain><devices>{device}</devices></domain>"

    def detachDeviceFlags(self, _described: str, which: int) -> None:
        if which == STORED or not self._slow:
            self.has.discard(which)

    async def call(self, function: Callable[[Any], Any], *, uuid: str) -> Any:
        return function(self)

    def monotonic(self) -> float:
        return sum(self.slept)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.has.discard(LIVE)


@pytest.mark.parametrize(("slow", "slept"), [(False, []), (True, [DETACH_PAUSE])])
async def test_nobody_waits_for_a_guest_that_has_let_go(slow: bool, slept: list[float]) -> None:
    guest = Guest(slow=slow)

    def is_it(device: ET.Element) -> bool:
        return device.tag == "disk"

    assert await taken(cast("Connection", guest), cast("Clock", guest), "uuid", is_it)
    assert (guest.has, guest.slept) == (set(), slept)
