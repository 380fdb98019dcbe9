"""Tables of placement, and the number that tells readers what has changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

import sqlalchemy as sa

from kilonova.db.api_schema import api_metadata
from kilonova.db.columns import Json, Timestamp, Uuid
from kilonova.db.prepared import Prepared

BIG_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")

providers = sa.Table(
    "resource_providers",
    api_metadata,
    sa.Column("id", BIG_ID, primary_key=True),
    sa.Column("uuid", Uuid, nullable=False, unique=True),
    sa.Column("name", sa.String(200), nullable=False, unique=True),
    sa.Column("generation", sa.BigInteger, nullable=False, default=0),
    sa.Column("parent_id", sa.ForeignKey("resource_providers.id"), index=True),
    sa.Column("root_id", BIG_ID, index=True),
    sa.Column("changed", sa.BigInteger, nullable=False, index=True),
    sa.Column("updated_at", Timestamp, nullable=False, default=0.0),
)
"""root_id: id of the root of the tree, its own for a root. changed: see `change_number`."""

deleted_providers = sa.Table(
    "deleted_resource_providers",
    api_metadata,
    sa.Column("id", BIG_ID, primary_key=True, autoincrement=False),
    sa.Column("changed", sa.BigInteger, nullable=False, index=True),
)
"""What readers of changes must forget. One small row for each host that was ever removed."""

inventories = sa.Table(
    "inventories",
    api_metadata,
    sa.Column("provider_id", sa.ForeignKey("resource_providers.id"), primary_key=True),
    sa.Column("resource_class", sa.String(255), primary_key=True),
    sa.Column("total", sa.BigInteger, nullable=False),
    sa.Column("reserved", sa.BigInteger, nullable=False),
    sa.Column("min_unit", sa.BigInteger, nullable=False),
    sa.Column("max_unit", sa.BigInteger, nullable=False),
    sa.Column("step_size", sa.BigInteger, nullable=False),
    sa.Column("allocation_ratio", sa.Double, nullable=False),
    sa.Column("capacity", sa.BigInteger, nullable=False),
    sa.Column("used", sa.BigInteger, nullable=False, default=0),
    sa.CheckConstraint("used >= 0", name="inventory_used_not_negative"),
    sa.Index("ix_inventories_resource_class", "resource_class"),
)
"""capacity: (total - reserved) * allocation_ratio, rounded down, kept so that a claim compares integers.
used: the sum of the allocations of this provider and class, kept in the same transactions as they."""

provider_traits = sa.Table(
    "resource_provider_traits",
    api_metadata,
    sa.Column("provider_id", sa.ForeignKey("resource_providers.id"), primary_key=True),
    sa.Column("trait", sa.String(255), primary_key=True),
    sa.Index("ix_resource_provider_traits_trait", "trait"),
)

provider_aggregates = sa.Table(
    "resource_provider_aggregates",
    api_metadata,
    sa.Column("provider_id", sa.ForeignKey("resource_providers.id"), primary_key=True),
    sa.Column("aggregate", Uuid, primary_key=True),
    sa.Index("ix_resource_provider_aggregates_aggregate", "aggregate"),
)

consumers = sa.Table(
    "consumers",
    api_metadata,
    sa.Column("uuid", Uuid, primary_key=True),
    sa.Column("project_id", sa.String(255), nullable=False),
    sa.Column("user_id", sa.String(255), nullable=False),
    sa.Column("type", sa.String(255), nullable=False),
    sa.Column("generation", sa.BigInteger, nullable=False),
    sa.Column("instance", Uuid, nullable=False, index=True),
    sa.Index("ix_consumers_project_id", "project_id", "user_id"),
)
"""instance: the server this is about. It differs from uuid for a migration, which holds what the server has
on the host it is leaving."""

allocations = sa.Table(
    "allocations",
    api_metadata,
    sa.Column("consumer", sa.ForeignKey("consumers.uuid"), primary_key=True),
    sa.Column("provider_id", sa.ForeignKey("resource_providers.id"), primary_key=True),
    sa.Column("resource_class", sa.String(255), primary_key=True),
    sa.Column("used", sa.BigInteger, nullable=False),
    sa.Index("ix_allocations_provider_id", "provider_id", "resource_class"),
)

custom_traits = sa.Table("traits", api_metadata, sa.Column("name", sa.String(255), primary_key=True))
custom_classes = sa.Table("resource_classes", api_metadata, sa.Column("name", sa.String(255), primary_key=True))

hosts = sa.Table(
    "scheduler_hosts",
    api_metadata,
    sa.Column("provider_id", sa.ForeignKey("resource_providers.id"), primary_key=True),
    sa.Column("host", sa.String(255), nullable=False, index=True),
    sa.Column("node", sa.String(255), nullable=False),
    sa.Column("cell", sa.String(255), nullable=False),
    sa.Column("hypervisor_type", sa.String(64), nullable=False),
    sa.Column("hypervisor_version", sa.Integer, nullable=False),
    sa.Column("host_ip", sa.String(64), nullable=False),
    sa.Column("cpu_info", sa.Text, nullable=False),
    sa.Column("supported", Json(list[tuple[str, str, str]]), nullable=False),
    sa.Column("reported_traits", Json(list[str]), nullable=False),
    sa.Column("topology", sa.Text, nullable=False, default=""),
    sa.Column("num_io_ops", sa.Integer, nullable=False, default=0),
    sa.Column("failed_builds", sa.Integer, nullable=False, default=0),
    sa.Column("seen_at", Timestamp, nullable=False),
    sa.Column("seen_changed", sa.BigInteger, nullable=False, index=True),
)
"""What the scheduler knows of a compute host beside its inventory. topology: JSON of a `HostTopology`, "" for none; it
is kept as text, because few decisions read it. seen_at: the last sign of life; it changes all the time and is read by
itself, so it has a change number of its own."""

layouts = sa.Table(
    "layouts",
    api_metadata,
    sa.Column("consumer", Uuid, primary_key=True),
    sa.Column("provider_id", sa.ForeignKey("resource_providers.id"), primary_key=True, index=True),
    sa.Column("layout", sa.Text, nullable=False),
)
"""Which CPUs, NUMA cells and pages of a host belong to a consumer, as JSON of a `Layout`. Written and removed together
with its allocations; consumers that need none have no row."""

allocation_groups = sa.Table(
    "allocation_groups",
    api_metadata,
    sa.Column("consumer", Uuid, primary_key=True),
    sa.Column("suffix", sa.String(64), primary_key=True),
    sa.Column("provider_id", sa.ForeignKey("resource_providers.id"), nullable=False, index=True),
    sa.Column("resources", Json(dict[str, int]), nullable=False),
)
"""Which provider serves each group of what a consumer asked for, and what of its allocations the group is. Written and
removed together with them."""


@cache
def change_number(dialect: str) -> sa.ColumnElement[int]:
    """An SQL expression: the number that a row changed by this transaction is stamped with.

    Readers ask for rows stamped at or after the number that `changes_before` gave with their last reading.
    PostgreSQL: the transaction's own id, so claims on different hosts share no counter row. SQLite has one
    writer at a time: one more than the highest stamp.
    """
    if dialect == "postgresql":
        return sa.cast(sa.cast(sa.func.pg_current_xact_id(), sa.Text), sa.BigInteger)
    columns = (providers.c.changed, deleted_providers.c.changed, hosts.c.seen_changed)
    return sa.func.max(*map(highest, columns)) + 1


def changes_before(dialect: str) -> sa.ColumnElement[int]:
    """An SQL expression: the number below which this snapshot holds every change there will ever be.

    PostgreSQL: the oldest transaction still running. SQLite: as `change_number`.
    """
    if dialect == "postgresql":
        oldest = sa.func.pg_snapshot_xmin(sa.func.pg_current_snapshot())
        return sa.cast(sa.cast(oldest, sa.Text), sa.BigInteger)
    return change_number(dialect)


def highest(column: sa.Column[int]) -> sa.ScalarSelect[int]:
    """The highest stamp in a column; 0 without any."""
    return sa.select(sa.func.coalesce(sa.func.max(column), 0)).scalar_subquery()


def stamp(connection: sa.Connection, provider_ids: Sequence[int]) -> None:
    """Let readers of changes see the providers again, though nothing that has a generation changed."""
    _stamp(connection, provider_ids, generations=0)


def touch(connection: sa.Connection, provider_ids: Iterable[int]) -> None:
    """Raise the generation of the providers: something about them changed. Spec: API-742."""
    _stamp(connection, sorted(provider_ids), generations=1)


def _stamp(connection: sa.Connection, provider_ids: Sequence[int], generations: int) -> None:
    stamping = _stamping(connection.dialect.name)
    for provider_id in provider_ids:
        stamping.run(connection, provider=provider_id, generations=generations)


@cache
def _stamping(dialect: str) -> Prepared:
    return Prepared(
        providers.update()
        .where(providers.c.id == sa.bindparam("provider"))
        .values(
            generation=providers.c.generation + sa.bindparam("generations", type_=sa.BigInteger),
            changed=change_number(dialect),
        )
    )
