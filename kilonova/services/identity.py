"""The identity service (OpenStack: Keystone)."""

from __future__ import annotations

from typing import Protocol

import msgspec


class Token(msgspec.Struct, frozen=True, kw_only=True):
    """A validated token. expires_at: seconds since the epoch."""

    user_id: str
    user_name: str
    user_domain_id: str
    project_id: str | None = None
    project_name: str | None = None
    project_domain_id: str | None = None
    domain_id: str | None = None
    system: bool = False
    roles: tuple[str, ...] = ()
    expires_at: float = 0.0


class IdentityService(Protocol):
    """Validates tokens and answers whether a project exists."""

    async def validate(self, token: str) -> Token:
        """Raises Unauthorized for a bad, revoked or expired token, ServiceUnavailable when it cannot tell."""
        ...

    async def project_exists(self, project_id: str) -> bool: ...
