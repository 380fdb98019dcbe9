"""The source of randomness, without which a guest may wait seconds for its first key."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

from kilonova.hypervisor.libvirt.domain.element import add, make


@dataclass(frozen=True, kw_only=True)
class Entropy:
    """source: a device of the host that does not block."""

    source: str = "/dev/urandom"

    def element(self) -> ET.Element:
        rng = make("rng", model="virtio")
        add(rng, "backend", self.source, model="random")
        return rng
