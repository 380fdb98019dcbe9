"""What is looked at before a server may be moved or get another shape, in the order that clients are told of it.

The operation checks lock and states again, in the transaction that accepts it. Spec: API-066, API-068.
"""

from __future__ import annotations

from collections.abc import Collection

from kilonova.api.call import Call
from kilonova.domain.errors import Conflict, InstanceLocked
from kilonova.domain.states import VmState
from kilonova.operations.records import check_states


class HostDown(Conflict):
    """The service of the server's host does not answer. Spec: API-066."""

    def __init__(self) -> None:
        super().__init__("Service is unavailable at this time.")


def require_unlocked(call: Call) -> None:
    """A locked server obeys only administrators. Raises InstanceLocked. Spec: API-064."""
    if call.server.instance.locked_by is not None and not call.context.is_admin:
        raise InstanceLocked(call.server.instance.uuid)


async def host_is_up(call: Call, host: str) -> bool:
    """Hosts of which nothing is known are taken for up: their operations find out."""
    status = (await call.cloud.hosts.statuses([host])).get(host, "UP")
    return status in ("UP", "MAINTENANCE")


async def require_movable(call: Call, *, action: str, vm: Collection[VmState]) -> None:
    """Lock first, then states, then the host.

    Args:
        action: its name in the error text. vm: the states allowed.

    Raises:
        InstanceLocked, InstanceInvalidState, InstanceNeverLaunched, HostDown.
    """
    instance = call.server.instance
    require_unlocked(call)
    check_states(instance, action=action, vm=vm)
    if instance.host is not None and not await host_is_up(call, instance.host):
        raise HostDown
