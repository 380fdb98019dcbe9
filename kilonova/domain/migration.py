"""A migration: what is known of a server's change of flavor or of host, while it happens and afterwards."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from kilonova.domain.flavor import Flavor
from kilonova.domain.states import VmState


class MigrationType(StrEnum):
    """What kind of move it is, by the names the ecosystem knows."""

    RESIZE = "resize"
    COLD = "migration"
    LIVE = "live-migration"
    EVACUATION = "evacuation"


class MigrationStatus(StrEnum):
    """How far it is. From FINISHED on a user decides: confirm or revert."""

    PRE_MIGRATING = "pre-migrating"
    QUEUED = "queued"
    PREPARING = "preparing"
    RUNNING = "running"
    MIGRATING = "migrating"
    POST_MIGRATING = "post-migrating"
    FINISHED = "finished"
    CONFIRMING = "confirming"
    CONFIRMED = "confirmed"
    REVERTING = "reverting"
    REVERTED = "reverted"
    ERROR = "error"
    FAILED = "failed"


UNDECIDED = frozenset({MigrationStatus.FINISHED, MigrationStatus.CONFIRMING, MigrationStatus.REVERTING})
"""The server has arrived, and what it had before is still kept."""

ON_THE_WAY = frozenset({MigrationStatus.PRE_MIGRATING, MigrationStatus.MIGRATING, MigrationStatus.POST_MIGRATING})
"""The server has not arrived yet."""


LIVE_IN_PROGRESS = frozenset(
    {MigrationStatus.QUEUED, MigrationStatus.PREPARING, MigrationStatus.RUNNING, MigrationStatus.POST_MIGRATING}
)
"""Of a live migration: it is shown below its server."""


class Migration(msgspec.Struct, frozen=True, kw_only=True):
    """One migration record. Times are seconds since the epoch.

    Args:
        id: row number. user_id, project_id: who asked for it.
        dest_address: IP address of the destination.
        old_flavor, new_flavor, old_vm_state: what a revert goes back to and what a resize leads to.
        hidden: never shown.
    """

    id: int = 0
    uuid: str
    instance_uuid: str
    user_id: str | None = None
    project_id: str | None = None
    migration_type: MigrationType
    status: MigrationStatus
    source_compute: str | None = None
    source_node: str | None = None
    dest_compute: str | None = None
    dest_node: str | None = None
    dest_address: str | None = None
    old_flavor: Flavor
    new_flavor: Flavor
    old_vm_state: VmState
    hidden: bool = False
    created_at: float = 0.0
    updated_at: float | None = None
