"""What an audit asks of the services around compute. A deployment leaves out those it does not run itself."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

import msgspec

from kilonova.services.accelerators import AcceleratorRequest
from kilonova.services.network import PortSummary


class PortLedger(Protocol):
    """The ports of servers (the embedded network service, or Neutron)."""

    async def allocated(self) -> list[PortSummary]:
        """All ports that say they belong to a server."""
        ...

    async def release(self, instance_uuid: str, keep_ports: tuple[str, ...] = ()) -> None:
        """Delete every port of a server; those that users made are unbound instead."""
        ...


class OnMachine(msgspec.Struct, frozen=True, kw_only=True):
    """Devices of this installation on one machine, by name, and those that its records ask for. bridges: and the
    devices by which they leave the machine. addresses: that bridges have, after the name of the bridge. answering,
    silent: those of routers and floating IPs that they are to have, and that they are not to have."""

    host: str
    bridges: frozenset[str] = frozenset()
    taps: frozenset[str] = frozenset()
    wanted_bridges: frozenset[str] = frozenset()
    wanted_taps: frozenset[str] = frozenset()
    addresses: frozenset[tuple[str, str]] = frozenset()
    answering: frozenset[tuple[str, str]] = frozenset()
    silent: frozenset[tuple[str, str]] = frozenset()


class DeviceLedger(Protocol):
    """The network devices of this machine."""

    async def devices(self) -> OnMachine: ...


class ImageData(msgspec.Struct, frozen=True, kw_only=True):
    """Ids of images: of those that must have data, of those that may have some, of those whose data was found."""

    required: frozenset[str]
    allowed: frozenset[str]
    found: frozenset[str]


class ImageLedger(Protocol):
    """The data of images on this machine."""

    async def image_data(self) -> ImageData: ...

    async def discard(self, image_id: str) -> bool:
        """Delete data without an image. False if it has an image by now, or is gone."""
        ...


class AcceleratorLedger(Protocol):
    """The requests of an accelerator service."""

    async def requests(self) -> tuple[AcceleratorRequest, ...]: ...

    async def discard(self, ids: Collection[str]) -> None:
        """Delete requests, unbinding them."""
        ...
