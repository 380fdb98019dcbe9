"""What the API asks about hosts and zones while it deals with servers."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol


class Hosts(Protocol):
    """Hosts as their service records tell."""

    async def statuses(self, hosts: Collection[str]) -> dict[str, str]:
        """UP, DOWN, MAINTENANCE or UNKNOWN for each host that has a service. Spec: API-439."""
        ...

    async def zone_available(self, zone: str) -> bool:
        """Whether an enabled host belongs to this availability zone."""
        ...

    async def zone_of(self, host: str) -> str | None:
        """The availability zone of a host; None for one of which nothing is known."""
        ...

    async def exists(self, *, host: str | None, node: str | None) -> bool:
        """Whether there is such a host, with such a node if both are given."""
        ...


class UnknownHosts:
    """For a deployment without service records: nothing is refused, the scheduler decides."""

    async def statuses(self, hosts: Collection[str]) -> dict[str, str]:
        return {}

    async def zone_available(self, zone: str) -> bool:
        return True

    async def zone_of(self, host: str) -> str | None:
        return None

    async def exists(self, *, host: str | None, node: str | None) -> bool:
        return True
