"""Shared file systems: directories of hosts that guests see under a tag. Spec: API-185, API-472."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from kilonova.domain.states import PowerState

LONGEST_TAG = 36
"""Bytes of a tag that virtio has room for."""


class ShareStatus(StrEnum):
    """How far a share is attached to a server. INACTIVE and ACTIVE differ in whether its guest is on."""

    ATTACHING = "attaching"
    INACTIVE = "inactive"
    ACTIVE = "active"
    DETACHING = "detaching"
    ERROR = "error"


class ShareMapping(msgspec.Struct, frozen=True, kw_only=True):
    """A share of a server.

    Args:
        tag: the name under which the guest finds it.
        export_location: the directory on every host.
        status: ACTIVE is not stored; see `shown_status`.
    """

    uuid: str
    share_id: str
    tag: str
    export_location: str
    status: ShareStatus

    @property
    def described(self) -> bool:
        """Whether the guest gets it when it starts."""
        return self.status not in (ShareStatus.ATTACHING, ShareStatus.DETACHING)

    def shown_status(self, power_state: PowerState) -> ShareStatus:
        """What users see. A guest that is on has every share that is attached, because none is attached meanwhile."""
        on = power_state in (PowerState.RUNNING, PowerState.PAUSED)
        return ShareStatus.ACTIVE if on and self.status is ShareStatus.INACTIVE else self.status
