"""Which CPUs, NUMA cells, pages and PCI devices of a host belong to which consumer: decided by claims, on a locked
provider."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from kilonova.db.placement.tables import hosts, layouts
from kilonova.db.prepared import Prepared
from kilonova.shapes.fitting import fit
from kilonova.shapes.host import DoesNotFit, HostTopology, Layout
from kilonova.shapes.pci import HeldDevice, are_given
from kilonova.shapes.shape import Shape

_decode_layout = msgspec.json.Decoder(Layout).decode
_decode_topology = msgspec.json.Decoder(HostTopology).decode


def read_topology(text: str) -> HostTopology | None:
    """What a column holds: "" for none."""
    return _decode_topology(text) if text else None


def read_layouts(texts: str | None) -> tuple[Layout, ...]:
    """Layouts that were read as lines of one string."""
    return tuple(map(_decode_layout, texts.splitlines())) if texts else ()


def held_place(connection: sa.Connection, consumer: str, provider_id: int, shape: Shape) -> Layout | None:
    """What a consumer has on this provider already, if that is what its shape needs."""
    text = connection.execute(
        sa.select(layouts.c.layout).where(layouts.c.consumer == consumer, layouts.c.provider_id == provider_id)
    ).scalar()
    layout = _decode_layout(text) if text is not None else None
    return layout if layout is not None and _fits(shape, layout) else None


def _fits(shape: Shape, layout: Layout) -> bool:
    if len(layout.places) != len(shape.cells) or not are_given(shape.pci_requests, layout.devices):
        return False
    return all(
        frozenset(place.cpus) == cell.cpus and place.memory_mib == cell.memory_mib
        and place.pins.keys() == cell.cpus & shape.cpu.dedicated
        for place, cell in zip(layout.places, shape.cells, strict=True)
    )


def find_place(connection: sa.Connection, consumer: str, provider_id: int, shape: Shape) -> Layout | None:
    """A place for a consumer on a locked provider, as if it had none; None if there is none."""
    topology = connection.execute(sa.select(hosts.c.topology).where(hosts.c.provider_id == provider_id)).scalar()
    others = connection.execute(
        sa.select(layouts.c.layout).where(layouts.c.provider_id == provider_id, layouts.c.consumer != consumer)
    ).scalars()
    try:
        return fit(shape, read_topology(topology or ""), map(_decode_layout, others))
    except DoesNotFit:
        return None


def take_place(connection: sa.Connection, consumer: str, provider_id: int, layout: Layout) -> None:
    """Give it to the consumer, instead of the one that it had."""
    forget_layout(connection, consumer, provider_id)
    text = msgspec.json.encode(layout).decode()
    connection.execute(layouts.insert().values(consumer=consumer, provider_id=provider_id, layout=text))


def layout_of(connection: sa.Connection, consumer: str, host: str | None = None) -> Layout | None:
    """The place of a consumer, on a host or wherever it is; None without one."""
    query = sa.select(layouts.c.layout).where(layouts.c.consumer == consumer)
    if host is not None:
        query = query.join(hosts, hosts.c.provider_id == layouts.c.provider_id).where(hosts.c.host == host)
    text = connection.execute(query.limit(1)).scalar()
    return _decode_layout(text) if text is not None else None


def layouts_on(connection: sa.Connection, host: str) -> dict[str, Layout]:
    """The places on a host, by consumer."""
    query = (
        sa.select(layouts.c.consumer, layouts.c.layout)
        .join(hosts, hosts.c.provider_id == layouts.c.provider_id).where(hosts.c.host == host)
    )
    return {row.consumer: _decode_layout(row.layout) for row in connection.execute(query)}


def devices_by_consumer(connection: sa.Connection) -> dict[str, tuple[HeldDevice, ...]]:
    """The PCI devices that belong to consumers; those without any are left out."""
    found = {row.consumer: _decode_layout(row.layout).devices for row in connection.execute(sa.select(layouts))}
    return {consumer: devices for consumer, devices in found.items() if devices}


def forget_layout(connection: sa.Connection, consumer: str, provider_id: int) -> None:
    _FORGET.run(connection, consumer=consumer, provider=provider_id)


def forget_layouts_elsewhere(connection: sa.Connection, consumer: str, provider_ids: Sequence[int]) -> None:
    """Drop what a consumer has of other providers than these."""
    connection.execute(
        layouts.delete().where(layouts.c.consumer == consumer, layouts.c.provider_id.not_in(provider_ids))
    )


def hand_over_layouts(connection: sa.Connection, source: str, target: str) -> None:
    connection.execute(layouts.update().where(layouts.c.consumer == source).values(consumer=target))


_FORGET = Prepared(
    layouts.delete().where(
        layouts.c.consumer == sa.bindparam("consumer"), layouts.c.provider_id == sa.bindparam("provider")
    )
)
