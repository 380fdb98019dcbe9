"""The kernel that a guest starts directly."""

from __future__ import annotations

import msgspec

from kilonova.domain.errors import InvalidInput
from kilonova.shapes.asked import Asked

PLAIN = frozenset({"raw", "aki", "ari", "ami"})
"""Formats of images that are one file as it is."""


class Kernel(msgspec.Struct, frozen=True, kw_only=True):
    """Ids of the images of a kernel and of its ramdisk, "" for none; and what the kernel is told, "" for the usual."""

    kernel: str
    ramdisk: str = ""
    command_line: str = ""


def kernel_of(asked: Asked) -> Kernel | None:
    """None for a guest that boots from its disk. Raises InvalidInput: what belongs to a kernel is without one."""
    wanted = asked.properties
    kernel, ramdisk, command_line = (wanted.get(name, "") for name in ("kernel_id", "ramdisk_id", "os_command_line"))
    for name, value in (("os_command_line", command_line), ("ramdisk_id", ramdisk)):
        if value and not kernel:
            raise InvalidInput(f"Image property {name} needs a kernel_id.")
    return Kernel(kernel=kernel, ramdisk=ramdisk, command_line=command_line) if kernel else None
