"""What placement refuses, with the codes its API gives. Spec: EMP-03, API-705."""

from __future__ import annotations

from typing import ClassVar

from kilonova.domain.errors import Conflict, NotFound


class PlacementConflict(Conflict):
    """A write that placement refuses. code: what API clients switch on."""

    code: ClassVar[str] = "placement.undefined_code"


class ConcurrentUpdate(PlacementConflict):
    """Someone else changed the provider or consumer since the caller read it. Spec: EMP-02, API-743."""

    code = "placement.concurrent_update"


class InventoryInUse(PlacementConflict):
    """Inventory that allocations use cannot be removed. Spec: API-748."""

    code = "placement.inventory.inuse"


class DuplicateName(PlacementConflict):
    """A provider's name or uuid is taken. Spec: API-715."""

    code = "placement.duplicate_name"


class ProviderInUse(PlacementConflict):
    """A provider with allocations cannot be removed. Spec: API-718."""

    code = "placement.resource_provider.inuse"


class CannotDeleteParent(PlacementConflict):
    """A provider with children cannot be removed. Spec: API-718."""

    code = "placement.resource_provider.cannot_delete_parent"


class ProviderNotFound(NotFound):
    """There is no such provider."""

    code: ClassVar[str] = "placement.resource_provider.not_found"

    def __init__(self, uuid: str) -> None:
        super().__init__(f"No resource provider with uuid {uuid} found.")
