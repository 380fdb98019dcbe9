"""The sound card."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

from kilonova.hypervisor.libvirt.domain.element import make
from kilonova.shapes.screens import SoundModel


@dataclass(frozen=True, kw_only=True)
class Sound:
    model: SoundModel

    def element(self) -> ET.Element:
        return make("sound", model=self.model)
