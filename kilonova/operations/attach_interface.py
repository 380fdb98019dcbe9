"""Attach interface: give a server one more interface, on a port that is made for it or that the user brought.

No state of the record shows it; other operations on the server wait for its end. The record lists the interface
when the guest has it and not before. Whatever fails, the guest lets go of the interface again and the port is
deleted, or unbound if it is the user's.
"""

from __future__ import annotations

import msgspec

from kilonova.agent.steps.interfaces import ATTACH, CHECK, DETACH, AbilityArgs, AttachArgs, DetachArgs, vif_of
from kilonova.db import instances
from kilonova.domain.errors import KilonovaError, PortInUse
from kilonova.domain.network import RequestedNetwork, Vif
from kilonova.domain.operation import Failure, OperationRecord
from kilonova.domain.states import VmState
from kilonova.engine.operation import Here, NoUndo, OnHost, Operation, Record, Tx
from kilonova.engine.run import Run
from kilonova.operations.environment import Environment
from kilonova.operations.guests import Described, Host, describe_as_is, find_host
from kilonova.operations.notices import announce
from kilonova.operations.port_resources import tell_ports
from kilonova.operations.records import blame, check
from kilonova.services.network import PortRequest

STATES = (VmState.ACTIVE, VmState.PAUSED, VmState.STOPPED)
READS = NoUndo("changes nothing")


class AttachInterface(msgspec.Struct, frozen=True):
    """What to attach: a port, or a network to make one on."""

    wanted: RequestedNetwork


class Made(msgspec.Struct, frozen=True):
    """The port of the new interface."""

    port_id: str


def _begin(tx: Tx, run: Run[AttachInterface]) -> None:
    """Checked when the server's turn has come, on the record as it then is. Spec: IFC-21 to IFC-23."""
    instance = check(tx, run.subject, action="attach_interface", vm=STATES, needs_host=True)
    wanted = run.request.wanted.port_id
    if wanted is not None and any(vif.id == wanted for vif in instance.network_info):
        raise PortInUse(wanted)


async def _make_port(env: Environment, run: Run[AttachInterface]) -> Made:
    """What the port asks for is claimed before it is bound. Spec: IFC-28, IFC-29."""
    instance = await env.database.read(lambda conn: instances.get(conn, run.subject))
    wanted, host, zone = run.request.wanted, run.output(Host).host, instance.availability_zone or ""
    if wanted.port_id is not None:
        if wanted.need is not None:
            await env.placement.add_port(run.subject, host, wanted.need)
        await env.networks.bind_port(wanted.port_id, run.subject, host, availability_zone=zone, tag=wanted.tag)
        if wanted.need is not None:
            await tell_ports(env, run.subject, (wanted.need,))
        return Made(wanted.port_id)
    assert wanted.network_id is not None
    return Made(await env.networks.create_port(PortRequest(
        key=run.id, network_id=wanted.network_id, project_id=instance.project_id, instance_uuid=run.subject,
        host=host, availability_zone=zone, fixed_ip=wanted.fixed_ip, tag=wanted.tag,
        foreign=wanted.foreign,
    )))


async def _release_port(env: Environment, run: Run[AttachInterface]) -> None:
    """Spec: IFC-08, IFC-33, IFC-36 to IFC-38."""
    port_id = run.request.wanted.port_id
    if port_id is not None:
        await env.networks.unbind_port(port_id, run.subject)
        await env.placement.drop_port(run.subject, port_id)
    else:
        await env.networks.discard_port(run.id)


async def _describe(env: Environment, run: Run[AttachInterface]) -> Described:
    """The guest with the new interface, which the network service must know. Spec: IFC-27, IFC-30, IFC-37."""
    described = await describe_as_is(env, run)
    port_id = run.output(Made).port_id
    if all(vif.id != port_id for vif in described.guest.vifs):
        raise KilonovaError(f"The network service did not give port {port_id} to instance {run.subject}.")
    return described


def _vif(run: Run[AttachInterface]) -> Vif:
    return vif_of(run.output(Described).guest, run.output(Made).port_id)


def _attached(tx: Tx, run: Run[AttachInterface]) -> None:
    """Spec: IFC-32, IFC-40."""
    instances.update(tx.conn, run.subject, now=tx.now, network_info=run.output(Described).guest.vifs)


def _failed(tx: Tx, run: Run[AttachInterface], failure: Failure) -> None:
    """The server is as it was. Spec: IFC-33, IFC-34."""
    blame(tx, run, failure)


def attached_port(record: OperationRecord) -> str:
    """The port that an operation which has succeeded attached."""
    request = msgspec.json.decode(record.request, type=AttachInterface)
    return Run(record, request, ATTACH_INTERFACE.output_types()).output(Made).port_id


ATTACH_INTERFACE = Operation(
    name="attach-interface",
    action="attach_interface",
    event="compute_attach_interface",
    notices=announce("interface_attach", older=None),
    request=AttachInterface,
    waited_for=True,
    begins=_begin,
    steps=(
        Record("find host", find_host, undo=READS),
        OnHost("check host", lambda run: run.output(Host).host, CHECK,
               lambda run: AbilityArgs(tagged=run.request.wanted.tag is not None), undo=READS),
        Here("make port", _make_port, undo=_release_port, undo_owed=True),
        Here("describe guest", _describe, undo=READS),
        OnHost("attach interface", lambda run: run.output(Host).host, ATTACH,
               lambda run: AttachArgs(run.output(Described).guest, run.output(Made).port_id),
               undo=DETACH, undo_args=lambda run: DetachArgs(run.subject, _vif(run)), undo_owed=True),
    ),
    ends=_attached,
    fails=_failed,
)
