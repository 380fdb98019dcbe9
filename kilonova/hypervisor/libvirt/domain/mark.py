"""The mark in a guest's metadata by which this product knows its guests."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

from kilonova.hypervisor.libvirt.domain.element import add

NAMESPACE = "urn:kilonova:instance:1"
ET.register_namespace("kilonova", NAMESPACE)


@dataclass(frozen=True, kw_only=True)
class Mark:
    """installation: id of the installation that owns the guest. name: what the user calls the instance."""

    installation: str
    name: str
    project_id: str
    user_id: str

    def element(self) -> ET.Element:
        root = ET.Element(f"{{{NAMESPACE}}}instance")
        for tag in ("installation", "name", "project_id", "user_id"):
            add(root, f"{{{NAMESPACE}}}{tag}", _printable(getattr(self, tag)))
        return root


def installation_of(metadata: str) -> str | None:
    """The installation that a metadata element (as libvirt returns it) names."""
    root = ET.fromstring(metadata)
    # libvirt gives the element with the prefix it was stored with, and may leave the declaration to us.
    for child in root:
        if child.tag.rpartition("}")[2] == "installation":
            return child.text
    return None


def _printable(text: str) -> str:
    """XML 1.0 has no place for control characters, which a display name may hold."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
