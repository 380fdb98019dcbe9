"""All filtering of one installation, as nftables rules made from plans.

The bridge family sees the taps but has no connection tracking; the ip family tracks connections (bridged packets
pass its hooks too, see `bridges`) but sees only bridges. So the ip family marks each packet with its network and
with whether it answers a connection, and the bridge family, which sees that mark, decides:

    tap -> spoof -> [ip: zone, track, mark] -> egress -> (bridge or route) -> ingress -> tap

Only packets in the original direction are judged by the rules of security groups, each of them every time, so
removing a rule cuts running connections too. What comes through a bridge of this installation from or to a tap
that no plan describes is dropped.

Spec: EMN-14, EMN-26, EMN-46 to EMN-49.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from ipaddress import IPv4Network, collapse_addresses

import msgspec

from kilonova.embedded.network.linux import routing
from kilonova.embedded.network.linux.names import HASH_MASK, METADATA_ADDRESS, REPLY, Names
from kilonova.embedded.network.wiring import GroupPlan, NetworkPlan, PortPlan, RouterPlan, RulePlan, tap_name

Key = tuple[str, str]
"""(family, name)"""

_PORTS = {6, 17, 33, 132, 136}


class Ruleset(msgspec.Struct, frozen=True):
    """Chains with their rules, and sets and maps with their elements, by family and name.

    Args:
        hooks: of the chains that packets enter by themselves. types: of sets and maps, with the keyword.
    """

    hooks: dict[Key, str]
    types: dict[Key, str]
    chains: dict[Key, tuple[str, ...]]
    elements: dict[Key, frozenset[str]]


def ruleset(names: Names, networks: Iterable[NetworkPlan], ports: Iterable[PortPlan],
            groups: Iterable[GroupPlan], routers: tuple[RouterPlan, ...] = ()) -> Ruleset:
    """The rules that these plans call for."""
    chains: dict[Key, tuple[str, ...]] = {}
    types = _TYPES | routing.TYPES
    elements = {key: frozenset[str]() for key in types}
    by_id = {network.id: network for network in networks}
    chains |= _fixed_chains(names)
    stopped = routing.stopped(routers)
    for network in by_id.values():
        _add_network(names, network, chains, elements, stopped=network.id in stopped)
    routing.add_routers(names, by_id, routers, elements)
    members: dict[str, set[str]] = defaultdict(set)
    known = {group.id: group for group in groups}
    for port in ports:
        network = by_id[port.network_id]
        _add_port(network, port, known, chains, elements)
        for group_id in port.groups:
            members[group_id] |= {f"{names.number(network.segment):#x} . {ip}" for _, ip in port.addresses}
    for group in known.values():
        for direction, ingress in (("in", True), ("out", False)):
            chains["bridge", _name("g", group.id, direction)] = tuple(
                line for rule in group.rules if rule.ingress == ingress and rule.version == 4
                for line in (_group_rule(rule),)
            )
        for remote in {rule.remote_group for rule in group.rules if rule.remote_group}:
            types["bridge", _name("m", remote)] = "set { type mark . ipv4_addr; }"
            elements["bridge", _name("m", remote)] = frozenset(members[remote])
    return Ruleset(_HOOKS | routing.HOOKS, types, chains, elements)


_HOOKS = {
    ("bridge", "spoof"): "filter hook prerouting priority -300",
    ("bridge", "egress"): "filter hook prerouting priority 100",
    ("bridge", "ingress"): "filter hook postrouting priority 0",
    ("ip", "choose_zone"): "filter hook prerouting priority raw",
    ("ip", "untracked"): "filter hook output priority raw",
    ("ip", "choose_mark"): "filter hook prerouting priority mangle",
    ("ip", "answering"): "route hook output priority mangle",
    ("ip", "to_host"): "filter hook input priority filter",
    ("ip", "forwarding"): "filter hook forward priority filter",
    ("ip", "outbound"): "nat hook postrouting priority srcnat",
}

_TYPES = {
    ("bridge", "taps_spoof"): "map { type ifname : verdict; }",
    ("bridge", "taps_egress"): "map { type ifname : verdict; }",
    ("bridge", "taps_ingress"): "map { type ifname : verdict; }",
    ("ip", "bridges"): "set { type ifname; }",
    ("ip", "outward"): "set { type mark; }",
    ("ip", "zones"): "map { type ifname : verdict; }",
    ("ip", "marks"): "map { type ifname : verdict; }",
    ("ip", "leaving"): "map { type ifname : verdict; }",
    ("ip", "entering"): "map { type ifname : verdict; }",
    ("ip", "answers"): "map { type ifname : verdict; }",
}


def _fixed_chains(names: Names) -> dict[Key, tuple[str, ...]]:
    ours = f"meta mark and {HASH_MASK:#x} == {names.hash:#x}"
    return {
        ("bridge", "spoof"): ("iifname vmap @taps_spoof",),
        ("bridge", "egress"): ("iifname vmap @taps_egress", f"{ours} drop"),
        ("bridge", "ingress"): ("oifname vmap @taps_ingress", f"{ours} drop"),
        ("ip", "choose_zone"): ("iifname vmap @zones",),
        ("ip", "choose_mark"): (
            "iifname vmap @marks",
            f"iifname != @bridges ct mark and {HASH_MASK:#x} == {names.hash:#x} meta mark set ct mark",
            *routing.marks(names),
        ),
        ("ip", "untracked"): (
            "oifname @bridges udp sport 67 udp dport 68 notrack",
            f"oifname @bridges ip saddr {METADATA_ADDRESS} tcp sport 80 notrack",
        ),
        ("ip", "answering"): (
            f"ct direction reply ct mark and {HASH_MASK:#x} == {names.hash:#x} goto answer_guest",
            "oifname vmap @answers", *routing.own_marks(),
        ),
        ("ip", "answer_guest"): ("meta mark set ct mark", f"meta mark set meta mark or {REPLY:#x}"),
        ("ip", "to_host"): ("iifname @bridges goto host_services",),
        ("ip", "host_services"): (
            "ct direction reply accept", "ct state related accept", "udp sport 68 udp dport 67 accept",
            f"ip daddr {METADATA_ADDRESS} tcp dport 80 accept", "icmp type echo-request accept", "drop",
        ),
        ("ip", "forwarding"): (*routing.forwarding(names), "iifname vmap @leaving", "oifname vmap @entering"),
        ("ip", "outbound"): (*routing.outbound(names), "meta mark @outward oifname != @bridges masquerade"),
        **routing.rules(names),
    }


def _add_network(names: Names, network: NetworkPlan, chains: dict[Key, tuple[str, ...]],
                 elements: dict[Key, frozenset[str]], *, stopped: bool) -> None:
    """stopped: nothing leads out of it."""
    bridge, number = names.bridge(network.segment), names.number(network.segment)
    zone = names.zone(network.segment)
    own = [ip for subnet in network.subnets for ip in (subnet.gateway, subnet.dhcp_address) if ip]
    own += network.answers_to
    routed = not stopped and any(subnet.gateway for subnet in network.subnets)
    prefix = f"n{network.segment}"
    here = [f"ip daddr {_braces(own)} ct original zone set {zone} return"] if own else []
    chains["ip", f"{prefix}_zone"] = (
        "udp sport 68 udp dport 67 notrack return",  # these two would collide between networks of one range
        f"ip daddr {METADATA_ADDRESS} tcp dport 80 notrack return",
        f"ip daddr @floating ct original zone set {zone} return",
        *here, *(f"ip daddr {subnet.cidr} ct zone set {zone} return" for subnet in network.subnets),
        f"ct original zone set {zone}",
    )
    chains["ip", f"{prefix}_mark"] = (
        f"meta mark set {number:#x}", "ct state invalid drop", f"ct direction original ct mark set {number:#x}",
        f"ct direction reply meta mark set {number | REPLY:#x}", f"ct state related meta mark set {number | REPLY:#x}",
    )
    chains["ip", f"{prefix}_answer"] = (
        f"meta mark set {number:#x}", f"ct direction reply meta mark set {number | REPLY:#x}",
        f"ct state related meta mark set {number | REPLY:#x}",
        f"ip saddr {METADATA_ADDRESS} tcp sport 80 meta mark set {number | REPLY:#x}",
    )
    chains["ip", f"{prefix}_leaving"] = (
        f'oifname "{bridge}" accept', "oifname @bridges drop", "accept" if routed else "drop",
    )
    chains["ip", f"{prefix}_entering"] = (
        "ct state related goto answer_guest", "ct direction original drop",
        f"meta mark set {number | REPLY:#x}",
    )
    elements["ip", "bridges"] |= {f'"{bridge}"'}
    if routed:
        elements["ip", "outward"] |= names.outward(network.segment)
    for map_, chain in (("zones", "zone"), ("marks", "mark"), ("answers", "answer"), ("leaving", "leaving"),
                        ("entering", "entering")):
        elements["ip", map_] |= {f'"{bridge}" : jump {prefix}_{chain}'}


def _add_port(network: NetworkPlan, port: PortPlan, groups: dict[str, GroupPlan],
              chains: dict[Key, tuple[str, ...]], elements: dict[Key, frozenset[str]]) -> None:
    tap = tap_name(port.id)
    spoof, egress, ingress = _port_rules(network, port, groups)
    for map_, rules in (("spoof", spoof), ("egress", egress), ("ingress", ingress)):
        chain = _name("p", port.id, map_)
        chains["bridge", chain] = rules
        elements["bridge", f"taps_{map_}"] |= {f'"{tap}" : goto {chain}'}


def _port_rules(network: NetworkPlan, port: PortPlan,
                groups: dict[str, GroupPlan]) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The rules for spoofing, for what leaves the guest and for what reaches it."""
    if not (port.admin_state_up and network.admin_state_up):
        return ("drop",), ("drop",), ("drop",)
    if not port.secured:
        return ("accept",), ("accept",), ("accept",)
    macs = sorted({port.mac, *(mac for mac, _ in port.pairs)})
    allowed = [IPv4Network(ip) for _, ip in port.addresses]
    allowed += [IPv4Network(prefix, strict=False) for _, prefix in port.pairs]
    usable = [str(prefix) for prefix in collapse_addresses(allowed)]
    speaking = [str(prefix) for prefix in collapse_addresses([IPv4Network("0.0.0.0/32"), *allowed])]
    servers = [ip for subnet in network.subnets for ip in (subnet.gateway, subnet.dhcp_address) if ip]
    spoof = (
        f"ether saddr != {_braces(macs)} drop",
        f"ether type arp arp saddr ether {_braces(macs)} arp saddr ip {_braces(speaking)} accept",
        "ether type != ip drop", "udp sport 67 drop", "ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept",
        *([f"ip saddr {_braces(usable)} accept"] if usable else []), "drop",
    )
    answer = f"meta mark and {REPLY:#x} != 0 accept"
    chosen = [id_ for id_ in port.groups if id_ in groups]
    egress = (
        answer, "ether type arp accept", "udp sport 68 udp dport 67 accept",
        f"ip daddr {METADATA_ADDRESS} tcp dport 80 accept",
        *(f"jump {_name('g', id_, 'out')}" for id_ in chosen), "drop",
    )
    ingress = (
        answer, "ether type arp accept", "ether type != ip drop",
        *([f"ip saddr {_braces(servers)} udp sport 67 udp dport 68 accept"] if servers else []),
        *(f"jump {_name('g', id_, 'in')}" for id_ in chosen), "drop",
    )
    return spoof, egress, ingress


def _group_rule(rule: RulePlan) -> str:
    side = "saddr" if rule.ingress else "daddr"
    parts = ["ether type ip"]
    if rule.remote_prefix is not None:
        parts.append(f"ip {side} {IPv4Network(rule.remote_prefix, strict=False)}")
    if rule.remote_group is not None:
        parts.append(f"meta mark . ip {side} @{_name('m', rule.remote_group)}")
    if rule.protocol is not None:
        parts.append(f"ip protocol {rule.protocol}")
    if rule.protocol == 1:
        parts += [f"icmp type {rule.port_min}"] if rule.port_min is not None else []
        parts += [f"icmp code {rule.port_max}"] if rule.port_max is not None else []
    elif rule.protocol in _PORTS and rule.port_min is not None:
        parts.append(f"th dport {rule.port_min}-{rule.port_max}")
    return " ".join([*parts, "accept"])


def _name(kind: str, id_: str, part: str = "") -> str:
    return f"{kind}_{id_.replace('-', '')}" + (f"_{part}" if part else "")


def _braces(items: Iterable[str]) -> str:
    return "{ " + ", ".join(dict.fromkeys(items)) + " }"


def loading(table: str, new: Ruleset) -> str:
    """nft commands that replace whatever is there by `new`, in one transaction."""
    lines = []
    for family in ("bridge", "ip"):
        lines += [f"add table {family} {table}", f"delete table {family} {table}", f"add table {family} {table}"]
    return "\n".join(lines) + "\n" + changing(table, Ruleset({}, {}, {}, {}), new)


def changing(table: str, old: Ruleset, new: Ruleset) -> str:
    """nft commands that turn `old` into `new`, in one transaction; empty if they are equal."""
    lines = []
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
            lines.append(f"delete element {key[0]} {table} {key[1]} {_braces(keys)}")
    for (family, name), rules in new.chains.items():
        if old.chains.get((family, name)) == rules:
            continue
        if (family, name) in old.chains:
            lines.append(f"flush chain {family} {table} {name}")
        lines += [f"add rule {family} {table} {name} {rule}" for rule in rules]
    for key, elements in new.elements.items():
        if fresh := elements - old.elements.get(key, frozenset()):
            lines.append(f"add element {key[0]} {table} {key[1]} {_braces(sorted(fresh))}")
    removed = sorted(old.chains.keys() - new.chains.keys())
    lines += [f"flush chain {family} {table} {name}" for family, name in removed]
    lines += [f"delete chain {family} {table} {name}" for family, name in removed]
    for key in sorted(old.types.keys() - new.types.keys()):
        lines.append(f"delete {old.types[key].split(' ')[0]} {key[0]} {table} {key[1]}")
    return "".join(f"{line}\n" for line in lines)
