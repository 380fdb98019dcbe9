"""Guests that start a kernel of their own instead of what is on their first disk."""

from __future__ import annotations

from dataclasses import dataclass

from kilonova.hypervisor.guest import Guest
from kilonova.shapes.asked import Asked
from kilonova.shapes.kernel import Kernel, kernel_of

CONSOLES = "console=tty0 console=ttyS0"
"""Where a kernel tells what it does, if its image says nothing else."""


@dataclass(frozen=True, kw_only=True)
class BootFiles:
    """What a guest boots directly. ending: of the names of its files, which a rescue has beside the guest's own."""

    wanted: Kernel
    ending: str

    @property
    def names(self) -> dict[str, str]:
        """The file names, and the ids of the images that they hold."""
        images = {"kernel": self.wanted.kernel, "ramdisk": self.wanted.ramdisk}
        return {f"{name}{self.ending}": image for name, image in images.items() if image}


def boot_files(guest: Guest) -> BootFiles | None:
    """None for a guest that boots from a disk. A rescue boots what its own image says. Raises InvalidInput."""
    rescued = guest.rescue is not None
    properties = guest.rescue.properties if guest.rescue is not None else guest.properties
    wanted = kernel_of(Asked({}, properties))
    return BootFiles(wanted=wanted, ending=".rescue" if rescued else "") if wanted is not None else None


def command_line(wanted: Kernel, root: str) -> str:
    """What the kernel is told. root: the device of the root disk, as the guest names it."""
    return wanted.command_line or f"root={root} {CONSOLES}"
