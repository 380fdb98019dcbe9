"""What kind of the host's memory a guest has."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass

from kilonova.hypervisor.libvirt.domain.element import add, make


@dataclass(frozen=True, kw_only=True)
class HugePages:
    """A cell of the guest in pages of this size."""

    kib: int
    cell: int

    def add_to(self, pages: ET.Element) -> None:
        add(pages, "page", size=self.kib, unit="KiB", nodeset=self.cell)


@dataclass(frozen=True, kw_only=True)
class MemoryBacking:
    """locked: never swapped out. private: its pages are not merged with equal ones of other guests. shared: processes
    of the host that serve the guest's devices see it."""

    huge_pages: tuple[HugePages, ...] | None = None
    locked: bool = False
    private: bool = False
    shared: bool = False

    def element(self) -> ET.Element:
        backing = make("memoryBacking")
        if self.huge_pages:
            pages = add(backing, "hugepages")
            for one in self.huge_pages:
                one.add_to(pages)
        if self.private:
            add(backing, "nosharepages")
        if self.locked:
            add(backing, "locked")
        if self.shared:
            add(backing, "source", type="memfd")
            add(backing, "access", mode="shared")
        return backing
