"""Placement as operations need it: claims on hosts, taken and given back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec

from kilonova.domain.flavor import Flavor
from kilonova.domain.image import Image
from kilonova.domain.instance import RequestSpec
from kilonova.domain.network import BoundDevice, PortNeed
from kilonova.shapes.host import Layout
from kilonova.shapes.trees import ResourceGroup


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """A host chosen for a server. provider: its resource provider. failing: builds failed there lately."""

    host: str
    node: str
    provider: str
    availability_zone: str = ""
    failing: bool = False


class Pin(msgspec.Struct, frozen=True):
    """A change of the availability zone that a server is tied to. zone: None for no zone any more."""

    zone: str | None


class PlacementService(Protocol):
    """Claims. All calls may be repeated."""

    async def claim(self, spec: RequestSpec, target: Target) -> None:
        """Hold the resources of the request on that host.

        Raises:
            TryElsewhere: there is no room left on it, or the policy of the server group forbids it.
        """
        ...

    async def choose(
        self, server: str, *, host: str | None, pin: Pin | None, alternates: int, needs: tuple[PortNeed, ...] = ()
    ) -> tuple[RequestSpec, tuple[Target, ...]]:
        """Choose hosts for a server that has none, best first, and tell what is to be claimed there.

        Args:
            host: this one and no other. pin: noted if there is a host. alternates: how many further hosts at most.
            needs: what its ports ask for.

        Raises:
            NoValidHost: with the reason; nothing is noted. KilonovaError: nothing is known of the server.
        """
        ...

    async def change_image(self, instance: str, host: str, image: Image, trusted_certs: tuple[str, ...]) -> None:
        """Check that the host of a server can run it from another image, and note the image for later moves.

        Raises:
            NoValidHost: it cannot; nothing is noted.
        """
        ...

    async def note_image(self, instance: str, image: Image, trusted_certs: tuple[str, ...]) -> None:
        """Note, without a check, the image that a server is made from."""
        ...

    async def layout(self, consumer: str, host: str) -> Layout | None:
        """Which CPUs, NUMA cells and pages of that host belong to a server, or to a migration; None for one without a
        place of its own."""
        ...

    async def providers_of(self, server: str, groups: Mapping[int, ResourceGroup]) -> dict[int, str]:
        """The resource provider that serves each group of a server.

        Raises:
            KilonovaError: a group is served by none.
        """
        ...

    async def count_build(self, target: Target, *, failed: bool) -> None:
        """Count a build that failed because of its host, or forget those after one that succeeded. Spec: BLD-45,
        BLD-47."""
        ...

    async def release(self, consumer: str, provider: str | None = None) -> None:
        """Give back what the consumer holds, of one provider or of all. Spec: BLD-70."""
        ...

    async def begin_resize(
        self, server: str, migration: str, flavor: Flavor, host: str, needs: tuple[PortNeed, ...] = ()
    ) -> Target:
        """Claim that host for the server with another flavor, beside what it holds, which goes to the migration.

        Args:
            needs: what its ports ask for, claimed with the flavor.

        Raises:
            NoValidHost: the host cannot take it; nothing has changed. KilonovaError: the server holds nothing.
            Spec: API-752.
        """
        ...

    async def take_back(self, server: str, migration: str, flavor: Flavor) -> None:
        """Give the server what its migration holds, in place of what it holds itself; nothing held is fine.

        Args:
            flavor: the one that the server has from then on. Spec: MIG-10, MIG-11, MIG-16, RSZ-28.
        """
        ...

    async def served(self, consumer: str) -> dict[str, dict[str, str]]:
        """The uuids of the providers that serve each port of a server which asks for something, by the name of the
        group. Spec: BLD-34."""
        ...

    async def devices(self, consumer: str) -> dict[str, BoundDevice]:
        """The device that each port of a server is which is one."""
        ...

    async def add_port(self, server: str, host: str, need: PortNeed) -> None:
        """Claim what a port asks for beside what the server holds of its host.

        Raises:
            PortResourcesNotFree, PortDeviceNotFree: there is not enough; nothing has changed. Spec: IFC-02 to IFC-05,
            IFC-18 to IFC-20, IFC-28.
        """
        ...

    async def drop_port(self, server: str, port_id: str) -> None:
        """Give back what is held for a port; nothing held is fine. Spec: IFC-09, IFC-10, IFC-15."""
        ...

    async def forget(self, consumer: str) -> None:
        """Give back everything and drop what was asked for: the server is gone."""
        ...


class SchedulerService(Protocol):
    """Chooses hosts."""

    async def place(self, spec: RequestSpec, alternates: int) -> tuple[Target, ...]:
        """Choose a host, claim it for the server, and name alternates that would do as well.

        Repeating it for a server that holds a claim returns that host first.

        Args:
            alternates: how many further hosts at most.

        Raises:
            NoValidHost: with the reason; nothing is claimed.
        """
        ...
