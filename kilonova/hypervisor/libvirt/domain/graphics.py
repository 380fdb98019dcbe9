"""The screen: a video card and the servers that show it."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Literal

from kilonova.hypervisor.libvirt.domain.element import add, make

VideoModel = Literal["vga", "virtio", "cirrus", "qxl", "bochs", "vmvga"]


@dataclass(frozen=True, kw_only=True)
class Vnc:
    """listen: the address; libvirt finds a free port."""

    listen: str = "127.0.0.1"

    def element(self) -> ET.Element:
        graphics = make("graphics", type="vnc", port=-1, autoport=True)
        add(graphics, "listen", type="address", address=self.listen)
        return graphics


@dataclass(frozen=True, kw_only=True)
class Spice:
    """listen: the address; libvirt finds a free port."""

    listen: str = "127.0.0.1"

    def element(self) -> ET.Element:
        graphics = make("graphics", type="spice", autoport=True)
        add(graphics, "listen", type="address", address=self.listen)
        return graphics


@dataclass(frozen=True, kw_only=True)
class Video:
    """ram: MiB, None for what the card has by itself."""

    model: VideoModel = "vga"
    ram: int | None = None

    def element(self) -> ET.Element:
        video = make("video")
        add(video, "model", type=self.model, vram=self.ram * 1024 if self.ram is not None else None)
        return video
