"""What a caller may do. Spec: EMI-53.

Changes need role admin. Reading everything needs admin, or reader on the system; reader on a domain reads what
belongs to that domain. Services may look single things up.
"""

from __future__ import annotations

from starlette.requests import Request

from kilonova.domain.errors import Forbidden
from kilonova.embedded.http import caller as request_caller
from kilonova.embedded.http import is_vouched_for
from kilonova.embedded.identity.realm import Realm
from kilonova.embedded.identity.records import TargetKind
from kilonova.embedded.identity.verification import VerifiedToken


class Caller:
    """The token that a request came with, as rules see it."""

    def __init__(self, token: VerifiedToken) -> None:
        self.token = token
        self.user_id = token.user.id
        self.role_names = frozenset(role.name for role in token.roles)
        self.is_admin = "admin" in self.role_names
        self.is_service = "service" in self.role_names

    @property
    def reads_all(self) -> bool:
        return self.is_admin or (self.token.scope is TargetKind.SYSTEM and "reader" in self.role_names)

    @property
    def readable_domain(self) -> str | None:
        """The domain whose users, groups and projects the caller may list, if it is only one."""
        domain = self.token.domain
        if self.is_admin or domain is None or self.token.scope is not TargetKind.DOMAIN:
            return None
        return domain.id if "reader" in self.role_names else None

    def reads_domain(self, domain_id: str) -> bool:
        return self.reads_all or self.readable_domain == domain_id

    def require(self, allowed: bool) -> None:
        """Raises Forbidden unless allowed."""
        if not allowed:
            raise Forbidden("You are not authorized to perform the requested action.")

    def require_admin(self) -> None:
        self.require(self.is_admin)

    def require_self_or_admin(self, user_id: str) -> None:
        self.require(self.is_admin or user_id == self.user_id)

    def require_unrestricted(self) -> None:
        """Raises Forbidden for a token of a restricted application credential. Spec: EMI-45."""
        credential = self.token.credential
        if credential is not None and not credential.unrestricted:
            raise Forbidden("This application credential may not manage application credentials.")


async def caller_of(request: Request, realm: Realm) -> Caller:
    token = request_caller(request).token
    return Caller(await realm.verifier.verify(token, allow_expired=is_vouched_for(request)))
