"""The watchdog: a device that acts when the guest does not feed it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

from kilonova.hypervisor.libvirt.domain.element import make
from kilonova.shapes.machine import Watchdog as Action


@dataclass(frozen=True, kw_only=True)
class Watchdog:
    """action: what happens to the guest."""

    action: Action
    model: str = "i6300esb"

    def element(self) -> ET.Element:
        return make("watchdog", model=self.model, action=self.action)
