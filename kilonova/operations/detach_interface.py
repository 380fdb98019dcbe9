"""Detach interface: take an interface from a server. A port that was made for the server is deleted, one that the
user brought is unbound and kept.

A guest that does not let go keeps the interface, and the port with it. Once it has let go, the interface is gone
for the user; if the network service does not answer then, the port is released later.
"""

from __future__ import annotations

import msgspec

from kilonova.agent.steps.interfaces import ATTACH, DETACH, AttachArgs, DetachArgs
from kilonova.db import instances
from kilonova.domain.errors import InstanceNotFound, PortNotFound
from kilonova.domain.network import Vif
from kilonova.domain.operation import Failure
from kilonova.engine.operation import Here, NoUndo, OnHost, Operation, Record, Tx
from kilonova.engine.run import Run
from kilonova.hypervisor.guest import Guest
from kilonova.operations.attach_interface import STATES
from kilonova.operations.environment import Environment
from kilonova.operations.guests import guest_of
from kilonova.operations.notices import announce
from kilonova.operations.records import blame, check

READS = NoUndo("changes nothing")


class DetachInterface(msgspec.Struct, frozen=True):
    """Which one."""

    port_id: str


class Leaving(msgspec.Struct, frozen=True):
    """The interface, and the host and guest that it is to leave."""

    vif: Vif
    host: str
    guest: Guest


def _begin(tx: Tx, run: Run[DetachInterface]) -> None:
    """On the record as it is when its turn has come. Spec: IFC-42, IFC-43."""
    instance = check(tx, run.subject, action="detach_interface", vm=STATES, needs_host=True)
    if all(vif.id != run.request.port_id for vif in instance.network_info):
        raise PortNotFound(run.request.port_id)


def _look(tx: Tx, run: Run[DetachInterface]) -> Leaving:
    """As the record has it, with its PCI device, so that a port that is gone in the network service, or whose device is
    not held any more, can still be detached. Spec: IFC-44, IFC-46, IFC-47."""
    instance = instances.get(tx.conn, run.subject)
    vif = next(vif for vif in instance.network_info if vif.id == run.request.port_id)
    assert instance.host is not None
    config_drive = instance.config_drive == "True"
    guest = guest_of(instance, instance.network_info, layout=None, config_drive=config_drive)
    return Leaving(vif, instance.host, msgspec.structs.replace(guest, vifs=instance.network_info))


def _detach_args(run: Run[DetachInterface]) -> DetachArgs:
    return DetachArgs(run.subject, run.output(Leaving).vif)


def _attach_args(run: Run[DetachInterface]) -> AttachArgs:
    leaving = run.output(Leaving)
    return AttachArgs(leaving.guest, leaving.vif.id)


async def _release_port(env: Environment, run: Run[DetachInterface]) -> None:
    """With what is held for it. Spec: IFC-09 to IFC-12, IFC-45, XEV-20."""
    vif = run.output(Leaving).vif
    if vif.preserve_on_delete:
        await env.networks.unbind_port(vif.id, run.subject)
    else:
        await env.networks.delete_port(vif.id)
    await env.placement.drop_port(run.subject, vif.id)


def _detached(tx: Tx, run: Run[DetachInterface]) -> None:
    try:
        known = instances.get(tx.conn, run.subject).network_info
        left = tuple(vif for vif in known if vif.id != run.request.port_id)
        instances.update(tx.conn, run.subject, now=tx.now, network_info=left)
    except InstanceNotFound:  # nothing lists it any more
        return


def _failed(tx: Tx, run: Run[DetachInterface], failure: Failure) -> None:
    """The interface and its port stay. Spec: IFC-48."""
    blame(tx, run, failure)


DETACH_INTERFACE = Operation(
    name="detach-interface",
    action="detach_interface",
    event="compute_detach_interface",
    notices=announce("interface_detach", older=None),
    request=DetachInterface,
    waited_for=True,
    begins=_begin,
    no_return="release port",
    steps=(
        Record("look", _look, undo=READS),
        OnHost("detach interface", lambda run: run.output(Leaving).host, DETACH, _detach_args,
               undo=ATTACH, undo_args=_attach_args, undo_owed=True, timeout=300, retries=1),
        Here("release port", _release_port, undo=NoUndo("the guest has let go of it"), owed=True),
    ),
    ends=_detached,
    fails=_failed,
)
