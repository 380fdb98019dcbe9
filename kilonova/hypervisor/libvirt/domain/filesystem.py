"""A directory of the host that the guest can mount, as it is there and without a copy."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

from kilonova.hypervisor.libvirt.domain.element import add, make


@dataclass(frozen=True, kw_only=True)
class SharedFilesystem:
    """tag: what the guest mounts. program: the daemon that serves it."""

    tag: str
    directory: str
    program: str

    def element(self) -> ET.Element:
        filesystem = make("filesystem", type="mount", accessmode="passthrough")
        add(filesystem, "driver", type="virtiofs")
        add(filesystem, "binary", path=self.program)
        add(filesystem, "source", dir=self.directory)
        add(filesystem, "target", dir=self.tag)
        return filesystem
