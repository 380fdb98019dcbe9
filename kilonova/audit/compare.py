"""What is wrong with a look: plain comparisons, one function for each part of the cloud."""

from __future__ import annotations

from collections.abc import Iterator

from kilonova.audit.accelerators import compare_accelerators
from kilonova.audit.differences import Difference, Kind
from kilonova.audit.look import Look
from kilonova.audit.port_devices import compare_port_devices
from kilonova.audit.server_volumes import compare_server_volumes
from kilonova.audit.volumes import compare_volumes
from kilonova.domain.errors import InvalidInput
from kilonova.domain.instance import Instance
from kilonova.domain.operation import OperationState
from kilonova.domain.states import GUEST_OFF, VmState
from kilonova.shapes.accelerators import profile_of
from kilonova.shapes.pci import with_devices
from kilonova.shapes.resources import resources_of

WITH_GUEST = frozenset({
    VmState.ACTIVE, VmState.PAUSED, VmState.SUSPENDED, VmState.STOPPED, VmState.RESCUED, VmState.RESIZED,
    VmState.SOFT_DELETED,
})
"""What the hypervisor must know, running or not."""

PLAIN = frozenset({VmState.ACTIVE, VmState.PAUSED, VmState.SUSPENDED, VmState.STOPPED})
"""What needs nothing on its host beside the disks of its guest."""

SETTLED = frozenset({VmState.ACTIVE, VmState.PAUSED, VmState.SUSPENDED, VmState.STOPPED, VmState.RESCUED})
"""Neither in the middle of a move nor left by a failure: what it holds can be told exactly."""


def compare(look: Look) -> list[Difference]:
    """All differences, of servers that nothing works on."""
    found: list[Difference] = []
    for part in (
        _guests, _disks, _beside, _guest_devices, _silent_hosts, _claims, _counters, _ports, compare_accelerators,
        compare_port_devices, _devices, _images, compare_volumes, compare_server_volumes,
        _rows, _records, _operations,
    ):
        found += part(look)
    lost = (Kind.OPERATION_STRANDED, Kind.OPERATION_LOST)
    return [one for one in found if one.subject not in look.busy or one.kind in lost]


def _guests(look: Look) -> Iterator[Difference]:
    for on in look.hosts:
        for guest in on.found.guests if on.found is not None else ():
            if not guest.managed:
                continue
            server = look.servers.get(guest.uuid)
            if server is None or server[1].host is None:
                yield Difference(
                    kind=Kind.GUEST_WITHOUT_SERVER, object=guest.uuid, subject=guest.uuid, host=on.host, cell=on.cell,
                    what=f"guest {guest.name} ({guest.uuid}) exists on {on.host}, but {_why_not(server)}",
                )
            elif server[1].host != on.host:
                yield Difference(
                    kind=Kind.GUEST_ON_OTHER_HOST, object=guest.uuid, subject=guest.uuid, host=on.host, cell=on.cell,
                    what=f"guest {guest.name} ({guest.uuid}) exists on {on.host}, "
                         f"but its server is recorded on {server[1].host}",
                )
            elif server[1].power_state is not guest.power_state and server[1].task_state is None:
                yield Difference(
                    kind=Kind.POWER_STATE, object=guest.uuid, subject=guest.uuid, host=on.host, cell=on.cell,
                    what=f"server {guest.uuid} is recorded as {server[1].power_state.name.lower()}, "
                         f"its guest is {guest.power_state.name.lower()}",
                )
        if on.found is not None:
            there = {guest.uuid for guest in on.found.guests}
            for instance in _on_host(look, on.host):
                if instance.vm_state in WITH_GUEST and instance.uuid not in there:
                    yield Difference(
                        kind=Kind.GUEST_MISSING, object=instance.uuid, subject=instance.uuid, host=on.host,
                        cell=on.cell,
                        what=f"server {instance.uuid} is {instance.vm_state.value} on {on.host}, "
                             "which has no such guest",
                    )


def _why_not(server: tuple[str, Instance] | None) -> str:
    return "there is no such server" if server is None else "its server is recorded on no host"


def _on_host(look: Look, host: str) -> Iterator[Instance]:
    return (instance for _, instance in look.servers.values() if instance.host == host)


def _disks(look: Look) -> Iterator[Difference]:
    for on in look.hosts:
        if on.found is None:
            continue
        guests = {guest.uuid for guest in on.found.guests}
        for uuid in on.found.disks:
            server = look.servers.get(uuid)
            if (server is None or server[1].host is None) and uuid not in guests:
                yield Difference(
                    kind=Kind.DISKS_WITHOUT_SERVER, object=uuid, subject=uuid, host=on.host, cell=on.cell,
                    what=f"there are disks of {uuid} on {on.host}, but {_why_not(server)}",
                )
            elif server is not None and server[1].host not in (None, on.host):
                yield Difference(
                    kind=Kind.DISKS_ON_OTHER_HOST, object=uuid, subject=uuid, host=on.host, cell=on.cell,
                    what=f"there are disks of {uuid} on {on.host}, but its server is recorded on {server[1].host}",
                )
        for instance in _on_host(look, on.host):
            if instance.vm_state in WITH_GUEST and instance.uuid not in on.found.disks:
                yield Difference(
                    kind=Kind.DISKS_MISSING, object=instance.uuid, subject=instance.uuid, host=on.host, cell=on.cell,
                    what=f"server {instance.uuid} is recorded on {on.host}, which has no disks of it",
                )


def _beside(look: Look) -> Iterator[Difference]:
    """What lies beside the disks of servers that need nothing of it."""
    for on in look.hosts:
        for beside in on.found.beside if on.found is not None else ():
            _, server = look.servers.get(beside.uuid, ("", None))
            if server is None or server.host != on.host or server.vm_state not in PLAIN:
                continue
            for kind, there, what in (
                (Kind.RESCUE_LEFT, beside.rescue, "the disk of a rescue, from which its guest may still run"),
                (Kind.RESIZE_LEFT, beside.kept, "the disks that it had before a resize"),
                (Kind.DISKS_PUT_ASIDE, beside.put_aside, "disks that a rebuild has left"),
                (Kind.SNAPSHOT_LEFT, beside.snapshots, "a copy of its disk that was to become an image"),
            ):
                if there:
                    yield Difference(
                        kind=kind, object=beside.uuid, subject=beside.uuid, host=on.host, cell=on.cell,
                        what=f"server {beside.uuid} is {server.vm_state.value}, and {on.host} has {what}",
                    )


def _guest_devices(look: Look) -> Iterator[Difference]:
    """Between a move and its end the guest has those of the server; a guest that is off may never have been started
    with them. Which devices are accelerators, their service tells."""
    for on in look.hosts:
        if on.found is None:
            continue
        off = {guest.uuid for guest in on.found.guests if guest.power_state in GUEST_OFF}
        for instance in _on_host(look, on.host):
            own = {device.address for device in look.own_devices.get(instance.uuid, ())}
            there = set(on.found.devices.get(instance.uuid, ()))
            about = {"subject": instance.uuid, "host": on.host, "cell": look.servers[instance.uuid][0]}
            for address in sorted(there - own) if not instance.accelerators else ():
                yield Difference(
                    kind=Kind.DEVICE_NOT_ITS_OWN, object=f"{instance.uuid}/{address}", **about,
                    what=f"the guest of server {instance.uuid} has PCI device {address} of {on.host}, "
                         "which is not the server's",
                )
            guests = {guest.uuid for guest in on.found.guests} - off
            for address in sorted(own - there) if instance.uuid in guests and instance.vm_state in SETTLED else ():
                yield Difference(
                    kind=Kind.DEVICE_MISSING, object=f"{instance.uuid}/{address}", **about,
                    what=f"PCI device {address} of {on.host} is kept for server {instance.uuid}, "
                         "and its guest does not have it",
                )


def _silent_hosts(look: Look) -> Iterator[Difference]:
    for on in look.hosts:
        if on.found is None:
            yield Difference(
                kind=Kind.HOST_SILENT, object=on.host, host=on.host, cell=on.cell,
                what=f"host {on.host} does not answer",
            )


def _claims(look: Look) -> Iterator[Difference]:
    by_server: dict[str, dict[str | None, dict[str, int]]] = {}
    for holding in look.holdings:
        if holding.instance not in look.servers and holding.instance not in look.requests:
            yield Difference(
                kind=Kind.ALLOCATION_WITHOUT_SERVER, object=holding.consumer, subject=holding.instance,
                host=holding.host or "",
                what=f"{_amounts(holding.resources)} of {holding.host or holding.provider} are held for "
                     f"{holding.instance}, but there is no such server",
            )
        elif holding.consumer != holding.instance:
            _, server = look.servers.get(holding.instance, ("", None))
            if server is not None and server.vm_state in SETTLED:
                yield Difference(
                    kind=Kind.ALLOCATION_LEFT, object=holding.consumer, subject=holding.instance,
                    host=holding.host or "",
                    what=f"{_amounts(holding.resources)} of {holding.host or holding.provider} are held by a move of "
                         f"{holding.instance}, which is {server.vm_state.value}",
                )
        else:
            total = by_server.setdefault(holding.instance, {}).setdefault(holding.host, {})
            total |= {name: total.get(name, 0) + amount for name, amount in holding.resources.items()}
    for uuid, (cell, instance) in look.servers.items():
        if instance.vm_state not in SETTLED or instance.host is None:
            continue
        wanted = _wanted(look, instance)
        held = _of_flavor(by_server.get(uuid, {}), wanted, instance)
        if instance.host not in held:
            yield Difference(
                kind=Kind.ALLOCATION_MISSING, object=uuid, subject=uuid, host=instance.host, cell=cell,
                what=f"server {uuid} is on {instance.host} and holds nothing of it",
            )
        elif len(held) > 1 or (wanted is not None and held[instance.host] != wanted):
            listed = "; ".join(f"{_amounts(amounts)} of {host}" for host, amounts in held.items())
            yield Difference(
                kind=Kind.ALLOCATION_DIFFERS, object=uuid, subject=uuid, host=instance.host, cell=cell,
                what=f"server {uuid} on {instance.host} holds {listed}, its flavor asks for {_amounts(wanted or {})}",
            )


def _wanted(look: Look, instance: Instance) -> dict[str, int] | None:
    """What a server takes of its host; None if its flavor makes no sense."""
    try:
        wanted = resources_of(instance.flavor, instance.image, volume_backed=instance.image is None)
    except InvalidInput:
        return None
    return with_devices(wanted, look.own_devices.get(instance.uuid, ()))


def _of_flavor(
    held: dict[str | None, dict[str, int]], wanted: dict[str, int] | None, instance: Instance
) -> dict[str | None, dict[str, int]]:
    """What a server holds beside its accelerators: of them the flavor says no more than the name of a profile."""
    if wanted is None or profile_of(instance.flavor) is None:
        return held
    known = {host: {name: n for name, n in amounts.items() if name in wanted} for host, amounts in held.items()}
    return {host: amounts for host, amounts in known.items() if amounts}


def _amounts(resources: dict[str, int]) -> str:
    return ", ".join(f"{amount} {name}" for name, amount in sorted(resources.items())) or "nothing"


def _counters(look: Look) -> Iterator[Difference]:
    for counter in look.counters:
        yield Difference(
            kind=Kind.USED_COUNTER, object=f"{counter.provider}/{counter.resource_class}",
            what=f"{counter.used} {counter.resource_class} of {counter.name} are counted as used, "
                 f"its allocations are {counter.allocated}",
        )


def _ports(look: Look) -> Iterator[Difference]:
    if look.ports is None:
        return
    known = {port.id: port for port in look.ports}
    for port in look.ports:
        server = look.servers.get(port.device_id)
        if server is None and port.device_id not in look.requests:
            yield Difference(
                kind=Kind.PORT_WITHOUT_SERVER, object=port.id, subject=port.device_id, host=port.binding_host,
                what=f"port {port.id} belongs to {port.device_id}, but there is no such server",
            )
        elif server is not None and server[1].host and port.binding_host not in ("", server[1].host):
            yield Difference(
                kind=Kind.PORT_ON_OTHER_HOST, object=port.id, subject=port.device_id, host=port.binding_host,
                cell=server[0],
                what=f"port {port.id} is bound to {port.binding_host}, its server is on {server[1].host}",
            )
    for uuid, (cell, instance) in look.servers.items():
        for vif in instance.network_info:
            if vif.id not in known:
                yield Difference(
                    kind=Kind.PORT_MISSING, object=vif.id, subject=uuid, host=instance.host or "", cell=cell,
                    what=f"server {uuid} has port {vif.id}, but the network service has not",
                )


def _devices(look: Look) -> Iterator[Difference]:
    here = look.devices
    if here is None:
        return
    for tap in sorted(here.taps - here.wanted_taps):
        yield Difference(kind=Kind.TAP_WITHOUT_PORT, object=tap, host=here.host,
                         what=f"device {tap} exists on {here.host}, but it is no port's")
    for bridge in sorted(here.bridges - here.wanted_bridges):
        yield Difference(kind=Kind.BRIDGE_WITHOUT_NETWORK, object=bridge, host=here.host,
                         what=f"device {bridge} exists on {here.host}, but it is no network's")
    for bridge, address in sorted(here.answering - here.addresses):
        yield Difference(kind=Kind.ROUTER_ADDRESS_MISSING, object=f"{bridge}/{address}", host=here.host,
                         what=f"bridge {bridge} on {here.host} lacks {address}, at which a router is to answer")
    for bridge, address in sorted(here.silent & here.addresses):
        yield Difference(kind=Kind.ROUTER_ADDRESS_LEFT, object=f"{bridge}/{address}", host=here.host,
                         what=f"bridge {bridge} on {here.host} has {address}, at which no router is to answer")


def _images(look: Look) -> Iterator[Difference]:
    if look.images is None:
        return
    for image in sorted(look.images.found - look.images.allowed):
        yield Difference(kind=Kind.IMAGE_DATA_WITHOUT_IMAGE, object=image,
                         what=f"there is data of image {image}, but no such image")
    for image in sorted(look.images.required - look.images.found):
        yield Difference(kind=Kind.IMAGE_DATA_MISSING, object=image, what=f"image {image} has lost its data")


def _rows(look: Look) -> Iterator[Difference]:
    for rows, kind, what in (
        (look.secrets, Kind.SECRET_WITHOUT_SERVER, "a secret"),
        (look.tokens, Kind.CONSOLE_TOKEN_WITHOUT_SERVER, "a token of a console"),
    ):
        for cell, server in sorted(rows):
            if server not in look.servers:
                yield Difference(kind=kind, object=server, subject=server, cell=cell,
                                 what=f"cell {cell} keeps {what} of {server}, but there is no such server")
    for cell, sink in sorted(look.undelivered):
        yield Difference(kind=Kind.NOTIFICATION_WITHOUT_SINK, object=f"{cell}/{sink}", cell=cell,
                         what=f"notifications for {sink} wait longer than they may, and no process delivers to it")


def _records(look: Look) -> Iterator[Difference]:
    for uuid in sorted(look.requests):
        yield Difference(
            kind=Kind.BUILD_REQUEST_FORGOTTEN, object=uuid, subject=uuid,
            what=f"server {uuid} waits for a host, but nothing places it",
        )
    for uuid in sorted(look.dangling):
        yield Difference(kind=Kind.MAPPING_WITHOUT_SERVER, object=uuid, subject=uuid,
                         what=f"a mapping of server {uuid} leads nowhere")
    for uuid in sorted(look.specs):
        yield Difference(kind=Kind.REQUEST_SPEC_WITHOUT_SERVER, object=uuid, subject=uuid,
                         what=f"what was asked for {uuid} is kept, but there is no such server")
    for uuid, (cell, instance) in look.servers.items():
        if uuid not in look.mapped:
            yield Difference(kind=Kind.SERVER_WITHOUT_MAPPING, object=uuid, subject=uuid, cell=cell,
                             what=f"server {uuid} is in cell {cell}, but no mapping leads to it")
        if instance.task_state is not None or instance.vm_state is VmState.BUILDING:
            state = instance.task_state.value if instance.task_state else instance.vm_state.value
            yield Difference(kind=Kind.TASK_WITHOUT_OPERATION, object=uuid, subject=uuid, cell=cell,
                             what=f"server {uuid} is {state}, but no operation works on it")


def _operations(look: Look) -> Iterator[Difference]:
    holders = {operation.subject for operation in look.operations if operation.holder}
    placing = {operation.subject for operation in look.operations if operation.journal == "api"}
    for operation in look.operations:
        about = {"object": operation.id, "subject": operation.subject, "cell": operation.journal}
        if operation.state is OperationState.STRANDED:
            yield Difference(kind=Kind.OPERATION_STRANDED, **about,
                             what=f"{operation.kind} of {operation.subject} is stranded")
        elif operation.state is OperationState.QUEUED and operation.subject not in holders:
            yield Difference(kind=Kind.OPERATION_LOST, **about,
                             what=f"{operation.kind} of {operation.subject} waits for an operation that has ended")
        elif operation.state is OperationState.HELD and operation.subject not in placing:
            yield Difference(kind=Kind.OPERATION_LOST, **about,
                             what=f"{operation.kind} of {operation.subject} waits to be released by nothing")
