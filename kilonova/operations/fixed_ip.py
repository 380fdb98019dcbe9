"""Add or remove a fixed address: the network service changes the port, and the record follows.

No state of the record shows it; other operations on the server wait for its end, so that what is stored last is
what the network service said last. The guest learns of a new address as of its first: from DHCP and metadata.
"""

from __future__ import annotations

import msgspec

from kilonova.db import instances
from kilonova.domain.errors import Conflict, InvalidInput, NotFound
from kilonova.domain.network import Vif
from kilonova.domain.operation import Failure
from kilonova.engine.operation import Here, NoUndo, Operation, Tx
from kilonova.engine.run import Run
from kilonova.operations.environment import Environment
from kilonova.operations.notices import announce
from kilonova.operations.records import blame

READS = NoUndo("changes nothing")


class AddFixedIp(msgspec.Struct, frozen=True):
    """One more address on the server's interface on this network."""

    network_id: str


class RemoveFixedIp(msgspec.Struct, frozen=True):
    """An address of the server."""

    address: str


class Port(msgspec.Struct, frozen=True):
    """The port that is changed, and the addresses that it had before."""

    id: str
    addresses: tuple[str, ...]


class Changed(msgspec.Struct, frozen=True):
    """The interfaces of the server afterwards."""

    vifs: tuple[Vif, ...]


def _begin_adding(tx: Tx, run: Run[AddFixedIp]) -> None:
    """Raises NotFound: the server has no interface there. Spec: API-151."""
    if all(vif.network_id != run.request.network_id for vif in instances.get(tx.conn, run.subject).network_info):
        raise NotFound(f"Instance {run.subject} has no interface on network {run.request.network_id}.")


def _begin_removing(tx: Tx, run: Run[RemoveFixedIp]) -> None:
    """Raises InvalidInput: it is none of the server's. Spec: API-152."""
    known = instances.get(tx.conn, run.subject).network_info
    if all(run.request.address != ip.address for vif in known for ip in vif.fixed_ips):
        raise InvalidInput(f"Fixed IP {run.request.address} is not associated with instance {run.subject}.")


def _addresses(vif: Vif) -> tuple[str, ...]:
    return tuple(ip.address for ip in vif.fixed_ips)


async def _look_where_to_add(env: Environment, run: Run[AddFixedIp]) -> Port:
    for vif in await env.networks.vifs(run.subject):
        if vif.network_id == run.request.network_id:
            return Port(vif.id, _addresses(vif))
    raise NotFound(f"Instance {run.subject} has no interface on network {run.request.network_id}.")


async def _look_where_it_is(env: Environment, run: Run[RemoveFixedIp]) -> Port:
    for vif in await env.networks.vifs(run.subject):
        if run.request.address in _addresses(vif):
            return Port(vif.id, _addresses(vif))
    raise InvalidInput(f"Fixed IP {run.request.address} is not associated with instance {run.subject}.")


async def _add(env: Environment, run: Run[AddFixedIp]) -> None:
    """Spec: FIP-01, FIP-07."""
    port = run.output(Port)
    try:
        await env.networks.add_address(port.id, port.addresses)
    except Conflict as error:
        raise InvalidInput(error.message) from error


async def _remove(env: Environment, run: Run[RemoveFixedIp]) -> None:
    """Spec: FIP-02."""
    port = run.output(Port)
    left = tuple(address for address in port.addresses if address != run.request.address)
    await env.networks.set_addresses(port.id, left)


async def _put_back(env: Environment, run: Run[msgspec.Struct]) -> None:
    port = run.output(Port)
    await env.networks.set_addresses(port.id, port.addresses)


async def _read(env: Environment, run: Run[msgspec.Struct]) -> Changed:
    """Spec: FIP-05, FIP-06."""
    return Changed(await env.networks.vifs(run.subject))


def _changed(tx: Tx, run: Run[msgspec.Struct]) -> None:
    """Spec: FIP-03."""
    instances.update(tx.conn, run.subject, now=tx.now, network_info=run.output(Changed).vifs)


def _failed(tx: Tx, run: Run[msgspec.Struct], failure: Failure) -> None:
    """Spec: FIP-04."""
    blame(tx, run, failure)


ADD_FIXED_IP = Operation(
    name="add-fixed-ip",
    notices=announce("", older="create_ip"),
    request=AddFixedIp,
    waited_for=True,
    begins=_begin_adding,
    steps=(
        Here("look", _look_where_to_add, undo=READS),
        Here("add address", _add, undo=_put_back, undo_owed=True),
        Here("read interfaces", _read, undo=READS),
    ),
    ends=_changed,
    fails=_failed,
)

REMOVE_FIXED_IP = Operation(
    name="remove-fixed-ip",
    notices=announce("", older="delete_ip"),
    request=RemoveFixedIp,
    waited_for=True,
    begins=_begin_removing,
    steps=(
        Here("look", _look_where_it_is, undo=READS),
        Here("remove address", _remove, undo=_put_back, undo_owed=True),
        Here("read interfaces", _read, undo=READS),
    ),
    ends=_changed,
    fails=_failed,
)
