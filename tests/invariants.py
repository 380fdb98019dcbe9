"""What must hold in a cloud on the fake driver once nothing is left to do: nothing stuck, nothing leaked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
import sqlalchemy as sa
from accelerated import PCI_DEVICES
from cyborg import PROFILES
from volume_invariants import Mappings, VolumesSeen, embedded, mappings, wrong_volumes

from kilonova.db import build_requests, instances
from kilonova.db.journal import api_journal, cell_journal
from kilonova.db.migration_records import migrations
from kilonova.db.placement.tables import allocation_groups, allocations, consumers, inventories, layouts
from kilonova.domain.flavor import Flavor
from kilonova.domain.instance import BuildRequest, Instance
from kilonova.domain.migration import ON_THE_WAY, UNDECIDED
from kilonova.domain.operation import OperationRecord, OperationState
from kilonova.domain.states import PowerState, VmState
from kilonova.embedded.image import schema as image
from kilonova.embedded.network import schema as network
from kilonova.hypervisor.fake import FakeGuest
from kilonova.shapes.accelerators import profile_of, with_groups
from kilonova.shapes.host import Layout
from kilonova.shapes.pci import with_devices
from kilonova.shapes.port_devices import by_port
from kilonova.shapes.resources import is_volume_backed, port_of_group, resources_of
from kilonova.shapes.shape import shape_of

ACTIVE = (OperationState.RUNNING, OperationState.UNDOING, OperationState.QUEUED, OperationState.HELD)
"""States of operations that somebody will go on with."""

ENDED = {
    VmState.ACTIVE: (PowerState.RUNNING,),
    VmState.STOPPED: (PowerState.SHUTDOWN, PowerState.NOSTATE),
    VmState.PAUSED: (PowerState.PAUSED,),
    VmState.RESCUED: (PowerState.RUNNING,),
    VmState.SUSPENDED: (PowerState.SUSPENDED,),
    VmState.SOFT_DELETED: (PowerState.SHUTDOWN, PowerState.NOSTATE),
    VmState.RESIZED: (PowerState.RUNNING, PowerState.SHUTDOWN, PowerState.NOSTATE),
    VmState.SHELVED: (PowerState.SHUTDOWN, PowerState.NOSTATE),
}
"""States a server may be at rest in, and what its guest then is."""

Guests = Mapping[str, Mapping[str, FakeGuest]]
"""By host and instance."""

Arqs = Mapping[str, Mapping[str, Any]]
"""Accelerator requests by id, as their service tells them."""

ACCELERATORS = frozenset(device.address for device in PCI_DEVICES)
"""Addresses of devices that are handed out as accelerators."""


class Port(msgspec.Struct, frozen=True):
    """A port as its record stands; owned: made for its server."""

    id: str
    device_id: str
    host: str
    owned: bool


class PlacedOn(msgspec.Struct, frozen=True):
    """What a consumer has of a host. instance: None if the consumer holds nothing."""

    consumer: str
    instance: str | None
    provider: int
    layout: Layout


class Cloud(msgspec.Struct):
    """Everything that is recorded about a cloud and everything that exists."""

    servers: list[Instance]
    operations: list[OperationRecord]
    waiting: list[BuildRequest]
    cells: dict[str, str | None]
    specs: set[str]
    claims: dict[str, dict[str, int]]
    ports: list[Port]
    guests: Guests
    images: dict[str, str]
    events: int
    wrong_counters: list[str]
    moving: set[str]
    undecided: set[str]
    layouts: list[PlacedOn]
    accelerators: Arqs
    volumes: VolumesSeen
    mappings: Mappings
    served: set[tuple[str, str]]
    """Server and port of each claim for what a port asks."""

    @property
    def alive(self) -> dict[str, Instance]:
        """Servers that are not deleted."""
        return {server.uuid: server for server in self.servers if server.deleted_at is None}

    def active(self) -> list[OperationRecord]:
        """Operations that somebody will go on with."""
        return [operation for operation in self.operations if operation.state in ACTIVE]


def look(
    api: sa.Connection, cell: sa.Connection, guests: Guests, accelerators: Arqs, *, exports: set[str] | None = None
) -> Cloud:
    """Read both databases (those of the other services are in the API database).

    Args:
        accelerators: requests by id. exports: what storage pools serve, None if nobody looked.
    """
    claims: dict[str, dict[str, int]] = {}
    moving: set[str] = set()
    held = sa.select(consumers.c.uuid, consumers.c.instance, allocations.c.resource_class, allocations.c.used)
    for row in api.execute(held.join(consumers, consumers.c.uuid == allocations.c.consumer)):
        of_server = claims.setdefault(row.instance, {})
        of_server[row.resource_class] = of_server.get(row.resource_class, 0) + row.used
        if row.uuid != row.instance:
            moving.add(row.instance)
    served = _take_out_ports(api, claims)
    live = sa.select(migrations.c.instance_uuid).where(
        migrations.c.status.in_([status.value for status in (*ON_THE_WAY, *UNDECIDED)])
    )
    p = network.ports
    owned = sa.select(p.c.id, p.c.device_id, p.c.host, p.c.owned).where(
        p.c.device_owner.startswith("compute:", autoescape=True)
    )
    return Cloud(
        servers=list(cell.execute(sa.select(instances.instances.c.body)).scalars()),
        operations=[
            *cell_journal.select(cell, limit=10**6), *api_journal.select(api, limit=10**6),
        ],
        waiting=list(api.execute(sa.select(build_requests.build_requests.c.body)).scalars()),
        cells={row.uuid: row.cell for row in api.execute(sa.select(build_requests.instance_mappings))},
        specs=set(api.execute(sa.select(build_requests.request_specs.c.uuid)).scalars()),
        claims=claims,
        moving=moving,
        layouts=places(api),
        served=served,
        undecided=set(cell.execute(live).scalars()),
        ports=[Port(*row) for row in api.execute(owned)],
        guests=guests,
        images={row.id: row.status.value for row in api.execute(sa.select(image.images.c.id, image.images.c.status))},
        events=len(cell.execute(sa.select(cell_journal.events.c.id)).all()),
        wrong_counters=list(_wrong_counters(api)),
        accelerators=accelerators,
        volumes=embedded(api, exports),
        mappings=mappings(cell),
    )


def _take_out_ports(api: sa.Connection, claims: dict[str, dict[str, int]]) -> set[tuple[str, str]]:
    """Leave what flavors ask for in the claims; what ports ask for is returned, by server and port."""
    served: set[tuple[str, str]] = set()
    groups = sa.select(allocation_groups.c.suffix, allocation_groups.c.resources, consumers.c.instance)
    for row in api.execute(groups.join(consumers, consumers.c.uuid == allocation_groups.c.consumer)):
        port_id = port_of_group(row.suffix)
        if port_id is not None:
            served.add((row.instance, port_id))
            for name, amount in row.resources.items():
                claims[row.instance][name] -= amount
                if not claims[row.instance][name]:
                    del claims[row.instance][name]
    return served


def places(api: sa.Connection) -> list[PlacedOn]:
    query = (
        sa.select(layouts.c.consumer, consumers.c.instance, layouts.c.provider_id, layouts.c.layout)
        .outerjoin(consumers, consumers.c.uuid == layouts.c.consumer)
    )
    return [
        PlacedOn(row.consumer, row.instance, row.provider_id, msgspec.json.decode(row.layout, type=Layout))
        for row in api.execute(query)
    ]


def _wrong_counters(api: sa.Connection) -> Iterator[str]:
    key = (allocations.c.provider_id, allocations.c.resource_class)
    sums = sa.select(*key, sa.func.sum(allocations.c.used).label("total")).group_by(*key)
    taken = {(row.provider_id, row.resource_class): row.total for row in api.execute(sums)}
    for row in api.execute(sa.select(inventories.c.provider_id, inventories.c.resource_class, inventories.c.used)):
        held = taken.get((row.provider_id, row.resource_class), 0)
        if row.used != held:
            yield f"provider {row.provider_id}: {row.used} {row.resource_class} counted as used, {held} allocated"


def violations(cloud: Cloud, *, secret: bytes = b"s3cret-pass") -> list[str]:
    """Everything that is wrong. secret: what may not be left in any journal."""
    alive = cloud.alive
    rejected = {r.instance.uuid for r in cloud.waiting if r.instance.vm_state is VmState.ERROR}
    found = list(cloud.wrong_counters)
    for operation in cloud.operations:
        name = f"operation {operation.kind} {operation.id}"
        if operation.state in (*ACTIVE, OperationState.STRANDED):
            found.append(f"{name} is {operation.state.value} at step {operation.cursor}: {operation.failure}")
        if secret in msgspec.json.encode(operation):
            found.append(f"{name} keeps a password")
    for server in alive.values():
        found += _server(cloud, server)
    for host, guests in cloud.guests.items():
        for uuid, guest in guests.items():
            if uuid not in alive or alive[uuid].host != host:
                found.append(f"guest {uuid} on {host} is nobody's: {guest}")
            if guest.snapshots:
                found.append(f"guest {uuid} on {host} keeps snapshots: {guest}")
    found += [f"image {id_} is {status}" for id_, status in cloud.images.items() if status != "active"]
    for port in cloud.ports:
        owner = alive.get(port.device_id)
        known = owner is not None and (owner.host is not None or port.id in {vif.id for vif in owner.network_info})
        if owner is None or not known:  # while it is on a host, its guest may hold what the record has lost
            found.append(f"port {port.id} of {port.device_id} is nobody's")
        elif (owner.host or "") != port.host:
            found.append(f"port {port.id} of {port.device_id} is bound to {port.host}, its server is on {owner.host}")
    owners = {(port.device_id, port.id) for port in cloud.ports}
    found += [f"{uuid} holds something for port {port}" for uuid, port in cloud.served - owners]
    devices = {(one.instance, port) for one in cloud.layouts for port in by_port(one.layout.devices)}
    found += [f"{uuid} holds a device for port {port}" for uuid, port in devices - owners]
    found += [f"allocation of {uuid} is nobody's" for uuid in cloud.claims if uuid not in alive]
    found += [f"build request {r.instance.uuid} still waits" for r in cloud.waiting
              if r.instance.uuid not in rejected]
    found += [f"request spec {uuid} is nobody's" for uuid in cloud.specs if uuid not in {*alive, *rejected}]
    resized = {uuid for uuid, server in alive.items() if is_resized(server)}
    found += [f"server {uuid} has two claims and no resize, or the other way round" for uuid in resized ^ cloud.moving]
    found += [f"server {uuid} has a migration and no resize, or the other way round"
              for uuid in resized ^ cloud.undecided]
    found += wrong_accelerators(cloud.accelerators, alive.values(), cloud.guests)
    found += wrong_places(cloud.layouts, alive.values(), cloud.guests)
    found += wrong_volumes(cloud.volumes, cloud.mappings, alive, cloud.guests)
    if cloud.events:
        found.append(f"{cloud.events} events are kept though nobody waits for one")
    return found


def wrong_accelerators(arqs: Arqs, servers: Iterable[Instance], guests: Guests) -> Iterator[str]:
    """A request is listed by the server that it is bound to, which has what its flavor asks for; its guest that runs
    has the devices. One that is bound to nothing holds nothing, and is left to an audit."""
    known = {server.uuid: server for server in servers}
    for id_, arq in arqs.items():
        owner = known.get(arq["instance_uuid"] or "")
        if arq["instance_uuid"] and (owner is None or id_ not in owner.accelerators):
            yield f"accelerator request {id_} of {arq['instance_uuid']} is nobody's"
    for server in known.values():
        own = [arqs[id_] for id_ in server.accelerators if id_ in arqs]
        if len(own) != len(server.accelerators) or any(arq["instance_uuid"] != server.uuid for arq in own):
            yield f"server {server.uuid} lists the accelerator requests {server.accelerators}, which are not its own"
        profile = profile_of(server.flavor)
        if profile is None or server.vm_state not in ENDED:
            continue
        if len(own) != len(PROFILES[profile]) or any(arq["state"] != "Bound" for arq in own):
            yield f"server {server.uuid} has the accelerator requests {own}"
        guest = guests.get(server.host or "", {}).get(server.uuid)
        running = guest is not None and guest.power_state is PowerState.RUNNING
        if guest is not None and running and len(_addresses(guest) & ACCELERATORS) != len(own):
            yield f"server {server.uuid} has {len(own)} accelerators, its guest {guest.host_devices}"


def held_for(flavor: Flavor, *, volume_backed: bool = False) -> dict[str, int]:
    """What a server of a flavor holds of its host."""
    profile = profile_of(flavor)
    asked = flavor if profile is None else with_groups(flavor, PROFILES[profile])
    return resources_of(asked, volume_backed=volume_backed)


def wrong_places(placed: list[PlacedOn], servers: Iterable[Instance], guests: Guests) -> Iterator[str]:
    """No CPU and no device of a host belongs to two, every place has a claim, and a guest has what its claim says."""
    for number, one in enumerate(placed):
        if one.instance is None:
            yield f"place of {one.consumer} has no claim"
        for other in placed[:number]:
            if other.provider == one.provider and other.layout.taken() & one.layout.taken():
                yield f"{one.consumer} and {other.consumer} have the same CPUs"
            if other.provider == one.provider and _devices(other.layout) & _devices(one.layout):
                yield f"{one.consumer} and {other.consumer} have the same devices"
    held = {one.consumer: one.layout for one in placed}
    for server in servers:
        if server.vm_state not in ENDED:
            continue
        place, needed = held.get(server.uuid), False
        if server.host is not None:  # one that is shelved away is nowhere
            needed = shape_of(server.flavor, server.image).needs_place or any(
                vif.is_device for vif in server.network_info
            )
        if (place is not None) != needed:
            yield f"server {server.uuid} needs {'a' if needed else 'no'} place and has {place}"
        own = {port: one.address for port, one in by_port(place.devices if place is not None else ()).items()}
        listed = {vif.id: vif.address for vif in server.network_info if vif.is_device and server.host is not None}
        if own != listed:
            yield f"server {server.uuid} holds devices of ports {own}, its record has {listed}"
        guest = guests.get(server.host or "", {}).get(server.uuid)
        if guest is None or guest.power_state is not PowerState.RUNNING:
            continue
        if _without_devices(guest.layout) != _without_devices(place):
            yield f"server {server.uuid} has place {place}, its guest runs on {guest.layout}"
        if _addresses(guest) - ACCELERATORS != (_devices(place) if place is not None else set()):
            yield f"server {server.uuid} has place {place}, its guest has {guest.host_devices}"


def _without_devices(place: Layout | None) -> Layout | None:
    """Devices of ports come and go while the guest is there."""
    return msgspec.structs.replace(place, devices=()) if place is not None and place.places else None


def _addresses(guest: FakeGuest) -> set[str]:
    return {device.address for device in guest.host_devices}


def _devices(layout: Layout) -> set[str]:
    return {device.address for device in layout.devices}


def is_resized(server: Instance) -> bool:
    """Whether it waits for its user's decision, or will again once it is restored."""
    deletion = server.soft_deletion
    return (deletion.vm_state if deletion is not None else server.vm_state) is VmState.RESIZED


def _server(cloud: Cloud, server: Instance) -> Iterator[str]:
    name = f"server {server.uuid} ({server.vm_state.value}, {server.task_state}, {server.power_state.name})"
    if server.task_state is not None:
        yield f"{name} has a task"
    if cloud.cells.get(server.uuid) is None:
        yield f"{name} has no cell"
    if server.uuid not in cloud.specs:
        yield f"{name} has no request spec"
    if server.vm_state is VmState.SHELVED_OFFLOADED:
        if server.host is not None or server.uuid in cloud.claims:
            yield f"{name} has host {server.host} and {'a' if server.uuid in cloud.claims else 'no'} claim"
    elif server.vm_state not in (*ENDED, VmState.ERROR):
        yield f"{name} is in a state it cannot end in"
    known = {port.id for port in cloud.ports if port.device_id == server.uuid}
    for vif in server.network_info:
        if vif.id not in known:
            yield f"{name} lists an interface {vif.id} that is not its port"
    guest = cloud.guests.get(server.host, {}).get(server.uuid) if server.host else None
    # A step that failed after its effect may leave the guest as it is not to be; a report corrects that later.
    failed = any(o.subject == server.uuid and o.state is OperationState.FAILED for o in cloud.operations)
    if server.vm_state in ENDED:
        if server.host is None or server.uuid not in cloud.claims:
            yield f"{name} has host {server.host} and {'a' if server.uuid in cloud.claims else 'no'} claim"
        if guest is None or not guest.defined or (not failed and guest.power_state not in ENDED[server.vm_state]):
            yield f"{name}: its guest is {guest}"
        elif bool(guest.kept) != is_resized(server) and not failed:
            yield f"{name}: its guest keeps {guest.kept}"
        elif not is_resized(server) and cloud.claims.get(server.uuid) != _resources(cloud, server):
            yield f"{name} claims {cloud.claims.get(server.uuid)}"
        elif guest.power_state is not server.power_state:
            yield f"{name}: its guest is {guest.power_state.name}"
        elif _is_foreign(guest, server) or guest.prepared or guest.old:
            yield f"{name} is of image {server.image_ref}, its guest is {guest}"
        elif not failed and (guest.rescue is not None, _from_rescue_disk(guest)) != (_is_rescued(server),) * 2:
            yield f"{name}: its guest is {guest}"
        elif guest.frozen:
            yield f"{name}: its guest is frozen"
        elif set(guest.devnames) != {vif.devname for vif in server.network_info}:
            yield f"{name}: its guest has the interfaces {guest.devnames}"
    elif server.host is None and server.uuid in cloud.claims:
        yield f"{name} has a claim but no host"


def _resources(cloud: Cloud, server: Instance) -> dict[str, int]:
    held = [device for one in cloud.layouts if one.consumer == server.uuid for device in one.layout.devices]
    asked = held_for(server.flavor, volume_backed=is_volume_backed(server.block_devices))
    return with_devices(asked, held)


def _is_foreign(guest: FakeGuest, server: Instance) -> bool:
    """Whether its disk was made of neither the server's image nor an image that was made of the server."""
    return server.image is not None and server.image.id not in (guest.uses.image, guest.uses.base)


def _is_rescued(server: Instance) -> bool:
    return server.vm_state is VmState.RESCUED


def _from_rescue_disk(guest: FakeGuest) -> bool:
    return guest.rescued and guest.power_state is PowerState.RUNNING
