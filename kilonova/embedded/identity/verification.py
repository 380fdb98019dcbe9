"""Checking tokens: what a token stands for now, from the records as they are now.

Every request to every service passes here, so results are kept for a moment. A change to any identity record
made by this process drops them all (Spec: EMI-36, EMI-41); one made by another process, on a shared database,
is seen after `KEPT` seconds.
"""

from __future__ import annotations

from functools import cached_property

import msgspec
import sqlalchemy as sa

from kilonova.domain.clock import Clock
from kilonova.domain.errors import Unauthorized
from kilonova.embedded.identity import catalogue, grants, schema
from kilonova.embedded.identity.records import (
    AccessRule,
    ApplicationCredential,
    Domain,
    Project,
    Role,
    Target,
    TargetKind,
    User,
)
from kilonova.embedded.identity.store import (
    IdentityStore,
    access_rules,
    application_credentials,
    domains,
    projects,
    users,
)
from kilonova.embedded.identity.tokens import Claims, TokenCodec
from kilonova.services.identity import Token

KEPT = 5.0
"""Seconds that the result of a check is used again."""

MOST_KEPT = 4096
EXPIRED_WINDOW = 48 * 3600.0
"""Seconds after expiry that a service may still have a token confirmed. Spec: EMI-35."""


class VerifiedToken(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """A token and what it stands for. domain: of the project, or the one the token is scoped to."""

    claims: Claims
    user: User
    user_domain: Domain
    project: Project | None = None
    domain: Domain | None = None
    roles: tuple[Role, ...] = ()
    credential: ApplicationCredential | None = None
    access_rules: tuple[AccessRule, ...] = ()

    @property
    def scope(self) -> TargetKind | None:
        return self.claims.target.kind if self.claims.target else None

    @cached_property
    def for_services(self) -> Token:
        """The token as the other services see it."""
        project = self.project
        return Token(
            user_id=self.user.id,
            user_name=self.user.name,
            user_domain_id=self.user.domain_id,
            project_id=project.id if project else None,
            project_name=project.name if project else None,
            project_domain_id=project.domain_id if project else None,
            domain_id=self.domain.id if self.domain and self.scope is TargetKind.DOMAIN else None,
            system=self.scope is TargetKind.SYSTEM,
            roles=tuple(role.name for role in self.roles),
            expires_at=self.claims.expires_at,
        )


class Verifier:
    """Turns what a client sent as a token into what it stands for."""

    def __init__(self, store: IdentityStore, codec: TokenCodec, clock: Clock) -> None:
        self._store = store
        self._codec = codec
        self._clock = clock
        self._kept: dict[str, tuple[VerifiedToken, float]] = {}
        self._catalogue: tuple[catalogue.Catalogue, float] | None = None
        self._changes = store.changes

    async def verify(self, secret: str, *, allow_expired: bool = False) -> VerifiedToken:
        """Check a token.

        Args:
            allow_expired: accept one that expired less than `EXPIRED_WINDOW` ago.

        Raises:
            Unauthorized: not made here, expired, revoked, or its user, project, domain or roles are gone.
        """
        self._drop_stale()
        kept = self._kept.get(secret)
        if kept and self._clock.monotonic() < kept[1]:
            self._require_time(kept[0].claims, allow_expired)
            return kept[0]
        claims = self._codec.decode(secret)
        self._require_time(claims, allow_expired)
        changes = self._store.changes
        token = await self._store.read(lambda conn: look_up(conn, claims))
        if changes == self._store.changes:
            self._keep(secret, token)
        return token

    async def catalogue(self) -> catalogue.Catalogue:
        """The catalogue's records, kept like tokens."""
        self._drop_stale()
        if self._catalogue and self._clock.monotonic() < self._catalogue[1]:
            return self._catalogue[0]
        changes = self._store.changes
        loaded = await self._store.read(catalogue.load)
        if changes == self._store.changes:
            self._catalogue = (loaded, self._clock.monotonic() + KEPT)
        return loaded

    def _keep(self, secret: str, token: VerifiedToken) -> None:
        self._drop_stale()
        if len(self._kept) >= MOST_KEPT:
            self._kept.clear()
        self._kept[secret] = (token, self._clock.monotonic() + KEPT)

    def _drop_stale(self) -> None:
        if self._changes != self._store.changes:
            self._changes = self._store.changes
            self._kept.clear()
            self._catalogue = None

    def _require_time(self, claims: Claims, allow_expired: bool) -> None:
        if self._clock.now() >= claims.expires_at + (EXPIRED_WINDOW if allow_expired else 0.0):
            raise Unauthorized("The token has expired.")


def look_up(conn: sa.Connection, claims: Claims) -> VerifiedToken:
    """What the claims stand for now. Raises Unauthorized."""
    if _is_revoked(conn, claims):
        raise Unauthorized("The token has been revoked.")
    user = users.find(conn, claims.user_id)
    if user is None or not user.enabled or user.token_epoch != claims.epoch:
        raise Unauthorized("The user of the token may no longer use it.")
    user_domain = _enabled_domain(conn, user.domain_id)
    target = claims.target
    if target is None:
        return VerifiedToken(claims=claims, user=user, user_domain=user_domain)
    project = domain = None
    if target.kind is TargetKind.PROJECT:
        project = projects.find(conn, target.id)
        if project is None or not project.enabled:
            raise Unauthorized("The project of the token is gone or disabled.")
        domain = _enabled_domain(conn, project.domain_id)
    elif target.kind is TargetKind.DOMAIN:
        domain = _enabled_domain(conn, target.id)
    credential = _credential(conn, claims)
    return VerifiedToken(
        claims=claims, user=user, user_domain=user_domain, project=project, domain=domain,
        roles=_roles(conn, user, target, credential), credential=credential,
        access_rules=_access_rules(conn, credential),
    )


def _is_revoked(conn: sa.Connection, claims: Claims) -> bool:
    column = schema.revoked_tokens.c.audit_id
    return conn.execute(sa.select(column).where(column == claims.audit_ids[0])).first() is not None


def _enabled_domain(conn: sa.Connection, domain_id: str) -> Domain:
    domain = domains.find(conn, domain_id)
    if domain is None or not domain.enabled:
        raise Unauthorized("The domain of the token is gone or disabled.")
    return domain


def _credential(conn: sa.Connection, claims: Claims) -> ApplicationCredential | None:
    if claims.application_credential_id is None:
        return None
    credential = application_credentials.find(conn, claims.application_credential_id)
    if credential is None:
        raise Unauthorized("The application credential of the token is gone.")
    return credential


def _roles(conn: sa.Connection, user: User, target: Target,
           credential: ApplicationCredential | None) -> tuple[Role, ...]:
    held = grants.effective_role_ids(conn, user.id, target)
    if credential is not None:
        if not held.issuperset(credential.role_ids):
            raise Unauthorized("The user no longer holds every role of the application credential.")
        held = grants.expand(set(credential.role_ids), grants.inferences(conn))
    roles = grants.token_roles(conn, held)
    if not roles:
        raise Unauthorized("The user has no role on what the token is scoped to.")
    return roles


def _access_rules(conn: sa.Connection, credential: ApplicationCredential | None) -> tuple[AccessRule, ...]:
    if credential is None or not credential.access_rule_ids:
        return ()
    return tuple(access_rules.matching(conn, schema.access_rules.c.id.in_(credential.access_rule_ids)))
