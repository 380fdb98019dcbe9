"""The identity service (OpenStack: Keystone)."""

from __future__ import annotations

from typing import Protocol

import msgspec

from kilonova.domain.errors import Unauthorized

SERVICE_ROLE = "service"
"""The role by which services know each other."""


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


class ServiceRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request as access rules speak of it.

    Args:
        service: its type in the catalogue. path: below the service's place in the catalogue, `/v2.1/servers`.
    """

    service: str
    method: str
    path: str


class IdentityService(Protocol):
    """Validates tokens and answers whether a project exists."""

    async def validate(
        self, token: str, *, request: ServiceRequest | None = None, allow_expired: bool = False
    ) -> Token:
        """What a token stands for.

        Args:
            request: what it is to be used for; without it a token that is limited to some requests is refused.
            allow_expired: take one that has expired lately, too.

        Raises:
            Unauthorized: it is bad, revoked, expired or not for this request. ServiceUnavailable: nobody can tell.
        """
        ...

    async def project_exists(self, project_id: str) -> bool: ...

    async def limits(self, service: str, project_id: str | None) -> dict[str, int]:
        """The unified limits of a service, by resource.

        Args:
            service: its name in the catalogue. project_id: whose own limits replace the registered ones; None for
                the registered ones alone.
        """
        ...


async def authenticate(
    identity: IdentityService, token: str, service_token: str, request: ServiceRequest
) -> Token:
    """The user who makes a request, from its `X-Auth-Token` and `X-Service-Token` (empty: not sent).

    A service that passes on a user's request vouches for it with a token of its own: then the user's may have
    expired on the way.

    Raises:
        Unauthorized: one of the tokens is not valid, or the second is no service's. ServiceUnavailable.

    Spec: EMI-48, EMI-49, EMI-50.
    """
    if not token:
        raise Unauthorized("The request you have made requires authentication.")
    if not service_token:
        return await identity.validate(token, request=request)
    try:
        service = await identity.validate(service_token)
    except Unauthorized as error:
        raise Unauthorized(f"The service token is not valid: {error.message}") from error
    if SERVICE_ROLE not in service.roles:
        raise Unauthorized(f"The service token does not hold the role {SERVICE_ROLE}.")
    return await identity.validate(token, request=request, allow_expired=True)
