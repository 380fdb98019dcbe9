"""Tokens over HTTP, and what a token can be scoped to. Spec: EMI-24, EMI-29 to EMI-36."""

from __future__ import annotations

import contextlib

import sqlalchemy as sa
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kilonova.domain.clock import iso_microseconds
from kilonova.domain.errors import Conflict, Forbidden, NotFound, Unauthorized
from kilonova.embedded.http import empty_response, json_object, json_response
from kilonova.embedded.identity import grants, schema
from kilonova.embedded.identity.api.access import Caller, caller_of
from kilonova.embedded.identity.api.bodies import Attributes, convert, flag, listing, self_link
from kilonova.embedded.identity.api.domains import Domains
from kilonova.embedded.identity.api.projects import Projects
from kilonova.embedded.identity.api.resource import route
from kilonova.embedded.identity.authentication import AuthRequest
from kilonova.embedded.identity.catalogue import CatalogueEntry
from kilonova.embedded.identity.realm import Realm
from kilonova.embedded.identity.records import Domain, TargetKind
from kilonova.embedded.identity.verification import EXPIRED_WINDOW, VerifiedToken


class Auth:
    def __init__(self, realm: Realm) -> None:
        self.realm = realm

    def routes(self) -> list[Route]:
        return [
            route("/auth/tokens", "POST", self.issue),
            route("/auth/tokens", "GET", self.show),
            route("/auth/tokens", "DELETE", self.revoke),
            route("/auth/catalog", "GET", self.catalogue),
            route("/auth/projects", "GET", self.list_projects),
            route("/auth/domains", "GET", self.list_domains),
            route("/auth/system", "GET", self.show_system),
        ]

    async def issue(self, request: Request) -> Response:
        body = convert(await json_object(request), AuthRequest)
        secret, token = await self.realm.authenticator.authenticate(body.auth)
        return await self._answer(request, token, secret, 201)

    async def show(self, request: Request) -> Response:
        """GET and HEAD: what a token stands for."""
        _, secret, token = await self._subject(request)
        if request.method == "HEAD":
            return empty_response(200, {"X-Subject-Token": secret, "Vary": "X-Auth-Token"})
        return await self._answer(request, token, secret, 200)

    async def revoke(self, request: Request) -> Response:
        caller, _, token = await self._subject(request)
        caller.require_self_or_admin(token.user.id)
        now = self.realm.clock.now()
        with contextlib.suppress(Conflict):  # another request revoked it at the same moment
            await self.realm.store.write(lambda conn: _revoke(conn, token, now))
        return empty_response()

    async def catalogue(self, request: Request) -> Response:
        caller = await caller_of(request, self.realm)
        if caller.token.claims.target is None:
            raise Forbidden("The catalog needs a scoped token.")
        return json_response({
            "catalog": await self._entries(caller.token), "links": self_link(request, "auth", "catalog")
        })

    async def list_projects(self, request: Request) -> Response:
        caller = await caller_of(request, self.realm)
        found = await self.realm.store.read(lambda conn: grants.projects_of(conn, caller.user_id))
        render = Projects(self.realm).render
        items = [render(request, project) for project in found if project.enabled]
        return json_response(listing(request, "projects", items))

    async def list_domains(self, request: Request) -> Response:
        caller = await caller_of(request, self.realm)
        found = await self.realm.store.read(lambda conn: grants.domains_of(conn, caller.user_id))
        render = Domains(self.realm).render
        return json_response(listing(request, "domains", [render(request, each) for each in found if each.enabled]))

    async def show_system(self, request: Request) -> Response:
        caller = await caller_of(request, self.realm)
        held = await self.realm.store.read(lambda conn: grants.has_system_role(conn, caller.user_id))
        return json_response({"system": [{"all": True}] if held else [], "links": self_link(request, "auth", "system")})

    async def _subject(self, request: Request) -> tuple[Caller, str, VerifiedToken]:
        """The caller, and the token it asks about. Spec: EMI-34, EMI-35.

        Raises NotFound for a token that is not valid, Forbidden for another user's token.
        """
        caller = await caller_of(request, self.realm)
        secret = request.headers.get("x-subject-token", "")
        allow_expired = bool(flag(request, "allow_expired")) and caller.is_service
        try:
            token = await self.realm.verifier.verify(secret, allow_expired=allow_expired)
        except Unauthorized as error:
            raise NotFound("Could not find token.") from error
        caller.require(token.user.id == caller.user_id or caller.reads_all or caller.is_service)
        return caller, secret, token

    async def _answer(self, request: Request, token: VerifiedToken, secret: str, status: int) -> Response:
        body = _token_body(token)
        if token.claims.target is not None and "nocatalog" not in request.query_params:
            body["catalog"] = await self._entries(token)
        headers = {"X-Subject-Token": secret, "Vary": "X-Auth-Token"}
        return json_response({"token": body}, status, headers)

    async def _entries(self, token: VerifiedToken) -> list[CatalogueEntry]:
        values = {"user_id": token.user.id}
        if token.project is not None:
            values |= {"project_id": token.project.id, "tenant_id": token.project.id}
        return (await self.realm.verifier.catalogue()).entries(values)


def _revoke(conn: sa.Connection, token: VerifiedToken, now: float) -> None:
    revoked = schema.revoked_tokens
    conn.execute(revoked.delete().where(revoked.c.expires_at < now - EXPIRED_WINDOW))
    audit_id = token.claims.audit_ids[0]
    if conn.execute(sa.select(revoked.c.audit_id).where(revoked.c.audit_id == audit_id)).first() is None:
        conn.execute(revoked.insert().values(audit_id=audit_id, expires_at=token.claims.expires_at))


def _token_body(token: VerifiedToken) -> Attributes:
    claims = token.claims
    body: Attributes = {
        "methods": claims.methods,
        "user": {
            "id": token.user.id, "name": token.user.name, "domain": _domain_ref(token.user_domain),
            "password_expires_at": None,
        },
        "audit_ids": claims.audit_ids,
        "issued_at": f"{iso_microseconds(claims.issued_at)}Z",
        "expires_at": f"{iso_microseconds(claims.expires_at)}Z",
    }
    if token.scope is not None:
        body["roles"] = [{"id": role.id, "name": role.name} for role in token.roles]
    if token.project is not None and token.domain is not None:
        body["project"] = {"id": token.project.id, "name": token.project.name, "domain": _domain_ref(token.domain)}
        body["is_domain"] = False
    elif token.domain is not None:
        body["domain"] = _domain_ref(token.domain)
    elif token.scope is TargetKind.SYSTEM:
        body["system"] = {"all": True}
    if token.credential is not None:
        credential: Attributes = {
            "id": token.credential.id, "name": token.credential.name, "restricted": not token.credential.unrestricted
        }
        if token.access_rules:
            credential["access_rules"] = [
                {"id": rule.id, "service": rule.service, "method": rule.method, "path": rule.path}
                for rule in token.access_rules
            ]
        body["application_credential"] = credential
    return body


def _domain_ref(domain: Domain) -> dict[str, str]:
    return {"id": domain.id, "name": domain.name}
