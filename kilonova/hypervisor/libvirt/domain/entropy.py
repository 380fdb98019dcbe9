"""The source of randomness, without which a guest may wait seconds for its first key."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

from kilonova.hypervisor.libvirt.domain.element import add, make
from kilonova.shapes.machine import EntropyRate


@dataclass(frozen=True, kw_only=True)
class Entropy:
    """source: a device of the host that does not block. rate: None for no limit."""

    source: str = "/dev/urandom"
    rate: EntropyRate | None = None

    def element(self) -> ET.Element:
        rng = make("rng", model="virtio")
        if self.rate is not None:
            add(rng, "rate", bytes=self.rate.bytes, period=self.rate.period)
        add(rng, "backend", self.source, model="random")
        return rng
