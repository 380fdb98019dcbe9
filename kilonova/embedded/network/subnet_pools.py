"""Subnet pools: ranges from which subnets take theirs, none twice. Units of work. Spec: EMN-15, section 4.1."""

from __future__ import annotations

import uuid
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_network
from typing import Any

import sqlalchemy as sa

from kilonova.domain.context import RequestContext
from kilonova.domain.errors import Forbidden, InvalidInput
from kilonova.embedded.network import access, quotas, ranges, schema
from kilonova.embedded.network.addresses import Cidr
from kilonova.embedded.network.addressing import version_of
from kilonova.embedded.network.bodies import SubnetPoolBody, refuse_read_only, require_privilege, sent
from kilonova.embedded.network.errors import SubnetPoolInUse, SubnetPoolNotFound, SubnetPoolQuotaExceeded

USUAL_LEAST = {4: 8, 6: 64}
"""Shortest prefixes of subnets by version, unless the pool says otherwise."""
_PRIVILEGED = ("shared", "is_default")
_table = schema.subnet_pools
_LENGTHS = {"min_prefixlen": "min_length", "max_prefixlen": "max_length", "default_prefixlen": "default_length"}


def find(conn: sa.Connection, caller: RequestContext, *where: sa.ColumnElement[bool]) -> list[schema.SubnetPool]:
    """Those that the caller may use, oldest first."""
    if not access.privileged(caller):
        where = (*where, sa.or_(_table.c.project_id == caller.project_id, _table.c.shared))
    rows = conn.execute(sa.select(_table).where(*where).order_by(_table.c.created_at, _table.c.id))
    return [schema.record(schema.SubnetPool, row) for row in rows]


def get(conn: sa.Connection, caller: RequestContext, id_: str, *, change: bool = False) -> schema.SubnetPool:
    """Raises SubnetPoolNotFound; Forbidden: it belongs to another project."""
    found = find(conn, caller, _table.c.id == id_)
    if not found:
        raise SubnetPoolNotFound(id_)
    if change and not access.owns(caller, found[0]):
        raise Forbidden(f"Subnet pool {id_} belongs to another project.")
    return found[0]


def create(conn: sa.Connection, caller: RequestContext, body: SubnetPoolBody, now: float) -> schema.SubnetPool:
    require_privilege(body, access.privileged(caller), *_PRIVILEGED)
    project_id = access.target_project(caller, body)
    quotas.check(conn, project_id, "subnetpool")
    values = sent(body)
    _refuse_unknown_parts(values)
    prefixes = _checked_prefixes(values.get("prefixes") or [])
    version = version_of(prefixes[0])
    row: dict[str, Any] = {
        "id": str(uuid.uuid4()), "project_id": project_id, "name": values.get("name", ""),
        "description": values.get("description", ""), "tags": tuple(values.get("tags", ())), "prefixes": prefixes,
        "shared": values.get("shared", False), "is_default": values.get("is_default", False), **schema.stamp(now),
        **_lengths({"min_length": USUAL_LEAST[version], "max_length": ranges.LONGEST[version], "default_length": None},
                   values, version),
    }
    if row["is_default"]:
        _refuse_second_default(conn, row["id"], version)
    conn.execute(sa.insert(_table).values(row))
    return get(conn, caller, row["id"])


def update(conn: sa.Connection, caller: RequestContext, id_: str, body: SubnetPoolBody,
           now: float) -> schema.SubnetPool:
    """Prefixes may be added and none taken away."""
    before = get(conn, caller, id_, change=True)
    require_privilege(body, access.privileged(caller), *_PRIVILEGED)
    refuse_read_only(body, "project_id", "tenant_id", "tags", "shared")
    values = sent(body)
    _refuse_unknown_parts(values)
    changes: dict[str, Any] = {name: values[name] for name in ("name", "description", "is_default") if name in values}
    if "prefixes" in values:
        changes["prefixes"] = _checked_prefixes(values["prefixes"])
        added = [ip_network(prefix) for prefix in changes["prefixes"]]
        if not all(any(within(ip_network(old), new) for new in added) for old in before.prefixes):
            raise InvalidInput("Illegal subnetpool update: prefixes can be added, but none can be taken away.")
    held = {name: getattr(before, name) for name in _LENGTHS.values()}
    changes |= _lengths(held, values, before.version)
    if changes.get("is_default"):
        _refuse_second_default(conn, id_, before.version)
    schema.touch(conn, _table, id_, now, **changes)
    return get(conn, caller, id_)


def delete(conn: sa.Connection, caller: RequestContext, id_: str) -> None:
    """Raises SubnetPoolInUse: subnets have ranges of it."""
    get(conn, caller, id_, change=True)
    if _taken(conn, id_):
        raise SubnetPoolInUse(id_)
    conn.execute(sa.delete(_table).where(_table.c.id == id_))


def default_of(conn: sa.Connection, caller: RequestContext, version: int) -> schema.SubnetPool | None:
    """The pool of a version of IP for those who name none."""
    found = [pool for pool in find(conn, caller, _table.c.is_default) if pool.version == version]
    return found[0] if found else None


def range_for(conn: sa.Connection, caller: RequestContext, values: dict[str, Any]) -> tuple[str, str] | None:
    """Pool and range of a new subnet whose body asks for a pool; None if it names its range itself.

    Raises:
        SubnetPoolNotFound; InvalidInput: a range or length that the pool does not give; SubnetPoolQuotaExceeded:
        nothing of that size is left.
    """
    version = values.get("ip_version", 4)
    if values.get("use_default_subnetpool"):
        pool = default_of(conn, caller, version)
        if pool is None:
            raise InvalidInput(f"No default subnetpool found for IPv{version}.")
    elif values.get("subnetpool_id"):
        pool = get(conn, caller, values["subnetpool_id"])
    else:
        return None
    if pool.version != version:
        raise InvalidInput(f"Failed to allocate subnet: the subnet pool {pool.id} is of IPv{pool.version}.")
    taken = [ip_network(cidr) for cidr in _taken(conn, pool.id)]
    if values.get("cidr"):
        wanted = _range(values["cidr"])
        if not any(within(wanted, ip_network(prefix)) for prefix in pool.prefixes) or \
                any(wanted.overlaps(other) for other in taken):
            raise InvalidInput(f"Failed to allocate subnet: {wanted} is not free in the subnet pool.")
        return pool.id, str(wanted)
    length = values.get("prefixlen") or pool.default_length or pool.min_length
    if not pool.min_length <= length <= pool.max_length:
        raise InvalidInput(f"Unable to allocate subnet with prefix length {length}: {pool.min_length} to "
                           f"{pool.max_length} are possible.")
    free = _first_free(pool, length, taken)
    if free is None:
        raise SubnetPoolQuotaExceeded(pool.id)
    return pool.id, str(free)


def within(inner: Cidr, outer: Cidr) -> bool:
    """Whether a range is a part of another of the same version."""
    return inner.version == outer.version and inner[0] in outer and inner[-1] in outer


def _first_free(pool: schema.SubnetPool, length: int, taken: list[Cidr]) -> Cidr | None:
    """Goes from range to range, past each that is taken as a whole."""
    for prefix in map(ip_network, pool.prefixes):
        step = 1 << (prefix.max_prefixlen - length)
        number, last = int(prefix.network_address), int(prefix.broadcast_address)
        while number + step - 1 <= last:
            candidate = type(prefix)((number, length))
            blocking = [int(other.broadcast_address) for other in taken if other.overlaps(candidate)]
            if not blocking:
                return candidate
            number = (max(blocking) // step + 1) * step
    return None


def _taken(conn: sa.Connection, id_: str) -> list[str]:
    """The ranges that subnets have of the pool; its row is locked so that none is given twice."""
    conn.execute(sa.select(_table.c.id).where(_table.c.id == id_).with_for_update())
    return list(conn.execute(sa.select(schema.subnets.c.cidr).where(schema.subnets.c.pool_id == id_)).scalars())


def _refuse_second_default(conn: sa.Connection, id_: str, version: int) -> None:
    others = conn.execute(sa.select(_table).where(_table.c.is_default, _table.c.id != id_))
    if any(schema.record(schema.SubnetPool, row).version == version for row in others):
        raise InvalidInput("A default subnetpool for this IP family has already been set.")


def _refuse_unknown_parts(values: dict[str, Any]) -> None:
    for name in ("default_quota", "address_scope_id"):
        if values.get(name) is not None:
            raise InvalidInput(f"Invalid input for {name}: subnet pools have none here.")


def _range(text: str) -> Cidr:
    try:
        return ip_network(text, strict=False)
    except ValueError as error:
        raise InvalidInput(f"Invalid input: '{text}' is not a valid range.") from error


def _checked_prefixes(prefixes: list[str]) -> tuple[str, ...]:
    if not prefixes:
        raise InvalidInput("Invalid input for prefixes: one at least is needed.")
    found = [_range(prefix) for prefix in prefixes]
    v4 = [prefix for prefix in found if isinstance(prefix, IPv4Network)]
    v6 = [prefix for prefix in found if isinstance(prefix, IPv6Network)]
    if v4 and v6:
        raise InvalidInput("Invalid input for prefixes: all must be of one version of IP.")
    return tuple(str(prefix) for prefix in (collapse_addresses(v6) if v6 else collapse_addresses(v4)))


def _lengths(held: dict[str, Any], values: dict[str, Any], version: int) -> dict[str, Any]:
    """The least, greatest and usual prefix length. Raises InvalidInput if they contradict each other."""
    found = held | {column: values[name] for name, column in _LENGTHS.items() if values.get(name) is not None}
    if found["default_length"] is None:
        found["default_length"] = found["min_length"]
    shortest, longest = ranges.SHORTEST[version], ranges.LONGEST[version]
    if not shortest <= found["min_length"] <= found["default_length"] <= found["max_length"] <= longest:
        raise InvalidInput(
            f"Illegal prefix bounds: min_prefixlen {found['min_length']}, default_prefixlen {found['default_length']} "
            f"and max_prefixlen {found['max_length']} must rise and be {shortest} to {longest}."
        )
    return found
