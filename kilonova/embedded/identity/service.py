"""The identity service as the rest of the process uses it."""

from __future__ import annotations

from pathlib import Path

from starlette.types import ASGIApp

from kilonova.db.database import Database
from kilonova.domain.clock import Clock
from kilonova.domain.errors import NotFound, Unauthorized
from kilonova.embedded.identity import access_paths, bootstrap, unified_limits
from kilonova.embedded.identity.api.application import application
from kilonova.embedded.identity.authentication import Authenticator
from kilonova.embedded.identity.bootstrap import BootstrapResult
from kilonova.embedded.identity.catalogue import ONE_MACHINE, VOLUMES
from kilonova.embedded.identity.passwords import Passwords
from kilonova.embedded.identity.realm import Realm
from kilonova.embedded.identity.records import DEFAULT_DOMAIN, Target, TargetKind
from kilonova.embedded.identity.store import IdentityStore, projects, users
from kilonova.embedded.identity.tokens import TokenCodec
from kilonova.embedded.identity.verification import Verifier
from kilonova.services.identity import ServiceRequest, Token


class EmbeddedIdentity:
    """Users, projects, roles, tokens and the catalogue of one-machine mode; an `IdentityService`.

    Args:
        key_file: the keys that sign tokens; made if it does not exist.
        public_url: where clients reach this process, without a path, for example `http://192.0.2.1:8774`.
        volumes: whether there is a volume service, for the catalogue.

    Raises:
        KilonovaError: the key file is damaged.
    """

    def __init__(
        self, database: Database, key_file: Path, clock: Clock, public_url: str, *, volumes: bool = False
    ) -> None:
        store = IdentityStore(database)
        codec = TokenCodec(key_file)
        verifier = Verifier(store, codec, clock)
        passwords = Passwords()
        authenticator = Authenticator(store, codec, verifier, passwords, clock)
        self._realm = Realm(store, verifier, authenticator, passwords, clock)
        self._public_url = public_url.rstrip("/")
        self._offers = (*ONE_MACHINE, *VOLUMES) if volumes else ONE_MACHINE

    async def bootstrap(self, admin_password: str) -> BootstrapResult:
        """Make the tables and the first records, if they are missing. Spec: EMI-37.

        Args:
            admin_password: for user admin when it is made; an admin that exists keeps the password it has.
        """
        store = self._realm.store
        await store.create_tables()
        known = await store.read(bootstrap.admin_exists)
        password_hash = None if known else await self._realm.passwords.hash(admin_password)
        return await store.write(lambda conn: bootstrap.fill(conn, password_hash, self._public_url, self._offers))

    async def validate(
        self, token: str, *, request: ServiceRequest | None = None, allow_expired: bool = False
    ) -> Token:
        """See `IdentityService.validate`. Spec: EMI-48, EMI-50."""
        verified = await self._realm.verifier.verify(token, allow_expired=allow_expired)
        rules = verified.access_rules
        if rules and (request is None or not access_paths.allowed(rules, request)):
            raise Unauthorized("The token's access rules do not allow this request.")
        return verified.for_services

    async def project_exists(self, project_id: str) -> bool:
        return await self._realm.store.read(lambda conn: projects.find(conn, project_id)) is not None

    async def limits(self, service: str, project_id: str | None) -> dict[str, int]:
        """See `IdentityService.limits`."""
        return await self._realm.store.read(lambda conn: unified_limits.of_service(conn, service, project_id))

    async def service_token(self, name: str) -> str:
        """A token of a service user, scoped to project service. Spec: EMI-51.

        Raises:
            NotFound: there is no such user, or no project `service`. Unauthorized: it lost its role.
        """
        user, project = await self._realm.store.read(lambda conn: (
            users.named(conn, name, domain_id=DEFAULT_DOMAIN),
            projects.named(conn, bootstrap.SERVICE_PROJECT, domain_id=DEFAULT_DOMAIN),
        ))
        if user is None or project is None:
            raise NotFound(f"There is no service user {name} with a project.", hint="restart to have it made again")
        return await self._realm.authenticator.vouch_for(user, Target(TargetKind.PROJECT, project.id))

    def application(self) -> ASGIApp:
        """The HTTP API, to be mounted at /identity."""
        return application(self._realm, self, f"{self._public_url}/identity")

    def close(self) -> None:
        """End the threads that check passwords."""
        self._realm.passwords.close()
