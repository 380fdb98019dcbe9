"""What the agent inside a guest is asked for."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable

import libvirt  # type: ignore[import-untyped]

from kilonova.domain.errors import Conflict, GuestAgentAway, KilonovaError
from kilonova.hypervisor.libvirt import power
from kilonova.hypervisor.libvirt.domain.channel import AgentChannel

AWAY = frozenset({libvirt.VIR_ERR_AGENT_UNRESPONSIVE, libvirt.VIR_ERR_AGENT_UNSYNCED})
"""Nothing answers at the guest's channel to an agent."""
ABSENT = AWAY | {libvirt.VIR_ERR_CONFIG_UNSUPPORTED, libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED}
"""The guest has no channel to an agent, or nothing answers there."""
REFUSED = frozenset({
    libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_OPERATION_FAILED,
})
ANSWER_LIMIT = 15
"""Seconds that libvirt waits for an answer of the agent."""


def set_password(connection: libvirt.virConnect, uuid: str, user: str, password: str) -> None:
    """Set the password of a user.

    Raises:
        GuestAgentAway: no agent answers. Conflict: the guest has no channel to one, or the agent refuses. What it says
        is not repeated: it might tell the password.
        libvirtError: anything else.
    """
    domain = connection.lookupByUUIDString(uuid)
    try:
        domain.agentSetResponseTimeout(ANSWER_LIMIT)
        domain.setUserPassword(user, password)
    except libvirt.libvirtError as error:
        code = error.get_error_code()
        if code in AWAY:
            raise GuestAgentAway(f"No agent answers in the guest of instance {uuid} yet.") from None
        if code in ABSENT:
            raise Conflict(f"QEMU guest agent is not enabled in the guest of instance {uuid}.") from None
        if code in REFUSED:
            raise Conflict(f"The agent in the guest of instance {uuid} refused to set the password.") from None
        raise


def require(connection: libvirt.virConnect, uuid: str) -> None:
    """Whether an agent listens. Raises Conflict: none does, or the guest is paused."""
    domain = connection.lookupByUUIDString(uuid)
    if domain.state()[0] != libvirt.VIR_DOMAIN_RUNNING:
        raise Conflict(f"The guest of instance {uuid} does not run.")
    if not _listens(domain):
        raise Conflict(f"QEMU guest agent is not enabled in the guest of instance {uuid}.")


def freeze(connection: libvirt.virConnect, uuid: str) -> None:
    """Hold all file systems still. Raises KilonovaError: the agent refuses, or has not answered and may do it yet."""
    _say(connection.lookupByUUIDString(uuid), "freeze", lambda domain: domain.fsFreeze())


def thaw(connection: libvirt.virConnect, uuid: str) -> None:
    """Let them go; those of a guest that is off, or not frozen, are fine. Raises KilonovaError: it does not answer."""
    domain = power.find(connection, uuid)
    if domain is not None and domain.isActive():
        _say(domain, "thaw", lambda domain: domain.fsThaw())


def _say(domain: libvirt.virDomain, what: str, call: Callable[[libvirt.virDomain], object]) -> None:
    try:
        domain.agentSetResponseTimeout(ANSWER_LIMIT)
        call(domain)
    except libvirt.libvirtError as error:
        if error.get_error_code() in ABSENT | REFUSED and domain.isActive():
            raise KilonovaError(f"The agent in the guest did not {what} its file systems: {error}.") from error
        if domain.isActive():
            raise


def _listens(domain: libvirt.virDomain) -> bool:
    channels = ET.fromstring(domain.XMLDesc(0)).iterfind("devices/channel/target")
    return any(one.get("name") == AgentChannel.name and one.get("state") == "connected" for one in channels)
