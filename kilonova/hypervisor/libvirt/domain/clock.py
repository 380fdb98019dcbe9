"""The guest's clock."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Literal

from kilonova.hypervisor.libvirt.domain.element import add, make


@dataclass(frozen=True, kw_only=True)
class GuestClock:
    """offset: what the hardware clock shows. hyperv: offer Windows its own timer. hpet: offer that timer."""

    offset: Literal["utc", "localtime"] = "utc"
    hyperv: bool = False
    hpet: bool = False

    def element(self) -> ET.Element:
        clock = make("clock", offset=self.offset)
        add(clock, "timer", name="rtc", tickpolicy="catchup")
        add(clock, "timer", name="pit", tickpolicy="delay")
        add(clock, "timer", name="hpet", present=self.hpet)
        if self.hyperv:
            add(clock, "timer", name="hypervclock", present=True)
        return clock
