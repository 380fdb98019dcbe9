"""What one port may send and gets: against lies about addresses, and by its security groups.

IPv4 and IPv6 share the chains. In IPv6 a guest has its link-local address besides its own, may find its neighbours
and join multicast groups, but speaks for no other address and is no router. Router advertisements reach it from the
machine only, which marks them as answers.

Spec: EMN-14, EMN-26, EMN-49.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, collapse_addresses

from kilonova.embedded.network.addresses import built
from kilonova.embedded.network.addressing import version_of
from kilonova.embedded.network.linux.families import DISCOVERY, MEMBERSHIP, V4, V6
from kilonova.embedded.network.linux.names import METADATA_ADDRESS, METADATA_ADDRESS_V6, REPLY
from kilonova.embedded.network.wiring import NetworkPlan, PortPlan

Rules = tuple[str, ...]


def of(network: NetworkPlan, port: PortPlan, groups: list[str]) -> tuple[Rules, Rules, Rules]:
    """The rules for spoofing, for what leaves the guest and for what reaches it. groups: those that judge."""
    if not (port.admin_state_up and network.admin_state_up):
        return ("drop",), ("drop",), ("drop",)
    if not port.secured:
        return ("accept",), ("accept",), ("accept",)
    macs = sorted({port.mac, *(mac for mac, _ in port.pairs)})
    prefixes = [ip for _, ip in port.addresses] + [prefix for _, prefix in port.pairs]
    allowed = [IPv4Network(prefix, strict=False) for prefix in prefixes if version_of(prefix) == 4]
    usable = [str(prefix) for prefix in collapse_addresses(allowed)]
    speaking = [str(prefix) for prefix in collapse_addresses([IPv4Network("0.0.0.0/32"), *allowed])]
    has_v6 = 6 in network.versions
    spoof = (
        f"ether saddr != {braces(macs)} drop",
        f"ether type arp arp saddr ether {braces(macs)} arp saddr ip {braces(speaking)} accept",
        *(_spoof_v6(macs, prefixes) if has_v6 else ()),
        "ether type != ip drop", "udp sport 67 drop", "ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept",
        *([f"ip saddr {braces(usable)} accept"] if usable else []), "drop",
    )
    answer = f"meta mark and {REPLY:#x} != 0 accept"
    egress = (
        answer, "ether type arp accept", "udp sport 68 udp dport 67 accept",
        f"ip daddr {METADATA_ADDRESS} tcp dport 80 accept",
        *(_EGRESS_V6 if has_v6 else ()),
        *(f"jump {named('g', id_, 'out')}" for id_ in groups), "drop",
    )
    ingress = (
        answer, "ether type arp accept",
        *([f"{V6.of_type} icmpv6 type nd-router-advert accept"] if has_v6 and _is_told_outside(network) else []),
        *(_INGRESS_V6 if has_v6 else ("ether type != ip drop",)), *_dhcp_answers(network),
        *(f"jump {named('g', id_, 'in')}" for id_ in groups), "drop",
    )
    return spoof, egress, ingress


_EGRESS_V6 = (
    # what comes in fragments is whole here, and not where lies are looked for
    f"{V6.of_type} icmpv6 type {{ nd-router-advert, nd-redirect }} drop",
    f"{V6.of_type} udp sport 547 drop",
    f"{V6.of_type} icmpv6 type {DISCOVERY} accept", f"{V6.of_type} icmpv6 type {MEMBERSHIP} accept",
    f"{V6.of_type} {V6.asks} accept", f"ip6 daddr {METADATA_ADDRESS_V6} tcp dport 80 accept",
)
_INGRESS_V6 = (
    "ether type != { ip, ip6 } drop",
    f"{V6.of_type} icmpv6 type {{ nd-router-advert, nd-redirect }} drop",
    f"{V6.of_type} icmpv6 type {DISCOVERY} accept", f"{V6.of_type} icmpv6 type {MEMBERSHIP} accept",
)


def _is_told_outside(network: NetworkPlan) -> bool:
    """Whether routers of the world outside announce themselves to guests: this machine does not."""
    return network.physical is not None and not any(subnet.ra_mode for subnet in network.subnets)


def _dhcp_answers(network: NetworkPlan) -> Rules:
    """From whom a guest gets its address: outside, from anybody, unless this machine serves it."""
    answers = "udp sport 67 udp dport 68 accept"
    if network.physical is not None and not any(s.version == 4 and s.dhcp_address for s in network.subnets):
        return (f"{V4.of_type} {answers}",)
    servers = network.own_addresses(4)
    return (f"ip saddr {braces(servers)} {answers}",) if servers else ()


def _spoof_v6(macs: list[str], prefixes: list[str]) -> Rules:
    """Everything of IPv6 is decided here."""
    links = [IPv6Network(built("fe80::/64", mac)) for mac in macs]
    allowed = [IPv6Network(prefix, strict=False) for prefix in prefixes if version_of(prefix) == 6]
    usable = list(collapse_addresses([*links, *allowed]))
    sources = braces(str(prefix) for prefix in usable)
    advert, solicit = f"{V6.of_type} icmpv6 type nd-neighbor-advert", f"{V6.of_type} icmpv6 type nd-neighbor-solicit"
    return (
        f"{V6.of_type} icmpv6 type {{ nd-router-advert, nd-redirect }} drop", f"{V6.of_type} udp sport 547 drop",
        *(f"{advert} ip6 saddr {sources} {about(prefix)} accept" for prefix in usable), f"{advert} drop",
        *(f"{solicit} ip6 saddr :: {about(prefix)} accept" for prefix in usable), f"{solicit} ip6 saddr :: drop",
        f"{V6.of_type} ip6 saddr :: icmpv6 type nd-router-solicit accept",
        f"{V6.of_type} ip6 saddr :: icmpv6 type {MEMBERSHIP} accept",
        f"{V6.of_type} ip6 saddr {sources} accept", f"{V6.of_type} drop",
    )


def about(target: IPv6Network | str) -> str:
    """Matches neighbour messages whose target, 8 bytes into them, is in a range."""
    prefix = IPv6Network(target)
    length = prefix.prefixlen
    return f"@th,64,{length} {int(prefix.network_address) >> (128 - length):#x}" if length else ""


def named(kind: str, id_: str, part: str = "") -> str:
    return f"{kind}_{id_.replace('-', '')}" + (f"_{part}" if part else "")


def braces(items: Iterable[str]) -> str:
    return "{ " + ", ".join(dict.fromkeys(items)) + " }"
