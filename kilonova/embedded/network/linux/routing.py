"""Filter and translation rules of routers and floating IPs.

A packet to a floating IP is given the mark of the network that its fixed address is on, by which it finds the route
there and the security groups that judge it; the mark of the connection stays that of the network where it began,
by which the answers find back. So networks with the same range can have floating IPs and be reached by them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from kilonova.embedded.network.linux.names import HASH_MASK, Names
from kilonova.embedded.network.wiring import NetworkPlan, RouterPlan

Key = tuple[str, str]

HOOKS = {
    ("ip", "inward"): "nat hook prerouting priority dstnat",
    ("ip", "inward_from_here"): "nat hook output priority -100",
}

TYPES = {
    ("ip", "crossing"): "set { type ifname . ifname; }",
    ("ip", "externals"): "set { type ifname; }",
    ("ip", "external_marks"): "set { type mark; }",
    ("ip", "floating"): "set { type ipv4_addr; }",
    ("ip", "floating_marks"): "map { type ipv4_addr : mark; }",
    ("ip", "floating_to"): "map { type ipv4_addr : ipv4_addr; }",
    ("ip", "floating_from"): "map { type mark . ipv4_addr : ipv4_addr; }",
    ("ip", "gateways"): "map { type mark : ipv4_addr; }",
}

TYPES_V6 = {
    ("ip6", "crossing"): "set { type ifname . ifname; }",
}

_TO_FLOATING = "ct direction original ip daddr @floating meta mark set ip daddr map @floating_marks"
_TRANSLATE = "ip daddr @floating dnat to ip daddr map @floating_to"


def rules(names: Names) -> dict[Key, tuple[str, ...]]:
    """What stands in chains of their own."""
    return {("ip", "inward"): (_TRANSLATE,), ("ip", "inward_from_here"): (_TRANSLATE,)}


def marks(names: Names) -> tuple[str, ...]:
    """The mark of what comes in: where a floating IP leads, and where an answer belongs."""
    ours = f"ct mark and {HASH_MASK:#x} == {names.hash:#x}"
    return (
        _TO_FLOATING, f"ct direction reply ct status dnat {ours} goto answer_guest",
        f"iifname @externals ct direction reply {ours} goto answer_guest",
    )


def own_marks() -> tuple[str, ...]:
    """The same for what the machine itself sends."""
    return (_TO_FLOATING,)


def forwarding(names: Names) -> tuple[str, ...]:
    """What may pass from one network to another."""
    ours = f"meta mark and {HASH_MASK:#x} == {names.hash:#x}"
    return (
        "iifname . oifname @crossing accept", f"ct status dnat {ours} accept",
        f"iifname @externals ct direction reply {ours} accept",
    )


def marks_v6() -> tuple[str, ...]:
    """The same for IPv6, in which nothing is translated."""
    return ()


def forwarding_v6() -> tuple[str, ...]:
    return ("iifname . oifname @crossing accept",)


def outbound(names: Names) -> tuple[str, ...]:
    """Which source a guest has outside: its floating IP, else its router's. Spec: EMN-13, EMN-57."""
    to_floating = f"ct status dnat ct mark != @external_marks ct mark and {HASH_MASK:#x} == {names.hash:#x}"
    return (
        f"{to_floating} snat to ct mark . ip saddr map @floating_from", f"{to_floating} masquerade",
        "oifname @externals snat to meta mark . ip saddr map @floating_from",
        "oifname @externals snat to meta mark map @gateways",
    )


def add_routers(names: Names, networks: Mapping[str, NetworkPlan], routers: Iterable[RouterPlan],
                elements: dict[Key, frozenset[str]]) -> None:
    """The elements of sets and maps that these routers call for."""
    for router in routers:
        inner = [networks[id_] for id_ in router.network_ids if id_ in networks]
        outer = networks.get(router.external_network_id or "")
        if not router.works:
            for network in inner:
                elements["ip", "outward"] -= _marks(names, network)
            continue
        bridges = [names.bridge(network.segment) for network in inner]
        elements["ip", "crossing"] |= _pairs(bridges)
        if speak_v6 := [names.bridge(networks[id_].segment) for id_ in router.network_ids_v6 if id_ in networks]:
            elements["ip6", "crossing"] |= _pairs(speak_v6)
        if outer is None:
            continue
        bridge = names.bridge(outer.segment)
        elements["ip", "externals"] |= {f'"{bridge}"'}
        elements["ip", "external_marks"] |= {f"{names.number(outer.segment):#x}"}
        elements["ip", "crossing"] |= {f'"{inside}" . "{bridge}"' for inside in bridges}
        for network in inner:
            if router.gateway:
                elements["ip", "gateways"] |= {f"{names.number(network.segment):#x} : {router.gateway}"}
            else:
                elements["ip", "outward"] -= _marks(names, network)
        _add_floating(names, networks, router, elements)


def _pairs(bridges: list[str]) -> frozenset[str]:
    return frozenset(f'"{a}" . "{b}"' for a in bridges for b in bridges if a != b)


def _add_floating(names: Names, networks: Mapping[str, NetworkPlan], router: RouterPlan,
                  elements: dict[Key, frozenset[str]]) -> None:
    for floating in router.floating:
        if floating.network_id not in networks:
            continue
        number = names.number(networks[floating.network_id].segment)
        elements["ip", "floating"] |= {floating.address}
        elements["ip", "floating_marks"] |= {f"{floating.address} : {number:#x}"}
        elements["ip", "floating_to"] |= {f"{floating.address} : {floating.fixed_address}"}
        elements["ip", "floating_from"] |= {f"{number:#x} . {floating.fixed_address} : {floating.address}"}


def _marks(names: Names, network: NetworkPlan) -> frozenset[str]:
    return frozenset(names.outward(network.segment))


def stopped(routers: Iterable[RouterPlan]) -> dict[int, Collection[str]]:
    """By version of IP, networks that only lead to routers that do not work. Spec: EMN-14."""
    found: dict[int, Collection[str]] = {}
    for version in (4, 6):
        joined = [(router.works, router.network_ids if version == 4 else router.network_ids_v6)
                  for router in routers]
        up = {id_ for works, ids in joined if works for id_ in ids}
        found[version] = {id_ for works, ids in joined if not works for id_ in ids} - up
    return found


def ways_out(routers: Iterable[RouterPlan]) -> dict[str, str]:
    """By network, the external one that its router leads to."""
    return {
        id_: router.external_network_id for router in routers if router.works and router.external_network_id
        for id_ in (*router.network_ids, *router.network_ids_v6)
    }


def neighbours(routers: Iterable[RouterPlan]) -> dict[str, frozenset[str]]:
    """By network, those that its router leads to."""
    found: dict[str, frozenset[str]] = {}
    for router in routers:
        if router.works:
            outer = {router.external_network_id} if router.external_network_id else set()
            inner = frozenset((*router.network_ids, *router.network_ids_v6))
            for id_ in inner:
                found[id_] = found.get(id_, frozenset()) | (inner | outer) - {id_}
    return found
