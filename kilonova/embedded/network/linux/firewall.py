"""All filtering of one installation, as nftables rules made from plans.

The bridge family sees the taps but has no connection tracking; the ip and ip6 families track connections (bridged
packets pass their hooks too, see `bridges`) but see only bridges. So they mark each packet with its network and with
whether it answers a connection, and the bridge family, which sees that mark, decides:

    tap -> spoof -> [ip: zone, track, mark] -> egress -> (bridge or route) -> ingress -> tap

Only packets in the original direction are judged by the rules of security groups, each of them every time, so
removing a rule cuts running connections too. What comes through a bridge of this installation from or to a tap
that no plan describes is dropped. What a network shares with the world outside comes and goes by its uplink, which
stands beside the taps. IPv6 is for the ports of networks that have subnets of it, and the ip6 family is
there if there is one.

Spec: EMN-14, EMN-26, EMN-46 to EMN-49.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from ipaddress import ip_network

import msgspec

from kilonova.embedded.network.addressing import version_of
from kilonova.embedded.network.linux import port_rules, routing, uplinks
from kilonova.embedded.network.linux.families import FAMILIES, V4, V6, Family
from kilonova.embedded.network.linux.names import HASH_MASK, REPLY, Names
from kilonova.embedded.network.linux.port_rules import braces, named
from kilonova.embedded.network.wiring import GroupPlan, NetworkPlan, PortPlan, RouterPlan, RulePlan, tap_name

Key = tuple[str, str]
"""(family, name)"""

_PORTS = {6, 17, 33, 132, 136}
_ICMP = {1, 58}


class Ruleset(msgspec.Struct, frozen=True):
    """Chains with their rules, and sets and maps with their elements, by family and name.

    Args:
        hooks: of the chains that packets enter by themselves. types: of sets and maps, with the keyword.
    """

    hooks: dict[Key, str]
    types: dict[Key, str]
    chains: dict[Key, tuple[str, ...]]
    elements: dict[Key, frozenset[str]]

    @property
    def families(self) -> list[str]:
        """Those that have chains, each of which needs a table."""
        return sorted({family for family, _ in self.chains})


def ruleset(names: Names, networks: Iterable[NetworkPlan], ports: Iterable[PortPlan],
            groups: Iterable[GroupPlan], routers: tuple[RouterPlan, ...], leaving: Mapping[str, str]) -> Ruleset:
    """The rules that these plans call for. leaving: devices by which networks leave the machine, by their ids."""
    chains: dict[Key, tuple[str, ...]] = _fixed_chains(names)
    types = _TYPES | _types(V4) | routing.TYPES
    by_id = {network.id: network for network in networks}
    if any(6 in network.versions for network in by_id.values()):
        types |= _types(V6) | routing.TYPES_V6
        chains |= _fixed_chains_v6(names)
    elements = {key: frozenset[str]() for key in types}
    stopped = routing.stopped(routers)
    for network in by_id.values():
        _add_network(names, V4, network, chains, elements, stopped=network.id in stopped[4])
        if 6 in network.versions:
            _add_network(names, V6, network, chains, elements, stopped=network.id in stopped[6])
        if network.id in leaving:
            _add_uplink(network, leaving[network.id], chains, elements)
    routing.add_routers(names, by_id, routers, elements)
    members: dict[tuple[str, int], set[str]] = defaultdict(set)
    known = {group.id: group for group in groups}
    for port in ports:
        network = by_id[port.network_id]
        _add_port(network, port, known, chains, elements)
        for group_id in port.groups:
            for _, ip in port.addresses:
                members[group_id, version_of(ip)] |= {f"{names.number(network.segment):#x} . {ip}"}
    for group in known.values():
        for direction, ingress in (("in", True), ("out", False)):
            chains["bridge", named("g", group.id, direction)] = tuple(
                _group_rule(rule) for rule in group.rules if rule.ingress == ingress
            )
        for remote, version in {(rule.remote_group, rule.version) for rule in group.rules if rule.remote_group}:
            family = V6 if version == 6 else V4
            types["bridge", named(family.members, remote)] = f"set {{ type mark . {family.kind}; }}"
            elements["bridge", named(family.members, remote)] = frozenset(members[remote, version])
    return Ruleset(_HOOKS | routing.HOOKS, types, chains, elements)


_HOOKS = {
    ("bridge", "spoof"): "filter hook prerouting priority -300",
    ("bridge", "egress"): "filter hook prerouting priority 100",
    ("bridge", "ingress"): "filter hook postrouting priority 0",
    ("ip", "outbound"): "nat hook postrouting priority srcnat",
} | {
    (family.name, chain): hook for family in FAMILIES for chain, hook in (
        ("choose_zone", "filter hook prerouting priority raw"),
        ("untracked", "filter hook output priority raw"),
        ("choose_mark", "filter hook prerouting priority mangle"),
        ("answering", "route hook output priority mangle"),
        ("to_host", "filter hook input priority filter"),
        ("forwarding", "filter hook forward priority filter"),
    )
}

_TYPES = {
    ("bridge", "taps_spoof"): "map { type ifname : verdict; }",
    ("bridge", "taps_egress"): "map { type ifname : verdict; }",
    ("bridge", "taps_ingress"): "map { type ifname : verdict; }",
    ("ip", "outward"): "set { type mark; }",
}


def _types(family: Family) -> dict[Key, str]:
    """The sets and maps that each version of IP has."""
    by_bridge = ("zones", "marks", "leaving", "entering", "answers")
    return {(family.name, "bridges"): "set { type ifname; }"} | {
        (family.name, name): "map { type ifname : verdict; }" for name in by_bridge
    }


def _fixed_chains(names: Names) -> dict[Key, tuple[str, ...]]:
    ours = f"meta mark and {HASH_MASK:#x} == {names.hash:#x}"
    return {
        ("bridge", "spoof"): ("iifname vmap @taps_spoof",),
        ("bridge", "egress"): ("iifname vmap @taps_egress", f"{ours} drop"),
        ("bridge", "ingress"): ("oifname vmap @taps_ingress", f"{ours} drop"),
        **_own_chains(names, V4),
        ("ip", "choose_mark"): (*_back(names), *routing.marks(names)),
        ("ip", "answering"): (*_answering(names), *routing.own_marks()),
        ("ip", "forwarding"): (*routing.forwarding(names), "iifname vmap @leaving", "oifname vmap @entering"),
        ("ip", "outbound"): (*routing.outbound(names), "meta mark @outward oifname != @bridges masquerade"),
        **routing.rules(names),
    }


def _fixed_chains_v6(names: Names) -> dict[Key, tuple[str, ...]]:
    return _own_chains(names, V6) | {
        ("ip6", "choose_mark"): (*_back(names), *routing.marks_v6()),
        ("ip6", "answering"): (*_answering(names), *routing.marks_v6()),
        ("ip6", "forwarding"): (*routing.forwarding_v6(), "iifname vmap @leaving", "oifname vmap @entering"),
    }


def _own_chains(names: Names, family: Family) -> dict[Key, tuple[str, ...]]:
    """Chains for what guests have of the machine itself, the same for each version of IP."""
    of_metadata = f"{family.name} saddr {family.metadata} tcp sport 80"
    return {
        (family.name, "choose_zone"): ("iifname vmap @zones",),
        (family.name, "untracked"): (
            f"oifname @bridges {family.answers} notrack", f"oifname @bridges {of_metadata} notrack",
        ),
        (family.name, "answer_guest"): ("meta mark set ct mark", f"meta mark set meta mark or {REPLY:#x}"),
        (family.name, "to_host"): ("iifname @bridges goto host_services",),
        (family.name, "host_services"): (
            "ct direction reply accept", "ct state related accept", f"{family.asks} accept",
            f"{family.name} daddr {family.metadata} tcp dport 80 accept", *family.untold,
            f"{family.icmp} type echo-request accept", "drop",
        ),
    }


def _back(names: Names) -> tuple[str, ...]:
    """The mark of what comes in: its network's, or that of the connection to which it belongs."""
    return (
        "iifname vmap @marks",
        f"iifname != @bridges ct mark and {HASH_MASK:#x} == {names.hash:#x} meta mark set ct mark",
    )


def _answering(names: Names) -> tuple[str, ...]:
    """The mark of what the machine sends."""
    return (
        f"ct direction reply ct mark and {HASH_MASK:#x} == {names.hash:#x} goto answer_guest", "oifname vmap @answers",
    )


def _add_network(names: Names, family: Family, network: NetworkPlan, chains: dict[Key, tuple[str, ...]],
                 elements: dict[Key, frozenset[str]], *, stopped: bool) -> None:
    """stopped: nothing leads out of it."""
    ip = family.name
    bridge, number = names.bridge(network.segment), names.number(network.segment)
    zone = names.zone(network.segment)
    subnets = [subnet for subnet in network.subnets if subnet.version == family.version]
    own = network.own_addresses(family.version)
    own += [ip for ip in network.answers_to if version_of(ip) == family.version]
    leads_on = network.physical is None or any(network.is_gateway_of(subnet) for subnet in subnets)
    routed = not stopped and any(network.is_gateway_of(subnet) for subnet in subnets)
    prefix = f"n{network.segment}"
    here = [f"{ip} daddr {braces(own)} ct original zone set {zone} return"] if own else []
    to_floating = [f"ip daddr @floating ct original zone set {zone} return"] if family is V4 else []
    ranges = [subnet.cidr for subnet in subnets] + ([] if family is V4 else ["fe80::/10", "ff00::/8"])
    chains[ip, f"{prefix}_zone"] = (
        f"{family.asks} notrack return",  # these two would collide between networks of one range
        f"{ip} daddr {family.metadata} tcp dport 80 notrack return",
        *to_floating, *here, *(f"{ip} daddr {cidr} ct zone set {zone} return" for cidr in ranges),
        f"ct {'original ' if leads_on else ''}zone set {zone}",  # else answers come by the bridge, too
    )
    chains[ip, f"{prefix}_mark"] = (
        f"meta mark set {number:#x}", "ct state invalid drop", f"ct direction original ct mark set {number:#x}",
        f"ct direction reply meta mark set {number | REPLY:#x}", f"ct state related meta mark set {number | REPLY:#x}",
    )
    chains[ip, f"{prefix}_answer"] = (
        f"meta mark set {number:#x}", f"ct direction reply meta mark set {number | REPLY:#x}",
        f"ct state related meta mark set {number | REPLY:#x}",
        f"{ip} saddr {family.metadata} tcp sport 80 meta mark set {number | REPLY:#x}", *family.own,
    )
    chains[ip, f"{prefix}_leaving"] = (
        f'oifname "{bridge}" accept', "oifname @bridges drop", "accept" if routed else "drop",
    )
    chains[ip, f"{prefix}_entering"] = (
        "ct state related goto answer_guest", "ct direction original drop",
        f"meta mark set {number | REPLY:#x}",
    )
    elements[ip, "bridges"] |= {f'"{bridge}"'}
    if routed and family is V4:
        elements[ip, "outward"] |= names.outward(network.segment)
    for map_, chain in (("zones", "zone"), ("marks", "mark"), ("answers", "answer"), ("leaving", "leaving"),
                        ("entering", "entering")):
        elements[ip, map_] |= {f'"{bridge}" : jump {prefix}_{chain}'}


def _add_uplink(network: NetworkPlan, device: str, chains: dict[Key, tuple[str, ...]],
                elements: dict[Key, frozenset[str]]) -> None:
    for map_, rules in zip(("egress", "ingress"), uplinks.rules(network), strict=True):
        chains["bridge", f"u{network.segment}_{map_}"] = rules
        elements["bridge", f"taps_{map_}"] |= {f'"{device}" : goto u{network.segment}_{map_}'}


def _add_port(network: NetworkPlan, port: PortPlan, groups: dict[str, GroupPlan],
              chains: dict[Key, tuple[str, ...]], elements: dict[Key, frozenset[str]]) -> None:
    tap = tap_name(port.id)
    spoof, egress, ingress = port_rules.of(network, port, [id_ for id_ in port.groups if id_ in groups])
    for map_, rules in (("spoof", spoof), ("egress", egress), ("ingress", ingress)):
        chain = named("p", port.id, map_)
        chains["bridge", chain] = rules
        elements["bridge", f"taps_{map_}"] |= {f'"{tap}" : goto {chain}'}


def _group_rule(rule: RulePlan) -> str:
    family = V6 if rule.version == 6 else V4
    side = "saddr" if rule.ingress else "daddr"
    parts = [family.of_type]
    if rule.remote_prefix is not None:
        parts.append(f"{family.name} {side} {ip_network(rule.remote_prefix, strict=False)}")
    if rule.remote_group is not None:
        parts.append(f"meta mark . {family.name} {side} @{named(family.members, rule.remote_group)}")
    protocol = family.protocol if rule.protocol in _ICMP else rule.protocol
    if protocol is not None:
        parts.append(f"ip protocol {protocol}" if family is V4 else f"meta l4proto {protocol}")
    if protocol == family.protocol:
        parts += [f"{family.icmp} type {rule.port_min}"] if rule.port_min is not None else []
        parts += [f"{family.icmp} code {rule.port_max}"] if rule.port_max is not None else []
    elif protocol in _PORTS and rule.port_min is not None:
        parts.append(f"th dport {rule.port_min}-{rule.port_max}")
    return " ".join([*parts, "accept"])


def loading(table: str, new: Ruleset, held: Iterable[str]) -> str:
    """nft commands that replace whatever is there by `new`, in one transaction. held: families that have a table."""
    cleared = "".join(f"delete table {family} {table}\n" for family in held)
    return cleared + changing(table, Ruleset({}, {}, {}, {}), new)


def changing(table: str, old: Ruleset, new: Ruleset) -> str:
    """nft commands that turn `old` into `new`, in one transaction; empty if they are equal."""
    lines = [f"add table {family} {table}" for family in new.families if family not in old.families]
    for (family, name), type_ in new.types.items():
        if (family, name) not in old.types:
            keyword, _, body = type_.partition(" ")
            lines.append(f"add {keyword} {family} {table} {name} {body}")
    for key in new.chains.keys() - old.chains.keys():
        hook = f" {{ type {new.hooks[key]}; policy accept; }}" if key in new.hooks else ""
        lines.append(f"add chain {key[0]} {table} {key[1]}{hook}")
    for key in old.elements.keys() | new.elements.keys():
        gone = old.elements.get(key, frozenset()) - new.elements.get(key, frozenset())
        if gone and key in new.types:
            keys = (element.partition(" : ")[0] for element in sorted(gone))
            lines.append(f"delete element {key[0]} {table} {key[1]} {braces(keys)}")
    for (family, name), rules in new.chains.items():
        if old.chains.get((family, name)) == rules:
            continue
        if (family, name) in old.chains:
            lines.append(f"flush chain {family} {table} {name}")
        lines += [f"add rule {family} {table} {name} {rule}" for rule in rules]
    for key, elements in new.elements.items():
        if fresh := elements - old.elements.get(key, frozenset()):
            lines.append(f"add element {key[0]} {table} {key[1]} {braces(sorted(fresh))}")
    removed = sorted(old.chains.keys() - new.chains.keys())
    lines += [f"flush chain {family} {table} {name}" for family, name in removed]
    lines += [f"delete chain {family} {table} {name}" for family, name in removed]
    for key in sorted(old.types.keys() - new.types.keys()):
        lines.append(f"delete {old.types[key].split(' ')[0]} {key[0]} {table} {key[1]}")
    return "".join(f"{line}\n" for line in lines)
