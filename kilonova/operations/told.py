"""What an event of another service makes of a server, beside waking the operation that waits for it.

Nothing here waits for anybody: an operation is journaled, or refused because the server is busy. What is refused is
found again by the healing of interfaces, or by the next report of the host. Spec: XEV-11, XEV-14.
"""

from __future__ import annotations

from uuid import uuid4

import structlog

from kilonova.db import instances
from kilonova.db.journal import cell_journal
from kilonova.domain.errors import InstanceNotFound, KilonovaError
from kilonova.domain.instance import Instance
from kilonova.domain.operation import Asker, ExternalEvent
from kilonova.domain.states import PowerState, VmState
from kilonova.engine import submit
from kilonova.engine.operation import Operation, Tx
from kilonova.operations.detach_interface import DETACH_INTERFACE, DetachInterface
from kilonova.operations.extend_volume import EXTEND_VOLUME, ExtendVolume, extensible
from kilonova.operations.interface_refresh import CHANGED
from kilonova.operations.start import START, StartServer
from kilonova.operations.stop import STOP, StopServer

log = structlog.get_logger(__name__)

DELETED, UNPLUGGED, POWER, EXTENDED = (
    "network-vif-deleted", "network-vif-unplugged", "power-update", "volume-extended"
)
ACTED_ON = (CHANGED, DELETED, POWER, EXTENDED)
"""Events that mean something although no operation waits for them."""


def take(tx: Tx, event: ExternalEvent) -> tuple[bool, bool]:
    """Keep an event for the operation that may wait for it, and journal what follows from it.

    Returns:
        Whether it was kept, and whether there is other work.

    Spec: EVT-04, EVT-06, EVT-08, XEV-06.
    """
    kept = cell_journal.add_event(tx.conn, event, tx.now)
    if not kept:
        log.debug("nobody waits for an event", instance=event.subject, event_key=event.key)
    try:
        server = instances.get(tx.conn, event.subject)
    except InstanceNotFound:
        return kept, False
    if not kept:
        warn_of_drop(server, event)
    return kept, follow(tx, server, event)


def follow(tx: Tx, server: Instance, event: ExternalEvent) -> bool:
    """Journal what follows from an event. Returns whether there is work.

    Args:
        server: its record, read in this transaction. Spec: XEV-42.
    """
    if event.name == DELETED:
        return lost_port(tx, server, event.tag)
    if event.name == POWER:
        return _power(tx, server, event.tag)
    if event.name == EXTENDED:
        return _extended(tx, server, event.tag)
    return False


def lost_port(tx: Tx, server: Instance, port_id: str) -> bool:
    """A port was deleted in the network service: its interface leaves the guest and the record, as if a user had
    detached it. Spec: XEV-03, XEV-15, XEV-16, XEV-18, XEV-19, XEV-21, XEV-23."""
    if all(vif.id != port_id for vif in server.network_info):
        return False
    return _submit(tx, server, DETACH_INTERFACE, DetachInterface(port_id))


def _extended(tx: Tx, server: Instance, volume_id: str) -> bool:
    """A volume has become larger: the guest is to see it. Spec: XEV-04, XEV-24, XEV-25, XEV-32."""
    if extensible(tx.conn, server.uuid, volume_id) is None:
        return False
    return _submit(tx, server, EXTEND_VOLUME, ExtendVolume(volume_id))


def _power(tx: Tx, server: Instance, target: str) -> bool:
    """The server's power was switched from outside: the server follows. Spec: XEV-33 to XEV-36, XEV-38, XEV-40 to
    XEV-43, XEV-45."""
    now = (server.task_state, server.vm_state, server.power_state)
    if target == "POWER_ON" and now == (None, VmState.STOPPED, PowerState.SHUTDOWN):
        return _submit(tx, server, START, StartServer())
    if target == "POWER_OFF" and now == (None, VmState.ACTIVE, PowerState.RUNNING):
        return _submit(tx, server, STOP, StopServer(grace=0.0, interval=0.0))
    log.info("power update does not concern the server", instance=server.uuid, target=target,
             vm_state=server.vm_state.value, power_state=server.power_state.name)
    return False


def _submit(
    tx: Tx, server: Instance, operation: Operation,
    request: DetachInterface | StartServer | StopServer | ExtendVolume,
) -> bool:
    asker = Asker(project_id=server.project_id, user_id=server.user_id, request_id=f"req-{uuid4()}")
    try:
        submit.submit(tx, cell_journal, operation, server.uuid, request, asker)
    except KilonovaError as error:
        log.info("event not followed", instance=server.uuid, operation=operation.name, error=str(error))
        return False
    return True


def warn_of_drop(server: Instance, event: ExternalEvent) -> None:
    """Nobody waited for an event. That it was expected is no reason for a warning. Spec: XEV-07, XEV-08, XEV-13."""
    known = any(vif.id == event.tag for vif in server.network_info)
    task = server.task_state.value if server.task_state else None
    if event.name in ACTED_ON or (event.name == UNPLUGGED and (task is not None or not known)):
        return
    log.warning("event dropped", instance=server.uuid, event_key=event.key, vm_state=server.vm_state.value,
                task_state=task)
