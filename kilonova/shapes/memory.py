"""The guest's memory: pages, locking, encryption."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from kilonova.domain.errors import InvalidInput
from kilonova.shapes.asked import Asked, Parse, boolean, word

PageSize = int | Literal["small", "large", "any"]
"""KiB, or a wish that the host's sizes decide."""
EncryptionModel = Literal["amd-sev", "amd-sev-es", "amd-sev-snp", "intel-tdx"]

_MODEL: Parse[EncryptionModel] = word("amd-sev", "amd-sev-es", "amd-sev-snp", "intel-tdx")
_SIZE = re.compile(r"(?P<number>\d{1,12})(?P<unit>[kKMGT]?)i?(b|bit|B)?", re.ASCII)
_KIB = {"": 1, "k": 1, "K": 1, "M": 1 << 10, "G": 1 << 20, "T": 1 << 30}


class MemoryShape(msgspec.Struct, frozen=True, kw_only=True):
    """The guest's memory.

    Args:
        page_size: None for the host's usual pages, of which no account is kept. locked: never swapped out.
        encryption: None for none.
    """

    mib: int
    page_size: PageSize | None = None
    locked: bool = False
    encryption: EncryptionModel | None = None


def memory_shape(mib: int, asked: Asked, *, has_cells: bool) -> MemoryShape:
    """Args: has_cells: whether NUMA cells are asked for. Raises InvalidInput: a wrong value, or a contradiction."""
    page_size = _page_size_of(asked)
    locked = asked.agreed("hw:locked_memory", boolean) or False
    if locked and page_size is None and not has_cells:
        raise InvalidInput("hw:locked_memory needs hw:mem_page_size or hw:numa_nodes.")
    return MemoryShape(mib=mib, page_size=page_size, locked=locked, encryption=_encryption(asked))


def _page_size_of(asked: Asked) -> PageSize | None:
    """An image may choose among sizes that its flavor leaves open."""
    flavor, image = asked.of_flavor("hw:mem_page_size", page_size), asked.of_image("hw:mem_page_size", page_size)
    if image is None:
        return flavor
    if flavor not in ("large", "any"):
        raise InvalidInput("Image property hw_mem_page_size is not permitted, because the flavor does not set "
                           "hw:mem_page_size = large or any.")
    return image


def page_size(key: str, text: str) -> PageSize:
    """A wish, or a size with an optional unit; KiB without one."""
    if text in ("small", "large", "any"):
        return text  # type: ignore[return-value]
    match = _SIZE.fullmatch(text)
    if match is None or int(match["number"]) == 0:
        raise InvalidInput(f"Invalid value {text!r} of {key}: it is large, small, any, or a size such as 2MB.")
    return int(match["number"]) * _KIB[match["unit"]]


def _encryption(asked: Asked) -> EncryptionModel | None:
    wanted = asked.agreed("hw:mem_encryption", boolean)
    model = asked.agreed("hw:mem_encryption_model", _MODEL)
    if not wanted:
        return None
    if asked.properties.get("hw_firmware_type") != "uefi":
        raise InvalidInput("Memory encryption needs an image with hw_firmware_type = uefi.")
    machine = asked.properties.get("hw_machine_type", "q35")
    if "q35" not in machine:
        raise InvalidInput(f"Memory encryption needs machine type q35, not {machine}.")
    return model or "amd-sev"
