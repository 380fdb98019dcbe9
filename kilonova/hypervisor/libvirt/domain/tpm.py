"""The virtual TPM, which a program of its own emulates."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

from kilonova.hypervisor.libvirt.domain.element import add, make
from kilonova.shapes.tpm import Model, Version


@dataclass(frozen=True, kw_only=True)
class Tpm:
    """secret: the name that libvirt knows the key of its state by."""

    model: Model
    version: Version
    secret: str

    def element(self) -> ET.Element:
        tpm = make("tpm", model=self.model)
        backend = add(tpm, "backend", type="emulator", version=self.version)
        add(backend, "encryption", secret=self.secret)
        return tpm
