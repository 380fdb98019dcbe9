"""What must hold in a simulated cloud in which nothing is left to do."""

from __future__ import annotations

from collections import Counter

import msgspec
import sqlalchemy as sa
from hearing import unheard
from invariants import is_resized, places, wrong_accelerators, wrong_places
from volume_invariants import mappings, wrong_volumes

from kilonova.db import build_requests, instances
from kilonova.db.journal import api_journal, cell_journal
from kilonova.db.migration_records import migrations
from kilonova.db.placement.tables import allocations, consumers, inventories
from kilonova.db.prepared import Prepared
from kilonova.domain.instance import Instance
from kilonova.domain.migration import ON_THE_WAY, UNDECIDED
from kilonova.domain.operation import OperationRecord, OperationState
from kilonova.domain.states import PowerState, VmState
from kilonova.shapes.port_devices import by_port
from simulation.listeners import LISTENERS
from simulation.world import World

ACTIVE = (OperationState.RUNNING, OperationState.UNDOING, OperationState.QUEUED, OperationState.HELD)


_ACTIVE = {
    journal: Prepared(
        sa.select(journal.operations.c.id)
        .where(sa.or_(*(journal.operations.c.state == state.value for state in ACTIVE)))
        .limit(sa.literal_column("1"))
    )
    for journal in (api_journal, cell_journal)
}


async def active(world: World) -> bool:
    for database, journal in ((world.databases.api, api_journal), (world.databases.cell, cell_journal)):
        if await database.read(_ACTIVE[journal].first):
            return True
    return False


LEGAL = {
    VmState.ACTIVE: {PowerState.RUNNING},
    VmState.STOPPED: {PowerState.SHUTDOWN, PowerState.NOSTATE},
    VmState.PAUSED: {PowerState.PAUSED},
    VmState.SUSPENDED: {PowerState.SUSPENDED},
    VmState.RESCUED: {PowerState.RUNNING},
    VmState.SOFT_DELETED: {PowerState.SHUTDOWN, PowerState.NOSTATE},
    VmState.RESIZED: {PowerState.RUNNING, PowerState.SHUTDOWN, PowerState.NOSTATE},
    VmState.SHELVED: {PowerState.SHUTDOWN, PowerState.NOSTATE},
}


_RECORDS = Prepared(sa.select(instances.instances.c.body))
_OPERATIONS = {journal: Prepared(sa.select(journal.operations.c.body)) for journal in (api_journal, cell_journal)}
_EVENTS = Prepared(sa.select(cell_journal.events))
_UNDECIDED = Prepared(sa.select(migrations.c.instance_uuid).where(
    sa.or_(*(migrations.c.status == status.value for status in (*ON_THE_WAY, *UNDECIDED)))
))
_HELD = Prepared(sa.select(consumers.c.uuid, consumers.c.instance))
_ALLOCATIONS = Prepared(sa.select(allocations.c.consumer, allocations.c.provider_id, allocations.c.resource_class,
                                  allocations.c.used))
_COUNTERS = Prepared(sa.select(inventories.c.provider_id, inventories.c.resource_class, inventories.c.used))
_WAITING = Prepared(sa.select(build_requests.build_requests.c.uuid))
_MAPPED = Prepared(sa.select(build_requests.instance_mappings.c.uuid, build_requests.instance_mappings.c.cell))


def violations(world: World) -> tuple[list[str], Counter[str]]:
    """What does not hold although nothing is left to do, and how many operations there are in each state."""
    with world.databases.cell.engine.connect() as conn:
        records: list[Instance] = _RECORDS.scalars(conn)
        operations: list[OperationRecord] = _OPERATIONS[cell_journal].scalars(conn)
        events = _EVENTS.all(conn)
        undecided = set(_UNDECIDED.scalars(conn))
        mapped = mappings(conn)
    told = {name: world.ears.heard[name] for name in LISTENERS} if world.databases.told else {}
    unheard_of = unheard(told, operations) if told else []
    with world.databases.api.engine.connect() as conn:
        operations += _OPERATIONS[api_journal].scalars(conn)
        held = {row.uuid: row.instance for row in _HELD.all(conn)}
        taken: Counter[tuple[int, str]] = Counter()
        holders = set()
        for row in _ALLOCATIONS.all(conn):
            holders.add(row.consumer)
            taken[row.provider_id, row.resource_class] += row.used
        claimed = {held[consumer] for consumer in holders}
        moving = {held[consumer] for consumer in holders if held[consumer] != consumer}
        used = _COUNTERS.all(conn)
        waiting = _WAITING.all(conn)
        placed = places(conn)
        cells = {row.uuid: row.cell for row in _MAPPED.all(conn)}
    found: list[str] = unheard_of
    for operation in operations:
        if operation.state in (*ACTIVE, OperationState.STRANDED):
            where = f"{operation.state.value} at {operation.cursor}: {operation.failure}"
            found.append(f"operation {operation.kind} {operation.id} is {where}")
        if b"secret" in msgspec.json.encode(operation):
            found.append(f"operation {operation.kind} {operation.id} keeps a password")
    alive = {r.uuid: r for r in records if r.deleted_at is None}
    for record in alive.values():
        found += _check_server(world, record, claimed, cells)
    resized = {uuid_ for uuid_, record in alive.items() if is_resized(record)}
    found += [f"server {uuid_} has two claims and no resize, or the other way round" for uuid_ in resized ^ moving]
    found += [f"server {uuid_} has a migration and no resize, or the other way round" for uuid_ in resized ^ undecided]
    for host, hypervisor in world.hypervisors.items():
        for uuid_, guest in hypervisor.guests.items():
            if uuid_ not in alive or alive[uuid_].host != host:
                found.append(f"guest {uuid_} on {host} is nobody's: {guest}")
            if guest.frozen:
                found.append(f"guest {uuid_} on {host} is frozen: {guest}")
            if guest.snapshots:
                found.append(f"guest {uuid_} on {host} keeps snapshots: {guest}")
    found += [f"image {image.id} is {image.status}" for image in world.images.kept() if image.status != "active"]
    found += [f"port {p.id} of {p.device_id} is nobody's" for p in world.net.ports.values()
              if p.device_id and p.device_id not in alive]
    owners = {(port.device_id, port.id) for port in world.net.ports.values()}
    found += [f"{one.instance} holds a device for port {port}" for one in placed for port in by_port(one.layout.devices)
              if (one.instance, port) not in owners]
    found += [f"allocation of {uuid_} is nobody's" for uuid_ in claimed if uuid_ not in alive]
    found += [f"used {row} but allocated {taken.get((row.provider_id, row.resource_class), 0)}" for row in used
              if row.used != taken.get((row.provider_id, row.resource_class), 0)]
    found += [f"build request {row.uuid} still waits" for row in waiting]
    found += [f"event kept: {row}" for row in events]
    guests = {host: hypervisor.guests for host, hypervisor in world.hypervisors.items()}
    found += wrong_accelerators(world.accelerators.arqs, alive.values(), guests)
    found += wrong_places(placed, alive.values(), guests)
    found += wrong_volumes(world.volumes.seen(), mapped, alive, guests)
    return found, Counter(operation.state.value for operation in operations)


def _check_server(world: World, record: Instance, claimed: set[str], cells: dict[str, str | None]) -> list[str]:
    found = []
    name = f"server {record.uuid} ({record.vm_state.value}, {record.task_state}, {record.power_state.name})"
    if record.task_state is not None:
        found.append(f"{name} has a task")
    if cells.get(record.uuid) is None:
        found.append(f"{name} has no cell")
    deletion = record.soft_deletion
    from_error = deletion is not None and deletion.vm_state is VmState.ERROR
    if record.vm_state is VmState.SHELVED_OFFLOADED:
        bound = [port.id for port in world.net.of(record.uuid) if port.binding_host]
        if record.host is not None or record.uuid in claimed or bound:
            found.append(f"{name} has host {record.host}, claim {record.uuid in claimed}, bound ports {bound}")
    elif record.vm_state not in (*LEGAL, VmState.ERROR):
        found.append(f"{name} is in a state it cannot end in")
    guest = world.hypervisors[record.host].guests.get(record.uuid) if record.host else None
    if from_error:  # nobody knows what its guest was, but it is off
        if guest is not None and guest.power_state is PowerState.RUNNING:
            found.append(f"{name}: its guest is {guest}")
    elif record.vm_state in LEGAL:
        if record.host is None or record.uuid not in claimed:
            found.append(f"{name} has host {record.host} and {'a' if record.uuid in claimed else 'no'} claim")
        if guest is None or not guest.defined or guest.power_state not in LEGAL[record.vm_state]:
            found.append(f"{name}: its guest is {guest}")
        elif guest.power_state is not record.power_state:
            found.append(f"{name}: its guest is {guest.power_state.name}")
        elif record.image_ref not in (guest.uses.image, guest.uses.base) or guest.prepared or guest.old:
            found.append(f"{name} is of image {record.image_ref}, its guest is {guest}")
        elif guest.power_state is PowerState.RUNNING and guest.rescued is not (record.vm_state is VmState.RESCUED):
            found.append(f"{name}: its guest is {guest}")
        interfaces = {vif.id for vif in record.network_info}
        if interfaces != {port.id for port in world.net.of(record.uuid)}:
            found.append(f"{name} lists {interfaces}, its ports are {world.net.of(record.uuid)}")
        if guest is not None and {vif.devname for vif in record.network_info} != set(guest.devnames):
            found.append(f"{name} lists {interfaces}, its guest has {guest.devnames}")
        shares = {one.tag for one in record.shares}
        if guest is not None and guest.power_state is PowerState.RUNNING and shares != {s.tag for s in guest.shares}:
            found.append(f"{name} has the shares {shares}, its guest {guest.shares}")
        if is_resized(record) and guest is not None and not guest.kept:
            found.append(f"{name}: its old disks are gone")
    if any(not one.described for one in record.shares):
        found.append(f"{name}: its shares come or go for ever: {record.shares}")
    if (record.vm_state not in LEGAL or from_error) and record.host is None and record.uuid in claimed:
        found.append(f"{name} has a claim but no host")
    return found
