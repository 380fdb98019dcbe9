"""Compute hosts as placement and the scheduler know them: what agents report and operators decide."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from functools import cache
from typing import Any

import msgspec
import sqlalchemy as sa

from kilonova.db.placement.errors import ConcurrentUpdate
from kilonova.db.placement.guarantees import forget_guarantees, report_guarantees
from kilonova.db.placement.layouts import read_topology
from kilonova.db.placement.names import STANDARD_CLASSES, add_class
from kilonova.db.placement.providers import (
    Inventory,
    create_provider,
    delete_provider,
    find_provider,
    inventories_of,
    lock_provider,
    set_aggregates,
    set_inventories,
    set_traits,
    traits_of,
)
from kilonova.db.placement.tables import (
    change_number,
    hosts,
    provider_aggregates,
    provider_traits,
    providers,
    stamp,
)
from kilonova.db.prepared import Prepared
from kilonova.hypervisor.guest import HostInventory
from kilonova.shapes.pci import classes_of, physical_networks

STATUS_DISABLED = "COMPUTE_STATUS_DISABLED"
STATUS_ATTEMPTS = 4
"""How often a host's status is written when others change its provider meanwhile. Spec: FND-49."""

_NAMESPACE = uuid.UUID("8f5f1b66-5f6e-4c0e-9a55-3a5f9e0d7c11")


class HostSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept back on a host, and how far it is overcommitted when it is first seen.

    A ratio that an operator has changed in placement since then stays.
    """

    initial_cpu_allocation_ratio: float = 4.0
    initial_ram_allocation_ratio: float = 1.0
    initial_disk_allocation_ratio: float = 1.0
    reserved_host_cpus: int = 0
    reserved_host_memory_mb: int = 512
    reserved_host_disk_mb: int = 0


_KNOWN = Prepared(
    sa.select(hosts, providers.c.uuid)
    .join(providers, providers.c.id == hosts.c.provider_id)
    .where(hosts.c.host == sa.bindparam("host"), hosts.c.node == sa.bindparam("node"))
)


def provider_uuid(host: str, node: str) -> str:
    """The uuid a node's provider gets unless another is given: always the same for the same node."""
    return str(uuid.uuid5(_NAMESPACE, f"{host}\n{node}"))


def report(
    connection: sa.Connection,
    host: str,
    node: str,
    inventory: HostInventory,
    *,
    now: float,
    cell: str = "",
    provider: str | None = None,
    settings: HostSettings | None = None,
    kept_off: bool | None = None,
) -> str:
    """Record what a node of a host has, and that the host is alive. A repeated report writes only the latter.

    Inventories of other classes, child providers, traits that others have set, and allocations stay. Whether the host
    gets new servers is not for the host to say.

    Args:
        now: seconds since the epoch. cell: uuid of the host's cell.
        provider: uuid for the node's provider when it is made.
        kept_off: it gets no new servers, whatever `publish_status` has set; None: that stays, and holds for a new
            node, too.

    Returns:
        The uuid of the node's provider.

    Raises:
        DuplicateName: another host has reported a node of that name.

    Spec: EMP-04, EMP-05, FND-48.
    """
    offered_devices = inventory.topology.devices if inventory.topology is not None else ()
    own_traits = (set(inventory.traits) | physical_networks(offered_devices)) - {STATUS_DISABLED}
    facts = {
        "cell": cell,
        "hypervisor_type": inventory.hypervisor_type,
        "hypervisor_version": inventory.hypervisor_version,
        "host_ip": inventory.host_ip,
        "cpu_info": inventory.cpu_info,
        "supported": list(inventory.supported),
        "reported_traits": sorted(own_traits),
        "topology": msgspec.json.encode(inventory.topology).decode() if inventory.topology is not None else "",
    }
    known = _KNOWN.first(connection, host=host, node=node)
    if known is None:
        uuid_ = provider or provider_uuid(host, node)
        provider_id = create_provider(connection, uuid_, node, now=now)
        connection.execute(
            hosts.insert().values(
                provider_id=provider_id,
                host=host,
                node=node,
                seen_at=now,
                seen_changed=change_number(connection.dialect.name),
                num_io_ops=0,
                failed_builds=0,
                **facts,
            )
        )
        reported_before: set[str] = set()
        if kept_off is None and _is_kept_off(connection, host):
            own_traits.add(STATUS_DISABLED)
    else:
        uuid_ = known.uuid
        provider_id = lock_provider(connection, uuid_)
        reported_before = set(known.reported_traits)
        changed = {name: value for name, value in facts.items() if getattr(known, name) != value}
        _seeing(connection.dialect.name, hosts.c.provider_id).run(connection, which=provider_id, now=now)
        if changed:
            connection.execute(hosts.update().where(hosts.c.provider_id == provider_id).values(changed))
            stamp(connection, [provider_id])
    devices = classes_of(offered_devices)
    before = read_topology(known.topology) if known is not None else None
    devices = dict.fromkeys(classes_of(before.devices), 0) | devices if before is not None else devices
    offered = _inventories(connection, provider_id, inventory, settings or HostSettings(), devices)
    set_inventories(connection, uuid_, offered)
    traits = (traits_of(connection, provider_id) - reported_before) | own_traits
    if kept_off is not None:
        traits = traits | {STATUS_DISABLED} if kept_off else traits - {STATUS_DISABLED}
    set_traits(connection, uuid_, traits)
    report_guarantees(connection, uuid_, node, inventory, now=now)
    return uuid_


def _inventories(
    connection: sa.Connection, provider_id: int, inventory: HostInventory, settings: HostSettings,
    devices: Mapping[str, int],
) -> dict[str, Inventory]:
    """devices: how many there are, by resource class; 0 of a class of which there were some before."""
    present = inventories_of(connection, provider_id)
    for name in sorted(devices.keys() - present.keys() - STANDARD_CLASSES):
        add_class(connection, name)
    wanted = {
        name: Inventory(**{field: getattr(row, field) for field in Inventory.__struct_fields__})
        for name, row in present.items()
    }
    sizes = {
        "VCPU": (inventory.vcpus, settings.reserved_host_cpus, settings.initial_cpu_allocation_ratio),
        "PCPU": (inventory.pcpus, 0, 1.0),
        "MEMORY_MB": (
            inventory.memory_mib,
            settings.reserved_host_memory_mb,
            settings.initial_ram_allocation_ratio,
        ),
        "DISK_GB": (
            inventory.local_gib,
            -(-settings.reserved_host_disk_mb // 1024),
            settings.initial_disk_allocation_ratio,
        ),
        **{name: (count, 0, 1.0) for name, count in devices.items()},
    }
    for name, (total, reserved, ratio) in sizes.items():
        if total > 0:
            ratio = present[name].allocation_ratio if name in present else ratio
            wanted[name] = Inventory(total=total, reserved=min(reserved, total), max_unit=total, allocation_ratio=ratio)
        elif name in present and not present[name].used:
            del wanted[name]
    return wanted


def heartbeat(connection: sa.Connection, host: str, now: float) -> bool:
    """Record a sign of life. Returns False for a host that has never reported."""
    return _seeing(connection.dialect.name, hosts.c.host).run(connection, which=host, now=now) > 0


@cache
def _seeing(dialect: str, key: sa.Column[Any]) -> Prepared:
    """Records a sign of life of the nodes whose `key` is `which`."""
    return Prepared(
        hosts.update().where(key == sa.bindparam("which"))
        .values(seen_at=sa.bindparam("now"), seen_changed=change_number(dialect))
    )


def mark_down(connection: sa.Connection, host: str) -> None:
    """Take the host for dead until its next sign of life (a service forced down, or fenced)."""
    heartbeat(connection, host, 0.0)


def _is_kept_off(connection: sa.Connection, host: str) -> bool:
    """Whether new servers are kept off a node of the host."""
    marked = (
        sa.select(hosts.c.provider_id)
        .join(provider_traits, provider_traits.c.provider_id == hosts.c.provider_id)
        .where(hosts.c.host == host, provider_traits.c.trait == STATUS_DISABLED)
    )
    return connection.execute(marked.limit(1)).first() is not None


def publish_status(connection: sa.Connection, host: str, *, disabled: bool) -> None:
    """Set or remove the trait that keeps new servers off a host, on each of its nodes.

    Raises:
        ConcurrentUpdate: someone else kept changing the provider.

    Spec: FND-43 to FND-49.
    """
    uuids = (
        connection.execute(
            sa.select(providers.c.uuid)
            .join(hosts, hosts.c.provider_id == providers.c.id)
            .where(hosts.c.host == host)
            .order_by(providers.c.id)
        )
        .scalars()
        .all()
    )
    for uuid_ in uuids:
        for attempt in range(STATUS_ATTEMPTS):
            try:
                _publish_status_once(connection, uuid_, disabled)
            except ConcurrentUpdate:
                if attempt == STATUS_ATTEMPTS - 1:
                    raise
            else:
                break


def _publish_status_once(connection: sa.Connection, uuid_: str, disabled: bool) -> None:
    provider = find_provider(connection, uuid_)
    traits = set(
        connection.execute(
            sa.select(provider_traits.c.trait).where(provider_traits.c.provider_id == provider.id)
        ).scalars()
    )
    wanted = traits | {STATUS_DISABLED} if disabled else traits - {STATUS_DISABLED}
    if wanted != traits:
        set_traits(connection, uuid_, wanted, generation=provider.generation)


def join_aggregate(connection: sa.Connection, host: str, aggregate: str) -> None:
    """Put every node of the host into the aggregate (its uuid). Spec: API-227."""
    _change_aggregates(connection, host, add={aggregate}, remove=set())


def leave_aggregate(connection: sa.Connection, host: str, aggregate: str) -> None:
    """Take every node of the host out of the aggregate. Spec: API-228."""
    _change_aggregates(connection, host, add=set(), remove={aggregate})


def _change_aggregates(connection: sa.Connection, host: str, *, add: set[str], remove: set[str]) -> None:
    nodes = connection.execute(
        sa.select(providers.c.id, providers.c.uuid)
        .join(hosts, hosts.c.provider_id == providers.c.id)
        .where(hosts.c.host == host)
        .order_by(providers.c.id)
    ).all()
    for node in nodes:
        lock_provider(connection, node.uuid)
        present = set(
            connection.execute(
                sa.select(provider_aggregates.c.aggregate).where(provider_aggregates.c.provider_id == node.id)
            ).scalars()
        )
        set_aggregates(connection, node.uuid, (present | add) - remove)


def count_build(connection: sa.Connection, host: str, node: str, *, failed: bool) -> None:
    """Count a build that failed because of the host, or forget them after one that succeeded.

    Spec: BLD-45, BLD-47.
    """
    this = sa.and_(hosts.c.host == host, hosts.c.node == node)
    if failed:
        connection.execute(hosts.update().where(this).values(failed_builds=hosts.c.failed_builds + 1))
    elif not connection.execute(hosts.update().where(this, hosts.c.failed_builds > 0).values(failed_builds=0)).rowcount:
        return
    stamp(connection, _node_ids(connection, host))


def set_io_ops(connection: sa.Connection, host: str, node: str, count: int) -> None:
    """Record how many of the node's servers are being built, moved, copied or restored."""
    this = sa.and_(hosts.c.host == host, hosts.c.node == node, hosts.c.num_io_ops != count)
    if connection.execute(hosts.update().where(this).values(num_io_ops=count)).rowcount:
        stamp(connection, _node_ids(connection, host))


def forget_host(connection: sa.Connection, host: str, node: str | None = None) -> None:
    """Remove the providers of a host, or of one node of it.

    Raises:
        ProviderInUse: servers still hold allocations there; nothing is removed. Spec: RSU-12, API-243.
    """
    statement = (
        sa.select(providers.c.uuid, hosts.c.node)
        .join(hosts, hosts.c.provider_id == providers.c.id)
        .where(hosts.c.host == host)
        .order_by(providers.c.id)
    )
    if node is not None:
        statement = statement.where(hosts.c.node == node)
    for row in connection.execute(statement).all():
        forget_guarantees(connection, row.uuid, row.node)
        delete_provider(connection, row.uuid)


def _node_ids(connection: sa.Connection, host: str) -> list[int]:
    return list(connection.execute(sa.select(hosts.c.provider_id).where(hosts.c.host == host)).scalars())
