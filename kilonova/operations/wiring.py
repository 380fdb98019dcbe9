"""Waiting for the network service to wire the interfaces of a new guest."""

from __future__ import annotations

from kilonova.domain.network import Vif
from kilonova.domain.operation import event_key


def wired_events(vifs: tuple[Vif, ...], timeout: float) -> tuple[str, ...]:
    """Keys of the events that are waited for. A port that is a device needs nobody to wire it.

    Args:
        timeout: seconds; 0 does not wait.
    """
    return tuple(event_key("network-vif-plugged", vif.id) for vif in vifs if not vif.is_device) if timeout > 0 else ()
