"""Whether the file systems of a guest are held still while its disk is copied."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from kilonova.shapes.asked import TRUE

REQUIRED = "os_require_quiesce"
AGENT = "hw_qemu_guest_agent"


class Quiesce(StrEnum):
    """NO: they are not. TRY: if the guest has an agent that does it. MUST: or there is no copy."""

    NO = "no"
    TRY = "try"
    MUST = "must"


def has_agent(properties: Mapping[str, str]) -> bool:
    """Whether the image of a server says that an agent runs in its guests."""
    return properties.get(AGENT, "").strip().lower() in TRUE


def quiesce_of(properties: Mapping[str, str]) -> Quiesce:
    """What the image of a server asks for."""
    if properties.get(REQUIRED, "").strip().lower() in TRUE:
        return Quiesce.MUST
    return Quiesce.TRY if has_agent(properties) else Quiesce.NO
