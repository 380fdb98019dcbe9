"""What the API may ask for: each call checks, journals an operation and returns; the work follows.

Raises from every call on a server: InstanceNotFound, InstanceInvalidState, InstanceLocked, InstanceNotReady,
ServiceUnavailable (409 and 503 texts as the Compute API has them). Nothing is written when a call raises.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from kilonova.cells.registry import Cell, Located
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import NoValidHost
from kilonova.domain.instance import BuildRequest
from kilonova.domain.operation import ExternalEvent, OperationRecord
from kilonova.engine.operation import Operation
from kilonova.hypervisor.diagnostics import Diagnostics, OwnDiagnostics
from kilonova.operations.refused_moves import Move
from kilonova.services.placement import Pin


class Compute(Protocol):
    """Operations on servers, as the API sees them. Policy has been checked before a call is made."""

    async def create(self, context: RequestContext, requests: list[BuildRequest]) -> None:
        """Accept new servers; returns when they are durable. Building follows at once."""
        ...

    async def delete(self, context: RequestContext, server: Located, *, force: bool = False) -> None:
        """Delete for good, or softly if deleted servers are kept for a while. force: for good. Spec: API-112."""
        ...

    async def stop(self, context: RequestContext, server: Located, *, clean: bool = True) -> None: ...

    async def ask(
        self, context: RequestContext, server: Located, definition: Operation, request: msgspec.Struct
    ) -> None:
        """Ask for any operation on a server that takes no more than its request. Spec: API-064 for the lock."""
        ...

    async def ask_and_wait(
        self, context: RequestContext, server: Located, definition: Operation, request: msgspec.Struct
    ) -> OperationRecord:
        """The same, and wait for its end; it goes on if nobody waits any more.

        Raises:
            What it failed with, with the status of that; KilonovaError: it has not ended in time.
        """
        ...

    async def ask_and_wait_for(
        self, context: RequestContext, server: Located, definition: Operation, request: msgspec.Struct, step: str
    ) -> OperationRecord:
        """Ask for an operation, and wait until a step of it is done, for half a minute at most.

        Raises:
            What it failed with before, with the status of that.
        """
        ...

    async def reboot(self, context: RequestContext, server: Located, *, hard: bool) -> None: ...

    async def create_image(
        self, context: RequestContext, server: Located, name: str, metadata: dict[str, str]
    ) -> str:
        """Make an image of a server's disk; returns its id when its record exists.

        Raises:
            InvalidInput: the server has no disk of its own, or a metadata key is an attribute of images.
            OverQuota: the project has too many images.
        """
        ...

    async def create_backup(
        self, context: RequestContext, server: Located, name: str, metadata: dict[str, str], *, backup_type: str,
        rotation: int | None,
    ) -> str:
        """The same, then delete the oldest backups of that type but `rotation`; None keeps all."""
        ...

    async def shelve(self, context: RequestContext, server: Located) -> None:
        """Switch a server off and keep an image of its disk. Raises InvalidInput: it has no disk of its own."""
        ...

    async def cache_images(
        self, context: RequestContext, cell: Cell, aggregate: str, hosts: Sequence[str], images: Sequence[str]
    ) -> None:
        """Fetch images to hosts of a cell that are in an aggregate (its UUID)."""
        ...

    async def unshelve(
        self, context: RequestContext, server: Located, *, host: str | None = None, pin: Pin | None = None
    ) -> None:
        """Start a shelved server again: where it is, or if it was offloaded, on a host that is chosen.

        Args:
            host: this one and no other. pin: a change of the zone that it is tied to. Only for an offloaded one.
        """
        ...

    async def refuse_move(self, context: RequestContext, server: Located, move: Move) -> NoValidHost:
        """Write down that a server was to be moved to another host, and why it is not; returns that."""
        ...

    async def reset_state(self, context: RequestContext, server: Located, *, active: bool) -> None:
        """Set vm_state to active or error, and no task. Spec: API-141."""
        ...

    async def lock(self, context: RequestContext, server: Located, reason: str | None) -> None: ...

    async def unlock(self, context: RequestContext, server: Located) -> None: ...

    async def tell(self, server: Located, event: ExternalEvent) -> None:
        """Keep an event for the operation on a server in a cell; without one it is dropped. Spec: EVT-04, EVT-08."""
        ...

    async def change_password(self, context: RequestContext, server: Located, password: str) -> None:
        """Set the password of the guest's administrator; returns when that is done. Spec: API-123.

        Raises also: Conflict, NotSupported (the guest or its driver cannot or will not).
        """
        ...

    async def diagnostics(self, server: Located) -> Diagnostics:
        """What the hypervisor counts for a running guest, in the form of all drivers. Spec: DIA-01 to DIA-06.

        Raises only: InstanceNotReady; Conflict: the guest does not run; NotSupported, ServiceUnavailable.
        """
        ...

    async def own_diagnostics(self, server: Located) -> OwnDiagnostics:
        """The same in the driver's own form. Raises the same."""
        ...

    async def console_output(self, context: RequestContext, server: Located, lines: int | None) -> str:
        """The last lines of the serial console; None for all that is kept."""
        ...
