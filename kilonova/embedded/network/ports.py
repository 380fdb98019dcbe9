"""Ports: units of work that create, change, bind and delete them."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from msgspec import UNSET

from kilonova.db.prepared import Prepared
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import Forbidden, InvalidInput
from kilonova.embedded.network import access, addresses, automatic_addresses, qos, quotas, schema, security
from kilonova.embedded.network.addressing import AddressPair
from kilonova.embedded.network.bodies import FixedIpBody, PortBody, refuse_read_only, require_privilege, sent
from kilonova.embedded.network.errors import (
    AddressPairAndPortSecurityRequired,
    MacAddressInUse,
    PortBound,
    PortInUse,
    PortSecurityAndIPRequiredForSecurityGroups,
    PortSecurityPortHasSecurityGroup,
    SecurityGroupNotFound,
    ServicePortInUse,
)
from kilonova.embedded.network.networks import DHCP_OWNER, subnets_of
from kilonova.embedded.network.physical import VIF_TYPES, forget_policy
from kilonova.embedded.network.port_records import existing_port, find_port, ports_of_device

Serves = Callable[[str], bool]
"""Tells whether ports can be bound to a host."""
Change = tuple[schema.Port | None, schema.Port | None]
"""A port before and after."""

ACTIVE, DOWN = "ACTIVE", "DOWN"
UNBOUND, FAILED = "unbound", "binding_failed"
_SAME_NAME = ("name", "description", "admin_state_up", "device_id", "device_owner")
_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DNS_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")

_INSERT = Prepared(sa.insert(schema.ports).values({c.name: sa.bindparam(c.name) for c in schema.ports.columns}))
_LOCK = Prepared(sa.select(schema.ports.c.id).where(schema.ports.c.id == sa.bindparam("id")).with_for_update())
_DELETE = Prepared(sa.delete(schema.ports).where(schema.ports.c.id == sa.bindparam("port")))
_LET_GO = Prepared(
    sa.update(schema.floating_ips).where(schema.floating_ips.c.fixed_port_id == sa.bindparam("port"))
    .values({"fixed_port_id": sa.null(), "fixed_address": sa.null(), "router_id": sa.null()})
)
_LET_GO_OF_LOST = Prepared(
    sa.update(schema.floating_ips).where(
        schema.floating_ips.c.fixed_port_id == sa.bindparam("port"),
        schema.floating_ips.c.fixed_address.not_in(
            sa.select(schema.addresses.c.address).where(schema.addresses.c.port_id == sa.bindparam("port"))
        ),
    ).values({"fixed_port_id": sa.null(), "fixed_address": sa.null(), "router_id": sa.null()})
)
_UNBIND = Prepared(sa.delete(schema.bindings).where(schema.bindings.c.port_id == sa.bindparam("port")))
_members = schema.port_groups
_JOIN = Prepared(sa.insert(_members).values(port_id=sa.bindparam("port"), group_id=sa.bindparam("group")))
_LEAVE = Prepared(sa.delete(_members).where(_members.c.port_id == sa.bindparam("port")))
_GROUP = Prepared(
    sa.select(schema.groups.c.project_id).where(schema.groups.c.id == sa.bindparam("group"))
)


def create_port(conn: sa.Connection, caller: RequestContext, body: PortBody, now: float, serves: Serves,
                id_: str | None = None, *, owned: bool = False, device_tag: str | None = None) -> schema.Port:
    """Make a port. Spec: EMN-21, EMN-22, section 4.4.

    Args:
        owned: made by the compute service. device_tag: the tag the guest finds the interface by.
    """
    if body.network_id is UNSET:
        raise InvalidInput("Invalid input: network_id is required.")
    network = access.network(conn, caller, body.network_id)
    project_id = access.target_project(caller, body)
    require_privilege(body, access.privileged(caller), "host_id", "profile")
    quotas.check(conn, project_id, "port")
    values = sent(body)
    _check_owner(caller, values)
    port_id = id_ or str(uuid.uuid4())
    subnets = subnets_of(conn, network.id)
    mac = _chosen_mac(conn, network.id, port_id, values.get("mac_address"))
    chosen = addresses.choose(conn, network.id, subnets, values.get("fixed_ips"), port_id, mac)
    if values.get("fixed_ips"):
        chosen += addresses.automatic(conn, subnets, mac, chosen)
    secured = values.get("port_security_enabled", network.port_security)
    groups = values.get("security_groups")
    if groups is None:
        groups = [security.ensure_default_group(conn, project_id, now)] if secured and chosen else []
    pairs = tuple(values.get("allowed_address_pairs") or ())
    check_security(secured, groups, pairs, bool(chosen))
    _INSERT.run(
        conn, id=port_id, network_id=network.id, project_id=project_id, name=values.get("name", ""),
        description=values.get("description", ""), tags=tuple(values.get("tags", ())),
        admin_state_up=values.get("admin_state_up", True),
        mac=mac, device_id=values.get("device_id", ""), device_owner=values.get("device_owner", ""), status=DOWN,
        secured=secured, pairs=_checked_pairs(pairs), dhcp_options=tuple(values.get("extra_dhcp_opts") or ()),
        dns_name=_checked_dns_name(values.get("dns_name")), owned=owned, device_tag=device_tag, device_since=None,
        **binding(values.get("host_id"), values.get("profile"), values.get("vnic_type", "normal"), serves),
        **schema.stamp(now),
    )
    addresses.assign(conn, port_id, chosen)
    _set_groups(conn, caller, port_id, project_id, groups)
    return existing_port(conn, port_id)


def update_port(conn: sa.Connection, caller: RequestContext, id_: str, body: PortBody, now: float,
                serves: Serves) -> tuple[schema.Port, schema.Port]:
    """Change a port; returns it before and after. Spec: EMN-23, EMN-26."""
    before = access.port(conn, caller, id_)
    privileged = access.privileged(caller)
    refuse_read_only(body, "network_id", "project_id", "tenant_id", "tags")
    require_privilege(body, privileged, "host_id", "profile", "mac_address")
    values = sent(body)
    _check_owner(caller, values)
    device = values.get("device_id", before.device_id)
    if before.device_id and device not in ("", before.device_id) and not privileged:
        raise PortInUse(id_, before.device_id)
    changes: dict[str, Any] = {name: values[name] for name in _SAME_NAME if name in values}
    if device != before.device_id:
        changes["device_since"] = now
    if "dns_name" in values:
        changes["dns_name"] = _checked_dns_name(values["dns_name"])
    if "extra_dhcp_opts" in values:
        changes["dhcp_options"] = tuple(values["extra_dhcp_opts"] or ())
    changes |= _changed_hardware(conn, before, values)
    mac = changes.get("mac", before.mac)
    changes |= _changed_binding(conn, before, values, serves)
    if values.get("fixed_ips") is not None:
        subnets = subnets_of(conn, before.network_id)
        chosen = addresses.choose(conn, before.network_id, subnets, values["fixed_ips"], id_, mac)
        addresses.assign(conn, id_, chosen)
        _LET_GO_OF_LOST.run(conn, port=id_)
    elif mac != before.mac:
        automatic_addresses.follow_mac(conn, before, mac, subnets_of(conn, before.network_id))
    changes |= _changed_security(conn, caller, before, values)
    schema.touch(conn, schema.ports, id_, now, **changes)
    return before, existing_port(conn, id_)


def delete_port(conn: sa.Connection, caller: RequestContext, id_: str) -> schema.Port | None:
    """Delete a port by the API: not one that a router needs. Returns what it was; None for one of DHCP, which would
    be made anew at once, as clients that clean up before they delete the subnet expect."""
    port = access.port(conn, caller, id_)
    if port.device_owner == DHCP_OWNER:
        return None
    if port.device_owner.startswith("network:"):
        raise ServicePortInUse(id_, port.device_owner)
    remove(conn, id_)
    return port


def remove(conn: sa.Connection, id_: str) -> None:
    """Delete the rows of a port. Floating IPs let go of it. Spec: EMN-53."""
    addresses.assign(conn, id_, [])
    _LET_GO.run(conn, port=id_)
    qos.forget(conn, id_)
    forget_policy(conn, id_)
    for statement in (_LEAVE, _UNBIND, _DELETE):
        statement.run(conn, port=id_)


def claim(conn: sa.Connection, id_: str, instance_uuid: str, host: str, owner: str, device_tag: str | None,
          now: float, serves: Serves) -> tuple[schema.Port, schema.Port]:
    """Give a free port to an instance on a host; returns it before and after.

    Raises:
        PortNotFound; PortInUse: another device has it.
    """
    before = existing_port(conn, id_)
    placed = before.vif_type not in (UNBOUND, FAILED)
    same_place = before.device_id == instance_uuid and before.host == host and placed
    table = schema.ports
    values: dict[str, Any] = {"device_id": instance_uuid, "device_owner": owner, "device_tag": device_tag}
    if same_place and all(getattr(before, name) == value for name, value in values.items()):
        return before, before
    if before.device_id != instance_uuid:
        values["device_since"] = now
    if not same_place:
        values |= binding(host, before.profile, before.vnic_type, serves) | {"status": DOWN}
    done = conn.execute(
        sa.update(table).where(table.c.id == id_, table.c.device_id.in_(("", instance_uuid)))
        .values(**values, updated_at=now, revision=table.c.revision + 1)
    )
    if not done.rowcount:
        raise PortInUse(id_, before.device_id)
    return before, existing_port(conn, id_)


def release(conn: sa.Connection, id_: str, instance_uuid: str, now: float) -> schema.Port | None:
    """Take a port from the instance and keep it; None if it is not the instance's. Spec: EMN-23, EMN-24."""
    before = find_port(conn, id_)
    if before is None or before.device_id != instance_uuid:
        return None
    unbind(conn, id_, now, device_id="", device_owner="", device_tag=None, dns_name="")
    return before


def unbind(conn: sa.Connection, id_: str, now: float, **changes: Any) -> schema.Port:
    """Take a port from its host; returns it. changes: of further columns. Spec: EMN-22."""
    _UNBIND.run(conn, port=id_)
    schema.touch(conn, schema.ports, id_, now, host="", profile={}, vif_type=UNBOUND, status=DOWN, **changes)
    return existing_port(conn, id_)


def go_to_host(conn: sa.Connection, instance_uuid: str, host: str, owner: str, now: float, serves: Serves,
               changed: list[Change]) -> list[str]:
    """Bind all ports of an instance to a host; returns their networks. changed: gets each before and after."""
    pairs = [claim(conn, port.id, instance_uuid, host, owner, port.device_tag, now, serves)
             for port in ports_of_device(conn, instance_uuid)]
    changed.extend(pairs)
    return sorted({port.network_id for port, _ in pairs})


def leave_host(conn: sa.Connection, instance_uuid: str, host: str, now: float, changed: list[Change]) -> None:
    """Unbind the ports of an instance that are bound to this host."""
    changed.extend((port, unbind(conn, port.id, now)) for port in ports_of_device(conn, instance_uuid)
                   if port.host == host)


def add_address(conn: sa.Connection, id_: str, known: tuple[str, ...],
                now: float) -> tuple[schema.Port, schema.Port] | None:
    """One more address, unless the port has others than the known ones; returns it before and after."""
    before = existing_port(conn, id_)
    held = [item.address for item in before.addresses]
    if set(held) - set(known):
        return None
    more = addresses.one_more(conn, before.network_id, subnets_of(conn, before.network_id))
    return set_addresses(conn, id_, (*held, more.address), now)


def set_addresses(conn: sa.Connection, id_: str, wanted: tuple[str, ...],
                  now: float) -> tuple[schema.Port, schema.Port]:
    """Exactly these; returns the port before and after."""
    before = existing_port(conn, id_)
    asked = [FixedIpBody(ip_address=address) for address in wanted]
    subnets = subnets_of(conn, before.network_id)
    addresses.assign(conn, id_, addresses.choose(conn, before.network_id, subnets, asked, id_, before.mac))
    _LET_GO_OF_LOST.run(conn, port=id_)
    schema.touch(conn, schema.ports, id_, now)
    return before, existing_port(conn, id_)


def set_status(conn: sa.Connection, id_: str, status: str, now: float) -> tuple[schema.Port, schema.Port] | None:
    """Record that a bound port was plugged or unplugged; None if nothing changed. Spec: EMN-28."""
    _LOCK.first(conn, id=id_)  # else a port that is just being unbound would become active
    before = find_port(conn, id_)
    if before is None or before.status == status or (status == ACTIVE and not before.bound):
        return None
    schema.touch(conn, schema.ports, id_, now, status=status)
    return before, existing_port(conn, id_)


def binding(host: str | None, profile: dict[str, Any] | None, vnic_type: str, serves: Serves) -> dict[str, Any]:
    """The columns of a binding to that host, or of none. Spec: EMN-22."""
    if vnic_type not in VIF_TYPES:
        raise InvalidInput(f"Invalid input for binding:vnic_type: '{vnic_type}' is not offered here.")
    vif_type = UNBOUND if not host else VIF_TYPES[vnic_type] if serves(host) else FAILED
    return {"host": host or "", "profile": profile or {}, "vnic_type": vnic_type, "vif_type": vif_type}


def check_security(secured: bool, groups: list[str] | tuple[str, ...], pairs: tuple[AddressPair, ...],
                   addressed: bool) -> None:
    """Raises a conflict for groups or address pairs on a port that cannot have them. Spec: EMN-30."""
    if groups and not (secured and addressed):
        raise PortSecurityAndIPRequiredForSecurityGroups
    if pairs and not secured:
        raise AddressPairAndPortSecurityRequired


def _check_owner(caller: RequestContext, values: dict[str, Any]) -> None:
    if values.get("device_owner", "").startswith("network:") and not access.privileged(caller):
        raise Forbidden("device_owner network:* is disallowed by policy")


def _chosen_mac(conn: sa.Connection, network_id: str, port_id: str, wanted: str | None) -> str:
    if wanted is None:
        return addresses.free_mac(conn, network_id, port_id)
    mac = wanted.lower()
    if not _MAC.fullmatch(mac) or int(mac[:2], 16) & 1 or mac == "00:00:00:00:00:00":
        raise InvalidInput(f"Invalid input for mac_address: '{wanted}' is not a valid MAC address.")
    table = schema.ports
    if conn.execute(sa.select(table.c.id).where(table.c.network_id == network_id, table.c.mac == mac)).first():
        raise MacAddressInUse(mac, network_id)
    return mac


def _checked_pairs(pairs: tuple[AddressPair, ...]) -> tuple[AddressPair, ...]:
    for pair in pairs:
        text, _, length = pair.ip_address.partition("/")
        longest = addresses.parse_ip(text).max_prefixlen
        if length and not (length.isascii() and length.isdigit() and int(length) <= longest):
            raise InvalidInput(f"'{pair.ip_address}' is not a valid prefix.")
        if pair.mac_address is not None and not _MAC.fullmatch(pair.mac_address.lower()):
            raise InvalidInput(f"'{pair.mac_address}' is not a valid MAC address.")
    return pairs


def _checked_dns_name(name: str | None) -> str:
    if name and (len(name) > 255 or not _DNS_NAME.fullmatch(name.rstrip("."))):
        raise InvalidInput(f"Invalid input for dns_name: '{name}' is not a valid DNS name.")
    return name or ""


def _changed_hardware(conn: sa.Connection, before: schema.Port, values: dict[str, Any]) -> dict[str, Any]:
    mac = values.get("mac_address")
    if mac is None or mac.lower() == before.mac:
        return {}
    if before.vif_type != UNBOUND:
        raise PortBound(before.id, "mac_address")
    return {"mac": _chosen_mac(conn, before.network_id, before.id, mac)}


def _changed_binding(conn: sa.Connection, before: schema.Port, values: dict[str, Any],
                     serves: Serves) -> dict[str, Any]:
    if "vnic_type" in values and values["vnic_type"] != before.vnic_type and before.vif_type != UNBOUND:
        raise PortBound(before.id, "binding:vnic_type")
    if "host_id" not in values:
        changed = {"profile": values["profile"] or {}} if "profile" in values else {}
        if "vnic_type" in values:
            changed["vnic_type"] = binding(None, None, values["vnic_type"], serves)["vnic_type"]
        return changed
    host = values["host_id"] or ""
    changed = binding(host, values.get("profile", before.profile), values.get("vnic_type", before.vnic_type), serves)
    if host != before.host:
        changed["status"] = DOWN
        _UNBIND.run(conn, port=before.id)
    return changed


def _changed_security(conn: sa.Connection, caller: RequestContext, before: schema.Port,
                      values: dict[str, Any]) -> dict[str, Any]:
    after = existing_port(conn, before.id)
    secured = values.get("port_security_enabled", before.secured)
    groups = values["security_groups"] or [] if "security_groups" in values else list(before.group_ids)
    pairs = tuple(values["allowed_address_pairs"] or ()) if "allowed_address_pairs" in values else before.pairs
    if not secured and groups and "security_groups" not in values:
        raise PortSecurityPortHasSecurityGroup
    check_security(secured, groups, pairs, bool(after.addresses) or "security_groups" not in values)
    if "security_groups" in values:
        _set_groups(conn, caller, before.id, before.project_id, groups)
    return {"secured": secured, "pairs": _checked_pairs(pairs)}


def _set_groups(conn: sa.Connection, caller: RequestContext, port_id: str, project_id: str,
                groups: list[str]) -> None:
    wanted = sorted(set(groups))
    for group_id in wanted:
        owner = _GROUP.scalar(conn, group=group_id)
        if owner is None or not (owner == project_id or access.privileged(caller)):
            raise SecurityGroupNotFound(group_id)
    _LEAVE.run(conn, port=port_id)
    for group_id in wanted:
        _JOIN.run(conn, port=port_id, group=group_id)
