"""Quotas that the identity service holds as unified limits. Spec: API-644."""

from __future__ import annotations

from kilonova.api.compute.quota_check import UNLIMITED
from kilonova.api.compute.stored_quotas import NETWORK, StoredQuotas
from kilonova.cells.registry import Cells
from kilonova.services.identity import IdentityService

SERVICE = "nova"
RESOURCES = {
    "instances": "servers", "cores": "class:VCPU", "ram": "class:MEMORY_MB", "disk": "class:DISK_GB",
    "metadata_items": "server_metadata_items", "key_pairs": "server_key_pairs", "server_groups": "server_groups",
    "server_group_members": "server_group_members", "injected_files": "server_injected_files",
    "injected_file_content_bytes": "server_injected_file_content_bytes",
    "injected_file_path_bytes": "server_injected_file_path_bytes",
}
"""Names of quotas here and of the limits there."""


class IdentityQuotas(StoredQuotas):
    """Reads the limits there; nobody can change them here. What is not registered there has no limit, but servers:
    none may be made before somebody has said how many."""

    changeable = False

    def __init__(self, cells: Cells, identity: IdentityService) -> None:
        super().__init__(cells)
        self._identity = identity

    async def values(self, project_id: str, user_id: str | None = None) -> dict[str, int]:
        """Those of the project; users have none of their own."""
        return _named(await self._identity.limits(SERVICE, project_id))

    async def class_values(self, name: str) -> dict[str, int]:
        """What holds for projects without limits of their own, whatever the class."""
        return _named(await self._identity.limits(SERVICE, None))


def _named(found: dict[str, int]) -> dict[str, int]:
    known = {quota: found.get(limit, UNLIMITED) for quota, limit in RESOURCES.items()}
    return {**known, "instances": found.get(RESOURCES["instances"], 0), **dict.fromkeys(NETWORK, UNLIMITED)}
