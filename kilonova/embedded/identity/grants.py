"""Who holds which role on what: assignments, groups, and roles that imply others.

All functions are parts of a unit of work on the identity tables.
"""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from kilonova.domain.errors import NotFound
from kilonova.embedded.identity import schema
from kilonova.embedded.identity.records import (
    SYSTEM,
    Actor,
    ActorKind,
    Assignment,
    Domain,
    Group,
    Project,
    Role,
    Target,
    TargetKind,
)
from kilonova.embedded.identity.store import domains, groups, projects, roles, users

_assigned = schema.assignments.c


def require_target(conn: sa.Connection, target: Target) -> None:
    """Raises NotFound for a project or domain that does not exist."""
    if target.kind is TargetKind.PROJECT:
        projects.get(conn, target.id)
    elif target.kind is TargetKind.DOMAIN:
        domains.get(conn, target.id)
    elif target != SYSTEM:
        raise NotFound(f"Could not find system: {target.id}.")


def require_actor(conn: sa.Connection, actor: Actor) -> None:
    """Raises NotFound for a user or group that does not exist."""
    if actor.kind is ActorKind.USER:
        users.get(conn, actor.id)
    else:
        groups.get(conn, actor.id)


def grant(conn: sa.Connection, assignment: Assignment) -> None:
    """Give the role; giving it again is no change. Spec: EMI-40. Raises NotFound."""
    require_target(conn, assignment.target)
    require_actor(conn, assignment.actor)
    roles.get(conn, assignment.role_id)
    if not is_granted(conn, assignment):
        conn.execute(schema.assignments.insert().values(
            actor_kind=assignment.actor.kind.value, actor_id=assignment.actor.id,
            target_kind=assignment.target.kind.value, target_id=assignment.target.id, role_id=assignment.role_id,
        ))


def is_granted(conn: sa.Connection, assignment: Assignment) -> bool:
    """True if exactly this assignment was made; groups and implied roles do not count."""
    found = sa.select(_assigned.role_id).where(
        *_is_actor(assignment.actor), *_is_target(assignment.target), _assigned.role_id == assignment.role_id
    )
    return conn.execute(found).first() is not None


def revoke(conn: sa.Connection, assignment: Assignment) -> None:
    """Raises NotFound for an assignment that was not made."""
    gone = conn.execute(schema.assignments.delete().where(
        *_is_actor(assignment.actor), *_is_target(assignment.target), _assigned.role_id == assignment.role_id
    ))
    if not gone.rowcount:
        raise NotFound(f"Could not find role assignment with role: {assignment.role_id}, "
                       f"{assignment.actor.kind.value}: {assignment.actor.id}, "
                       f"{assignment.target.kind.value}: {assignment.target.id}.")


def granted_roles(conn: sa.Connection, actor: Actor, target: Target) -> list[Role]:
    """The roles that were assigned, without those they imply."""
    ids = sa.select(_assigned.role_id).where(*_is_actor(actor), *_is_target(target))
    return roles.matching(conn, schema.roles.c.id.in_(ids))


def forget_actors(conn: sa.Connection, kind: ActorKind, ids: Iterable[str]) -> None:
    conn.execute(schema.assignments.delete().where(_assigned.actor_kind == kind.value, _assigned.actor_id.in_(ids)))


def forget_targets(conn: sa.Connection, kind: TargetKind, ids: Iterable[str]) -> None:
    conn.execute(schema.assignments.delete().where(
        _assigned.target_kind == kind.value, _assigned.target_id.in_(ids)
    ))


def list_assignments(conn: sa.Connection, *where: sa.ColumnElement[bool]) -> list[Assignment]:
    rows = conn.execute(sa.select(schema.assignments).where(*where).order_by(*schema.assignments.primary_key))
    return [
        Assignment(Actor(ActorKind(row.actor_kind), row.actor_id), Target(TargetKind(row.target_kind), row.target_id),
                   row.role_id)
        for row in rows
    ]


def effective(conn: sa.Connection, assignments: Iterable[Assignment]) -> list[Assignment]:
    """The assignments as they work: of users only (each member for its group), implied roles included."""
    inference = inferences(conn)
    members: dict[str, list[str]] = {}
    for user_id, group_id in conn.execute(sa.select(schema.memberships.c.user_id, schema.memberships.c.group_id)):
        members.setdefault(group_id, []).append(user_id)
    result: dict[Assignment, None] = {}
    for each in assignments:
        holders = [each.actor.id] if each.actor.kind is ActorKind.USER else members.get(each.actor.id, [])
        for user_id in holders:
            for role_id in sorted(expand({each.role_id}, inference)):
                result[Assignment(Actor(ActorKind.USER, user_id), each.target, role_id)] = None
    return list(result)


def inferences(conn: sa.Connection) -> dict[str, set[str]]:
    """Which roles each role implies directly, by id."""
    implied: dict[str, set[str]] = {}
    for prior_id, implied_id in conn.execute(sa.select(schema.implied_roles)):
        implied.setdefault(prior_id, set()).add(implied_id)
    return implied


def expand(role_ids: set[str], inference: dict[str, set[str]]) -> set[str]:
    """The roles and all that they imply, however indirectly. Spec: EMI-38."""
    known: set[str] = set()
    new = set(role_ids)
    while new:
        known |= new
        new = {implied for role_id in new for implied in inference.get(role_id, ())} - known
    return known


def effective_role_ids(conn: sa.Connection, user_id: str, target: Target) -> set[str]:
    """What a user may do on the target: own roles, those of its groups, and all that they imply."""
    own = conn.execute(sa.select(_assigned.role_id).where(_held_by(user_id), *_is_target(target))).scalars()
    return expand(set(own), inferences(conn))


def token_roles(conn: sa.Connection, role_ids: set[str]) -> tuple[Role, ...]:
    """The roles a token shows, always in the same order. Spec: EMI-33."""
    return tuple(roles.matching(conn, schema.roles.c.id.in_(role_ids), schema.roles.c.domain_id == ""))


def projects_of(conn: sa.Connection, user_id: str) -> list[Project]:
    """Projects the user has a role on, directly or by a group."""
    return projects.matching(conn, schema.projects.c.id.in_(_target_ids(user_id, TargetKind.PROJECT)))


def domains_of(conn: sa.Connection, user_id: str) -> list[Domain]:
    return domains.matching(conn, schema.domains.c.id.in_(_target_ids(user_id, TargetKind.DOMAIN)))


def has_system_role(conn: sa.Connection, user_id: str) -> bool:
    return conn.execute(_target_ids(user_id, TargetKind.SYSTEM)).first() is not None


def groups_of(conn: sa.Connection, user_id: str) -> list[Group]:
    return groups.matching(conn, schema.groups.c.id.in_(_group_ids(user_id)))


def _group_ids(user_id: str) -> sa.Select[tuple[str]]:
    return sa.select(schema.memberships.c.group_id).where(schema.memberships.c.user_id == user_id)


def _target_ids(user_id: str, kind: TargetKind) -> sa.Select[tuple[str]]:
    return sa.select(_assigned.target_id).where(_held_by(user_id), _assigned.target_kind == kind.value)


def _held_by(user_id: str) -> sa.ColumnElement[bool]:
    return sa.or_(
        sa.and_(_assigned.actor_kind == ActorKind.USER.value, _assigned.actor_id == user_id),
        sa.and_(_assigned.actor_kind == ActorKind.GROUP.value, _assigned.actor_id.in_(_group_ids(user_id))),
    )


def _is_actor(actor: Actor) -> tuple[sa.ColumnElement[bool], ...]:
    return _assigned.actor_kind == actor.kind.value, _assigned.actor_id == actor.id


def _is_target(target: Target) -> tuple[sa.ColumnElement[bool], ...]:
    return _assigned.target_kind == target.kind.value, _assigned.target_id == target.id
