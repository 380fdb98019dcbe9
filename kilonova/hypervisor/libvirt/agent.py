"""What the agent inside a guest is asked for."""

from __future__ import annotations

import libvirt  # type: ignore[import-untyped]

from kilonova.domain.errors import Conflict

ABSENT = frozenset({
    libvirt.VIR_ERR_AGENT_UNRESPONSIVE, libvirt.VIR_ERR_AGENT_UNSYNCED, libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
    libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED,
})
"""The guest has no channel to an agent, or nothing answers there."""
REFUSED = frozenset({
    libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_OPERATION_FAILED,
})
ANSWER_LIMIT = 15
"""Seconds that libvirt waits for an answer of the agent."""


def set_password(connection: libvirt.virConnect, uuid: str, user: str, password: str) -> None:
    """Set the password of a user.

    Raises:
        Conflict: no agent answers, or it refuses. What the agent says is not repeated: it might tell the password.
        libvirtError: anything else.
    """
    domain = connection.lookupByUUIDString(uuid)
    try:
        domain.agentSetResponseTimeout(ANSWER_LIMIT)
        domain.setUserPassword(user, password)
    except libvirt.libvirtError as error:
        code = error.get_error_code()
        if code in ABSENT:
            raise Conflict(f"QEMU guest agent is not enabled in the guest of instance {uuid}.") from None
        if code in REFUSED:
            raise Conflict(f"The agent in the guest of instance {uuid} refused to set the password.") from None
        raise
