"""How things of one installation are named on a machine that may hold several."""

from __future__ import annotations

import re
import zlib

from kilonova.domain.errors import InvalidInput

HASH_MASK, NUMBER_MASK = 0x0FFFF000, 0x0FFFFFFF
REPLY = 0x80000000
"""Packet mark: this packet answers, or belongs to, a connection that was let through."""

METADATA_ADDRESS = "169.254.169.254"
METADATA_ADDRESS_V6 = "fe80::a9fe:a9fe"
"""Of its own link, on each: which one is meant follows from the bridge."""

ROUTER_ADDRESS_V6 = "fe80::1"
"""From which the machine announces itself as router, on each bridge."""


class Names:
    """Names and numbers that carry the installation's token.

    Args:
        token: 1 to 5 lower-case letters and digits, different for each installation on a machine.
    """

    def __init__(self, token: str) -> None:
        if not re.fullmatch(r"[a-z0-9]{1,5}", token):
            raise InvalidInput(f"'{token}' cannot name an installation: 1 to 5 lower-case letters and digits.")
        self.prefix = f"kn{token}-"
        self.uplink_prefix = f"ku{token}-"
        self.table = f"kilonova_{token}"
        self._hash = (zlib.crc32(token.encode()) & 0xFFFF) << 12
        self.hash = self._hash or 0x1000

    def bridge(self, segment: int) -> str:
        """At most 12 characters of the kernel's 15."""
        return f"{self.prefix}{segment}"

    def uplink(self, segment: int) -> str:
        """The device of a network's VLAN, which leads outside."""
        return f"{self.uplink_prefix}{segment}"

    def number(self, segment: int) -> int:
        """The packet mark of a network: 16 bits of the installation, 12 of the network."""
        return self.hash | segment

    def outward(self, segment: int) -> set[str]:
        """The marks of what a network's guests send out, begun by them or in answer."""
        number = self.number(segment)
        return {f"{number:#x}", f"{number | REPLY:#x}"}

    def zone(self, segment: int) -> int:
        """The conntrack zone of a network, 1 to 65535."""
        return (self.hash // 0x1000 + segment * 16) % 0xFFFF + 1

    def routing_table(self, segment: int) -> int:
        return 0x10000000 | self.number(segment)

    def mac(self, segment: int) -> str:
        """A fixed address for the bridge, which else takes one of its ports' and changes with them."""
        number = self.number(segment)
        return f"02:4b:{number >> 24 & 255:02x}:{number >> 16 & 255:02x}:{number >> 8 & 255:02x}:{number & 255:02x}"
