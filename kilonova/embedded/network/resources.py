"""The resources of the network API: what each call does to the records, and what else it touches."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Protocol

import msgspec
import sqlalchemy as sa
from starlette.datastructures import QueryParams

from kilonova.domain.context import RequestContext
from kilonova.domain.errors import InvalidInput
from kilonova.embedded.network import (
    access,
    automatic_addresses,
    claimed_guarantees,
    networks,
    physical,
    ports,
    qos,
    schema,
    security,
    views,
)
from kilonova.embedded.network.bodies import GroupBody, NetworkBody, PortBody, RuleBody, SubnetBody
from kilonova.embedded.network.datapath import Effects
from kilonova.embedded.network.port_records import existing_port, ports_where
from kilonova.embedded.network.wiring import Wiring

View = dict[str, Any]


class Resource(Protocol):
    """One kind of object. All methods run inside a unit of work."""

    @property
    def singular(self) -> str: ...

    @property
    def plural(self) -> str: ...

    @property
    def body(self) -> type[msgspec.Struct]: ...

    @property
    def table(self) -> sa.Table: ...

    def find(self, conn: sa.Connection, caller: RequestContext, query: QueryParams) -> list[View]: ...

    def show(self, conn: sa.Connection, caller: RequestContext, id_: str) -> View: ...

    def create(self, conn: sa.Connection, caller: RequestContext, body: Any, now: float,
               effects: Effects) -> View: ...

    def update(self, conn: sa.Connection, caller: RequestContext, id_: str, body: Any, now: float,
               effects: Effects) -> View: ...

    def delete(self, conn: sa.Connection, caller: RequestContext, id_: str, effects: Effects) -> None: ...


def narrow(table: sa.Table, query: QueryParams, **columns: str) -> list[sa.ColumnElement[bool]]:
    """Conditions for the filters that the database can apply: (parameter, column) pairs besides `id`."""
    pairs = {"id": "id", **columns}
    return [table.c[column].in_(query.getlist(name)) for name, column in pairs.items() if name in query]


class Networks:
    singular, plural, body, table = "network", "networks", NetworkBody, schema.networks

    def find(self, conn: sa.Connection, caller: RequestContext, query: QueryParams) -> list[View]:
        """Spec: EMN-04."""
        table = schema.networks
        where = [access.visible_networks(caller), *narrow(table, query, name="name", project_id="project_id")]
        rows = conn.execute(sa.select(table).where(*where).order_by(table.c.created_at, table.c.id))
        return self._views(conn, caller, [schema.record(schema.Network, row) for row in rows])

    def show(self, conn: sa.Connection, caller: RequestContext, id_: str) -> View:
        return self._views(conn, caller, [access.network(conn, caller, id_)])[0]

    def create(self, conn: sa.Connection, caller: RequestContext, body: NetworkBody, now: float,
               effects: Effects) -> View:
        made = networks.create_network(conn, caller, body, now)
        qos.set_policy(conn, caller, made.id, body.qos_policy_id)
        physical.check_network(conn, made.id)
        return self._views(conn, caller, [made])[0]

    def update(self, conn: sa.Connection, caller: RequestContext, id_: str, body: NetworkBody, now: float,
               effects: Effects) -> View:
        changed = networks.update_network(conn, caller, id_, body, now)
        qos.set_policy(conn, caller, id_, body.qos_policy_id, bound=networks.serves_servers(conn, id_))
        physical.check_network(conn, id_)
        effects.networks.append(id_)
        return self._views(conn, caller, [changed])[0]

    def delete(self, conn: sa.Connection, caller: RequestContext, id_: str, effects: Effects) -> None:
        networks.delete_network(conn, caller, id_)
        qos.forget(conn, id_)
        effects.networks.append(id_)

    def _views(self, conn: sa.Connection, caller: RequestContext, items: list[schema.Network]) -> list[View]:
        table = schema.subnets
        held: dict[str, list[str]] = defaultdict(list)
        statement = sa.select(table.c.network_id, table.c.id).order_by(table.c.created_at, table.c.id)
        if len(items) == 1:
            statement = statement.where(table.c.network_id == items[0].id)
        for row in conn.execute(statement):
            held[row.network_id].append(row.id)
        privileged = access.privileged(caller)
        return [
            physical.network_view(conn, qos.of_network(conn, views.network(item, held[item.id], privileged)),
                                  privileged=privileged)
            for item in items
        ]


class Subnets:
    singular, plural, body, table = "subnet", "subnets", SubnetBody, schema.subnets

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring

    def find(self, conn: sa.Connection, caller: RequestContext, query: QueryParams) -> list[View]:
        table, nets = schema.subnets, schema.networks
        where = narrow(table, query, network_id="network_id", name="name", project_id="project_id")
        rows = conn.execute(
            sa.select(table).join(nets, nets.c.id == table.c.network_id)
            .where(access.visible_networks(caller), *where).order_by(table.c.created_at, table.c.id)
        )
        return [views.subnet(schema.record(schema.Subnet, row)) for row in rows]

    def show(self, conn: sa.Connection, caller: RequestContext, id_: str) -> View:
        return views.subnet(access.subnet(conn, caller, id_))

    def create(self, conn: sa.Connection, caller: RequestContext, body: SubnetBody, now: float,
               effects: Effects) -> View:
        subnet = networks.create_subnet(conn, caller, body, now)
        here = physical.of_network(conn, subnet.network_id) is None  # what is outside may be where the machine is, too
        if here and (reason := self._wiring.refuses(subnet.cidr)):
            raise InvalidInput(f"Invalid input for cidr: {subnet.cidr} {reason}.")
        effects.networks.append(subnet.network_id)
        if subnet.automatic:
            effects.ports += automatic_addresses.give(conn, subnet, now)
        return views.subnet(subnet)

    def update(self, conn: sa.Connection, caller: RequestContext, id_: str, body: SubnetBody, now: float,
               effects: Effects) -> View:
        subnet = networks.update_subnet(conn, caller, id_, body, now)
        effects.networks.append(subnet.network_id)
        return views.subnet(subnet)

    def delete(self, conn: sa.Connection, caller: RequestContext, id_: str, effects: Effects) -> None:
        subnet, lost = networks.delete_subnet(conn, caller, id_)
        effects.networks.append(subnet.network_id)
        effects.ports += lost


class Ports:
    singular, plural, body, table = "port", "ports", PortBody, schema.ports

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring

    def find(self, conn: sa.Connection, caller: RequestContext, query: QueryParams) -> list[View]:
        table, nets = schema.ports, schema.networks
        where = narrow(
            table, query, network_id="network_id", device_id="device_id", name="name", mac_address="mac",
            project_id="project_id", tenant_id="project_id", status="status",
        )
        if "fixed_ips" in query:
            where += self._narrow_addresses(query)
        if not access.privileged(caller):
            own = sa.select(nets.c.id).where(nets.c.project_id == caller.project_id)
            where.append(sa.or_(table.c.project_id == caller.project_id, table.c.network_id.in_(own)))
        return [_port(conn, caller, port) for port in ports_where(conn, *where)]

    @staticmethod
    def _narrow_addresses(query: QueryParams) -> list[sa.ColumnElement[bool]]:
        """Ports with one of the exact addresses asked for; the other kinds of filter follow later. Spec: EMN-25."""
        table = schema.addresses
        parts = [part for value in query.getlist("fixed_ips") for part in value.split(",")]
        exact = [part.removeprefix("ip_address=") for part in parts if part.startswith("ip_address=")]
        return [schema.ports.c.id.in_(sa.select(table.c.port_id).where(table.c.address.in_(exact)))] if exact else []

    def show(self, conn: sa.Connection, caller: RequestContext, id_: str) -> View:
        return _port(conn, caller, access.port(conn, caller, id_))

    def create(self, conn: sa.Connection, caller: RequestContext, body: PortBody, now: float,
               effects: Effects) -> View:
        port = ports.create_port(conn, caller, body, now, self._wiring.serves)
        qos.set_policy(conn, caller, port.id, body.qos_policy_id)
        physical.set_policy(conn, port, body.numa_affinity_policy)
        physical.check_port(conn, port.id, self._wiring.wires)
        effects.ports.append((None, port))
        return _port(conn, caller, port)

    def update(self, conn: sa.Connection, caller: RequestContext, id_: str, body: PortBody, now: float,
               effects: Effects) -> View:
        before, after = ports.update_port(conn, caller, id_, body, now, self._wiring.serves)
        changes_policy = qos.set_policy(conn, caller, id_, body.qos_policy_id)
        physical.set_policy(conn, after, body.numa_affinity_policy)
        physical.check_port(conn, id_, self._wiring.wires)
        if changes_policy and after.device_owner.startswith("compute:"):
            claimed_guarantees.follow(conn, after, now)
            after = existing_port(conn, id_)
        effects.ports.append((before, after))
        return _port(conn, caller, after)

    def delete(self, conn: sa.Connection, caller: RequestContext, id_: str, effects: Effects) -> None:
        deleted = ports.delete_port(conn, caller, id_)
        if deleted is not None:
            effects.ports.append((deleted, None))


def _port(conn: sa.Connection, caller: RequestContext, port: schema.Port) -> View:
    privileged = access.privileged(caller)
    view = qos.of_port(conn, port, views.port(port, privileged))
    return physical.port_view(conn, port, view, privileged=privileged)


class Groups:
    singular, plural, body, table = "security_group", "security_groups", GroupBody, schema.groups

    def find(self, conn: sa.Connection, caller: RequestContext, query: QueryParams) -> list[View]:
        """Spec: EMN-40."""
        table = schema.groups
        where = narrow(table, query, name="name", project_id="project_id", tenant_id="project_id")
        if not access.privileged(caller):
            where.append(table.c.project_id == caller.project_id)
        rows = conn.execute(sa.select(table).where(*where).order_by(table.c.created_at, table.c.id))
        found = [schema.record(schema.Group, row) for row in rows]
        rules = security.rules_of(conn, [group.id for group in found])
        return [views.group(group, rules[group.id]) for group in found]

    def show(self, conn: sa.Connection, caller: RequestContext, id_: str) -> View:
        return views.group(access.group(conn, caller, id_), security.rules_of(conn, [id_])[id_])

    def create(self, conn: sa.Connection, caller: RequestContext, body: GroupBody, now: float,
               effects: Effects) -> View:
        return self.show(conn, caller, security.create_group(conn, caller, body, now).id)

    def update(self, conn: sa.Connection, caller: RequestContext, id_: str, body: GroupBody, now: float,
               effects: Effects) -> View:
        return self.show(conn, caller, security.update_group(conn, caller, id_, body, now).id)

    def delete(self, conn: sa.Connection, caller: RequestContext, id_: str, effects: Effects) -> None:
        effects.groups += [id_, *security.delete_group(conn, caller, id_)]


class Rules:
    singular, plural, body, table = "security_group_rule", "security_group_rules", RuleBody, schema.rules

    def find(self, conn: sa.Connection, caller: RequestContext, query: QueryParams) -> list[View]:
        table = schema.rules
        where = narrow(
            table, query, security_group_id="group_id", project_id="project_id", tenant_id="project_id",
            direction="direction", remote_group_id="remote_group_id",
        )
        if not access.privileged(caller):
            where.append(table.c.project_id == caller.project_id)
        rows = conn.execute(sa.select(table).where(*where).order_by(table.c.created_at, table.c.id))
        return [views.rule(schema.record(schema.Rule, row)) for row in rows]

    def show(self, conn: sa.Connection, caller: RequestContext, id_: str) -> View:
        return views.rule(access.rule(conn, caller, id_))

    def create(self, conn: sa.Connection, caller: RequestContext, body: RuleBody, now: float,
               effects: Effects) -> View:
        rule = security.create_rule(conn, caller, body, now)
        effects.groups.append(rule.group_id)
        return views.rule(rule)

    def update(self, conn: sa.Connection, caller: RequestContext, id_: str, body: RuleBody, now: float,
               effects: Effects) -> View:
        raise InvalidInput("Security group rules cannot be changed: delete the rule and make another.")

    def delete(self, conn: sa.Connection, caller: RequestContext, id_: str, effects: Effects) -> None:
        effects.groups.append(security.delete_rule(conn, caller, id_).group_id)
