"""The service of shared file systems (OpenStack: Manila)."""

from __future__ import annotations

from typing import Protocol

import msgspec

from kilonova.domain.context import RequestContext


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """A share. export_location: a directory that the hosts have."""

    id: str
    export_location: str


class ShareService(Protocol):
    async def show(self, context: RequestContext, share_id: str) -> Share:
        """Find a share. Raises NotFound: there is none, or the caller's project may not use it."""
        ...
