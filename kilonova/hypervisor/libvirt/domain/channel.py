"""The channel to the agent inside the guest."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

from kilonova.hypervisor.libvirt.domain.element import add, make


@dataclass(frozen=True, kw_only=True)
class AgentChannel:
    """libvirt chooses the socket."""

    name: str = "org.qemu.guest_agent.0"

    def element(self) -> ET.Element:
        channel = make("channel", type="unix")
        add(channel, "target", type="virtio", name=self.name)
        return channel
