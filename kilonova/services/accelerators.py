"""The accelerator service (OpenStack: Cyborg)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import StrEnum
from typing import Protocol

import msgspec

from kilonova.domain.errors import InvalidInput, NotSupported


class RequestState(StrEnum):
    """How far an accelerator request is. Only of a request that is `BOUND` a guest can get the device."""

    INITIAL = "Initial"
    BIND_STARTED = "BindStarted"
    BOUND = "Bound"
    UNBOUND = "Unbound"
    BIND_FAILED = "BindFailed"
    DELETING = "Deleting"
    OTHER = ""


RESOLVED = frozenset({RequestState.BOUND, RequestState.BIND_FAILED, RequestState.DELETING})
"""States in which nothing more is to be waited for."""


class AcceleratorRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request for one device.

    Args:
        group: number of the group of the device profile that it comes from.
        server: the server that it is bound to, "" for none.
        handle_type: how the device is handed to a guest, "" before it is bound. handle: its place, by the parts of
            its address.
    """

    id: str
    group: int = 0
    state: RequestState = RequestState.INITIAL
    server: str = ""
    handle_type: str = ""
    handle: dict[str, str] = {}


class AcceleratorService(Protocol):
    """Device profiles, and requests for devices. All calls but `make` may be repeated.

    Raises:
        ServiceUnavailable: it does not answer. KilonovaError: it refuses.
    """

    async def groups(self, profile: str) -> tuple[dict[str, str], ...]:
        """The groups of a device profile: resources, traits, and what only this service understands.

        Raises:
            InvalidInput: there is no such profile, or no accelerator service at all.
        """
        ...

    async def make(self, profile: str) -> tuple[AcceleratorRequest, ...]:
        """Make requests for all devices of a profile. Repeating it makes others beside them."""
        ...

    async def bind(self, server: str, host: str, providers: Mapping[str, str]) -> None:
        """Begin to bind requests; their end is told by events `accelerator-request-bound`.

        Args:
            host: the node that the devices are to be on. providers: by request, the resource provider of its device.
        """
        ...

    async def of_server(self, server: str) -> tuple[AcceleratorRequest, ...]:
        """The requests that are bound, or being bound, to a server."""
        ...

    async def discard(self, ids: Collection[str]) -> None:
        """Delete requests, unbinding them. Those that are gone are no error."""
        ...

    async def requests(self) -> tuple[AcceleratorRequest, ...]:
        """All of them."""
        ...


class NoAccelerators:
    """A cloud without an accelerator service."""

    async def groups(self, profile: str) -> tuple[dict[str, str], ...]:
        raise InvalidInput(
            f"The flavor asks for accelerators ({profile}), and this cloud has no accelerator service."
        )

    async def make(self, profile: str) -> tuple[AcceleratorRequest, ...]:
        raise _missing(profile)

    async def bind(self, server: str, host: str, providers: Mapping[str, str]) -> None:
        raise _missing(server)

    async def of_server(self, server: str) -> tuple[AcceleratorRequest, ...]:
        raise _missing(server)

    async def discard(self, ids: Collection[str]) -> None:
        if ids:
            raise _missing(", ".join(sorted(ids)))

    async def requests(self) -> tuple[AcceleratorRequest, ...]:
        return ()


def _missing(what: str) -> NotSupported:
    return NotSupported(
        f"There is no accelerator service, which is needed for {what}.", hint="set accelerator.endpoint"
    )
