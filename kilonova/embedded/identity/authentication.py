"""Logging in: from an authentication request to a token. Spec: EMI-29 to EMI-32, EMI-47."""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa
from msgspec import UNSET, UnsetType

from kilonova.domain.clock import Clock
from kilonova.domain.errors import Forbidden, InvalidInput, Unauthorized
from kilonova.embedded.identity.passwords import Passwords
from kilonova.embedded.identity.records import SYSTEM, ApplicationCredential, Domain, Target, TargetKind, User
from kilonova.embedded.identity.store import IdentityStore, application_credentials, domains, projects, users
from kilonova.embedded.identity.tokens import Claims, TokenCodec, new_audit_id
from kilonova.embedded.identity.verification import VerifiedToken, Verifier, look_up

LIFETIME = 3600.0
"""Seconds that a token from a password or application credential is valid."""

METHODS = ("password", "application_credential", "external", "token")
"""The order in which a token lists how its user authenticated."""


class DomainRef(msgspec.Struct, frozen=True):
    id: str | None = None
    name: str | None = None


class UserRef(msgspec.Struct, frozen=True):
    id: str | None = None
    name: str | None = None
    domain: DomainRef | None = None
    password: str | None = None


class PasswordMethod(msgspec.Struct, frozen=True):
    user: UserRef


class TokenMethod(msgspec.Struct, frozen=True):
    id: str


class CredentialMethod(msgspec.Struct, frozen=True):
    secret: str
    id: str | None = None
    name: str | None = None
    user: UserRef | None = None


class IdentityPart(msgspec.Struct, frozen=True):
    methods: list[str]
    password: PasswordMethod | None = None
    token: TokenMethod | None = None
    application_credential: CredentialMethod | None = None


class ProjectRef(msgspec.Struct, frozen=True):
    id: str | None = None
    name: str | None = None
    domain: DomainRef | None = None


class ScopeRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    project: ProjectRef | None = None
    domain: DomainRef | None = None
    system: dict[str, bool] | None = None
    unscoped: dict[str, Any] | UnsetType = UNSET

    def count(self) -> int:
        return sum(each is not None for each in (self.project, self.domain, self.system)) + (
            self.unscoped is not UNSET
        )


class AuthPart(msgspec.Struct, frozen=True):
    identity: IdentityPart
    scope: ScopeRef | str | None = None


class AuthRequest(msgspec.Struct, frozen=True):
    """The body of POST /v3/auth/tokens."""

    auth: AuthPart


class Proof(msgspec.Struct, frozen=True, kw_only=True):
    """What one method has shown.

    Args:
        epoch: the user's token epoch as read with the secret that was checked, so that a password changed
            meanwhile makes the new token worthless.
        expires_at: the latest the new token may expire.
        root_audit_id: of the first token in the chain, for a rescoped one.
    """

    user_id: str
    epoch: int
    methods: tuple[str, ...]
    expires_at: float
    root_audit_id: str | None = None
    credential: ApplicationCredential | None = None


class Authenticator:
    """Issues tokens."""

    def __init__(self, store: IdentityStore, codec: TokenCodec, verifier: Verifier, passwords: Passwords,
                 clock: Clock) -> None:
        self._store = store
        self._codec = codec
        self._verifier = verifier
        self._passwords = passwords
        self._clock = clock

    async def authenticate(self, request: AuthPart) -> tuple[str, VerifiedToken]:
        """Check every method named and issue a token; returns what the client gets and what it stands for.

        Raises:
            InvalidInput: the request is malformed.
            Unauthorized: a method fails, or the user has no role on what it asks for.
            Forbidden: a token that may not be rescoped.
        """
        methods = dict.fromkeys(request.identity.methods)
        if not methods:
            raise InvalidInput("auth.identity.methods must name at least one method.")
        proofs = [await self._prove(method, request.identity) for method in methods]
        if len({proof.user_id for proof in proofs}) != 1:
            raise _refused()
        if any(proof.credential for proof in proofs) and request.scope is not None:
            raise Unauthorized("Application credentials cannot request a scope.")
        return await self._issue(proofs, request.scope)

    async def vouch_for(self, user: User, target: Target) -> str:
        """A token for a service of this process, which needs no password to be believed. Spec: EMI-51."""
        proof = Proof(user_id=user.id, epoch=user.token_epoch, methods=("external",),
                      expires_at=self._clock.now() + LIFETIME)
        claims = self._claims([proof], target)
        await self._store.read(lambda conn: look_up(conn, claims))
        return self._codec.encode(claims)

    async def _prove(self, method: str, identity: IdentityPart) -> Proof:
        if method == "password":
            return await self._password(_given(identity.password, method))
        if method == "token":
            return await self._token(_given(identity.token, method))
        if method == "application_credential":
            return await self._application_credential(_given(identity.application_credential, method))
        raise Unauthorized(f"Attempted to authenticate with an unsupported method: {method[:64]}.")

    async def _password(self, method: PasswordMethod) -> Proof:
        if method.user.password is None:
            raise InvalidInput("auth.identity.password.user.password is missing.")
        user = await self._store.read(lambda conn: _find_user(conn, method.user))
        matches = await self._passwords.matches(user.password_hash if user else None, method.user.password)
        if user is None or not matches:
            raise _refused()
        return Proof(user_id=user.id, epoch=user.token_epoch, methods=("password",),
                     expires_at=self._clock.now() + LIFETIME)

    async def _token(self, method: TokenMethod) -> Proof:
        try:
            parent = await self._verifier.verify(method.id)
        except Unauthorized as error:
            raise _refused() from error
        if parent.credential is not None:
            raise Forbidden("A token from an application credential cannot be rescoped.")
        claims = parent.claims
        return Proof(user_id=claims.user_id, epoch=claims.epoch, methods=(*claims.methods, "token"),
                     expires_at=claims.expires_at, root_audit_id=claims.audit_ids[-1])

    async def _application_credential(self, method: CredentialMethod) -> Proof:
        found = await self._store.read(lambda conn: _find_credential(conn, method))
        credential, user = found or (None, None)
        matches = await self._passwords.matches(credential.secret_hash if credential else None, method.secret)
        if credential is None or user is None or not matches:
            raise _refused()
        now = self._clock.now()
        if credential.expires_at is not None and credential.expires_at <= now:
            raise _refused()
        return Proof(user_id=user.id, epoch=user.token_epoch, methods=("application_credential",),
                     expires_at=min(now + LIFETIME, credential.expires_at or now + LIFETIME), credential=credential)

    async def _issue(self, proofs: list[Proof], scope: ScopeRef | str | None) -> tuple[str, VerifiedToken]:
        credential = next((proof.credential for proof in proofs if proof.credential), None)
        try:
            token = await self._store.read(lambda conn: self._scoped(conn, proofs, scope, credential))
        except Unauthorized as error:
            raise _refused() from error
        return self._codec.encode(token.claims), token

    def _scoped(self, conn: sa.Connection, proofs: list[Proof], scope: ScopeRef | str | None,
                credential: ApplicationCredential | None) -> VerifiedToken:
        if credential is not None:
            return look_up(conn, self._claims(proofs, Target(TargetKind.PROJECT, credential.project_id)))
        if scope is not None:
            return look_up(conn, self._claims(proofs, _find_target(conn, scope)))
        user = users.find(conn, proofs[0].user_id)
        if user is not None and user.default_project_id is not None:
            try:
                return look_up(conn, self._claims(proofs, Target(TargetKind.PROJECT, user.default_project_id)))
            except Unauthorized:  # the default project is of no use, which leaves the user unscoped
                return look_up(conn, self._claims(proofs, None))
        return look_up(conn, self._claims(proofs, None))

    def _claims(self, proofs: list[Proof], target: Target | None) -> Claims:
        used = {method for proof in proofs for method in proof.methods}
        roots = tuple(proof.root_audit_id for proof in proofs if proof.root_audit_id)[:1]
        credential = next((proof.credential for proof in proofs if proof.credential), None)
        return Claims(
            user_id=proofs[0].user_id,
            methods=tuple(method for method in METHODS if method in used),
            target=target,
            issued_at=self._clock.now(),
            expires_at=min(proof.expires_at for proof in proofs),
            audit_ids=(new_audit_id(), *roots),
            epoch=min(proof.epoch for proof in proofs),
            application_credential_id=credential.id if credential else None,
        )


def _refused() -> Unauthorized:
    """One message for every reason, so that it does not tell what exists."""
    return Unauthorized("The request you have made requires authentication.")


def _given(value: Any, method: str) -> Any:
    if value is None:
        raise InvalidInput(f"auth.identity.{method} is missing.")
    return value


def _find_domain(conn: sa.Connection, ref: DomainRef | None) -> Domain | None:
    if ref is None or (ref.id is None and ref.name is None):
        raise InvalidInput("A name needs the domain that it belongs to, by id or name.")
    if ref.id is not None:
        return domains.find(conn, ref.id)
    return domains.named(conn, ref.name or "")


def _find_user(conn: sa.Connection, ref: UserRef) -> User | None:
    if ref.id is not None:
        return users.find(conn, ref.id)
    if ref.name is None:
        raise InvalidInput("A user is named by id, or by name and domain.")
    domain = _find_domain(conn, ref.domain)
    return users.named(conn, ref.name, domain_id=domain.id) if domain else None


def _find_credential(conn: sa.Connection, method: CredentialMethod) -> tuple[ApplicationCredential, User] | None:
    credential: ApplicationCredential | None
    if method.id is not None:
        credential = application_credentials.find(conn, method.id)
    elif method.name is not None and method.user is not None:
        owner = _find_user(conn, method.user)
        credential = application_credentials.named(conn, method.name, user_id=owner.id) if owner else None
    else:
        raise InvalidInput("An application credential is named by id, or by name and user.")
    user = users.find(conn, credential.user_id) if credential else None
    return (credential, user) if credential and user else None


def _find_target(conn: sa.Connection, scope: ScopeRef | str) -> Target | None:
    if isinstance(scope, str):
        if scope != "unscoped":
            raise InvalidInput('auth.scope must be an object or "unscoped".')
        return None
    if scope.count() != 1:
        raise InvalidInput("auth.scope must name exactly one of project, domain, system and unscoped.")
    if scope.project is not None:
        return Target(TargetKind.PROJECT, _find_project_id(conn, scope.project))
    if scope.domain is not None:
        domain = _find_domain(conn, scope.domain)
        if domain is None:
            raise _refused()
        return Target(TargetKind.DOMAIN, domain.id)
    if scope.system is not None:
        if scope.system != {"all": True}:
            raise InvalidInput('auth.scope.system must be {"all": true}.')
        return SYSTEM
    return None


def _find_project_id(conn: sa.Connection, ref: ProjectRef) -> str:
    if ref.id is not None:
        return ref.id
    if ref.name is None:
        raise InvalidInput("A project is named by id, or by name and domain.")
    domain = _find_domain(conn, ref.domain)
    project = projects.named(conn, ref.name, domain_id=domain.id) if domain else None
    if project is None:
        raise _refused()
    return project.id
