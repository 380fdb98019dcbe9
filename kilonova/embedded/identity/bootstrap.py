"""What a new identity service begins with. Spec: EMI-37, EMI-38, EMI-51."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from kilonova.embedded.identity import catalogue, grants, schema
from kilonova.embedded.identity.records import (
    DEFAULT_DOMAIN,
    SYSTEM,
    Actor,
    ActorKind,
    Assignment,
    Domain,
    Project,
    Role,
    Target,
    TargetKind,
    User,
)
from kilonova.embedded.identity.store import domains, projects, roles, users

ADMIN = "admin"
SERVICE_PROJECT = "service"
SERVICE_USERS = ("nova", "glance", "neutron", "placement")
IMPLIED = {"admin": "manager", "manager": "member", "member": "reader"}
ROLES = ("admin", "manager", "member", "reader", "service")


class BootstrapResult(msgspec.Struct, frozen=True, kw_only=True):
    """Ids of what every installation has. service_users: user ids by name."""

    admin_user_id: str
    admin_project_id: str
    service_project_id: str
    service_users: dict[str, str]


def admin_exists(conn: sa.Connection) -> bool:
    return users.named(conn, ADMIN, domain_id=DEFAULT_DOMAIN) is not None


def fill(
    conn: sa.Connection, admin_password_hash: str | None, public_url: str, offers: Sequence[catalogue.Offer]
) -> BootstrapResult:
    """Make whatever is missing; what exists stays as it is.

    Args:
        admin_password_hash: for the admin user, used only if it has to be made. offers: what the catalogue lists.
    """
    if domains.find(conn, DEFAULT_DOMAIN) is None:
        domains.insert(conn, Domain(id=DEFAULT_DOMAIN, name="Default", description="The default domain"))
    role_ids = _roles(conn)
    admin_project = _project(conn, ADMIN, "The project of the administrator")
    service_project = _project(conn, SERVICE_PROJECT, "The project of the services")
    admin = _user(conn, ADMIN, admin_password_hash)
    for target in (Target(TargetKind.PROJECT, admin_project), SYSTEM):
        grants.grant(conn, Assignment(Actor(ActorKind.USER, admin), target, role_ids["admin"]))
    service_users = {name: _user(conn, name, None) for name in SERVICE_USERS}
    for user_id in service_users.values():
        grants.grant(conn, Assignment(
            Actor(ActorKind.USER, user_id), Target(TargetKind.PROJECT, service_project), role_ids["service"]
        ))
    catalogue.register(conn, public_url, offers)
    return BootstrapResult(
        admin_user_id=admin, admin_project_id=admin_project, service_project_id=service_project,
        service_users=service_users,
    )


def _roles(conn: sa.Connection) -> dict[str, str]:
    """Ids by name. The implications are made with their roles and not restored if removed later."""
    ids: dict[str, str] = {}
    made: set[str] = set()
    for name in ROLES:
        role = roles.named(conn, name, domain_id="")
        if role is None:
            role = roles.insert(conn, Role(id=uuid.uuid4().hex, name=name))
            made.add(name)
        ids[name] = role.id
    for prior, implied in IMPLIED.items():
        if made & {prior, implied}:
            conn.execute(schema.implied_roles.insert().values(prior_id=ids[prior], implied_id=ids[implied]))
    return ids


def _project(conn: sa.Connection, name: str, description: str) -> str:
    project = projects.named(conn, name, domain_id=DEFAULT_DOMAIN) or projects.insert(conn, Project(
        id=uuid.uuid4().hex, name=name, domain_id=DEFAULT_DOMAIN, parent_id=DEFAULT_DOMAIN, description=description
    ))
    return project.id


def _user(conn: sa.Connection, name: str, password_hash: str | None) -> str:
    user = users.named(conn, name, domain_id=DEFAULT_DOMAIN) or users.insert(conn, User(
        id=uuid.uuid4().hex, name=name, domain_id=DEFAULT_DOMAIN, password_hash=password_hash
    ))
    return user.id
