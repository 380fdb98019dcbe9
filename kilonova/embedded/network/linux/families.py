"""What differs between IPv4 and IPv6 in the filters of one installation."""

from __future__ import annotations

import msgspec

from kilonova.embedded.network.linux.names import METADATA_ADDRESS, METADATA_ADDRESS_V6, REPLY


class Family(msgspec.Struct, frozen=True, kw_only=True):
    """A version of IP as nftables sees it.

    Args:
        name: of its tables and of its header in rules. kind: type of its addresses in sets.
        icmp, protocol: its ICMP, by name and number. members: begin of the names of sets of the members of groups.
        metadata: address of the metadata service. client, server: ports of DHCP.
        untold: what connection tracking knows nothing of, and the machine answers to.
        own: rules for what the machine sends of itself to a guest, which no rule of a security group judges.
    """

    version: int
    name: str
    kind: str
    icmp: str
    protocol: int
    members: str
    metadata: str
    client: int
    server: int
    untold: tuple[str, ...] = ()
    own: tuple[str, ...] = ()

    @property
    def asks(self) -> str:
        """What a guest sends to a DHCP server."""
        return f"udp sport {self.client} udp dport {self.server}"

    @property
    def answers(self) -> str:
        """What a DHCP server sends to a guest."""
        return f"udp sport {self.server} udp dport {self.client}"

    @property
    def of_type(self) -> str:
        return f"ether type {self.name}"


DISCOVERY = "{ nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert }"
MEMBERSHIP = "{ mld-listener-query, mld-listener-report, mld-listener-done, mld2-listener-report }"

V4 = Family(
    version=4, name="ip", kind="ipv4_addr", icmp="icmp", protocol=1, members="m", metadata=METADATA_ADDRESS, client=68,
    server=67,
)
V6 = Family(
    version=6, name="ip6", kind="ipv6_addr", icmp="icmpv6", protocol=58, members="w", metadata=METADATA_ADDRESS_V6,
    client=546, server=547,
    untold=(f"icmpv6 type {DISCOVERY} accept", f"icmpv6 type {MEMBERSHIP} accept"),
    own=(
        f"icmpv6 type nd-router-advert meta mark set meta mark or {REPLY:#x}",
        f"udp sport 547 udp dport 546 meta mark set meta mark or {REPLY:#x}",
    ),
)
FAMILIES = (V4, V6)
