"""What the identity service keeps: one structure for each table of named things."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

DEFAULT_DOMAIN = "default"


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Anything with an id."""

    id: str


class Domain(Record, frozen=True, kw_only=True):
    name: str
    description: str = ""
    enabled: bool = True


class Project(Record, frozen=True, kw_only=True):
    """parent_id is the domain's id for a project at the top. extra: attributes only the clients understand."""

    name: str
    domain_id: str
    parent_id: str
    description: str = ""
    enabled: bool = True
    tags: tuple[str, ...] = ()
    options: dict[str, Any] = {}
    extra: dict[str, Any] = {}


class User(Record, frozen=True, kw_only=True):
    """A user.

    Args:
        password_hash: argon2 text, or None for one that cannot log in with a password.
        token_epoch: raised to refuse every token given out before. Spec: EMI-36.
    """

    name: str
    domain_id: str
    password_hash: str | None = None
    enabled: bool = True
    default_project_id: str | None = None
    options: dict[str, Any] = {}
    extra: dict[str, Any] = {}
    token_epoch: int = 0


class Group(Record, frozen=True, kw_only=True):
    name: str
    domain_id: str
    description: str = ""


class Role(Record, frozen=True, kw_only=True):
    """domain_id is "" for a role of the whole cloud; only those appear in tokens."""

    name: str
    domain_id: str = ""
    description: str | None = None


class ActorKind(StrEnum):
    USER = "user"
    GROUP = "group"


class TargetKind(StrEnum):
    PROJECT = "project"
    DOMAIN = "domain"
    SYSTEM = "system"


class Actor(msgspec.Struct, frozen=True):
    """Who holds a role."""

    kind: ActorKind
    id: str


class Target(msgspec.Struct, frozen=True, array_like=True):
    """What a role is held on. The system has the id "all"."""

    kind: TargetKind
    id: str


SYSTEM = Target(TargetKind.SYSTEM, "all")


class Assignment(msgspec.Struct, frozen=True):
    actor: Actor
    target: Target
    role_id: str


class Region(Record, frozen=True, kw_only=True):
    description: str = ""
    parent_region_id: str | None = None


class Service(Record, frozen=True, kw_only=True):
    type: str
    name: str = ""
    description: str = ""
    enabled: bool = True


class Endpoint(Record, frozen=True, kw_only=True):
    """url may hold `$(project_id)s` or `%(project_id)s`. Spec: EMI-23."""

    service_id: str
    region_id: str | None
    interface: str
    url: str
    enabled: bool = True


class AccessRule(Record, frozen=True, kw_only=True):
    user_id: str
    service: str
    method: str
    path: str


class ApplicationCredential(Record, frozen=True, kw_only=True):
    """expires_at: seconds since the epoch, or None for never."""

    name: str
    user_id: str
    project_id: str
    secret_hash: str
    description: str | None = None
    expires_at: float | None = None
    unrestricted: bool = False
    role_ids: tuple[str, ...] = ()
    access_rule_ids: tuple[str, ...] = ()


class RegisteredLimit(Record, frozen=True, kw_only=True):
    """How much of a resource a project may have unless a limit of its own says otherwise; -1 is no bound."""

    service_id: str
    region_id: str | None
    resource_name: str
    default_limit: int
    description: str | None = None


class Limit(Record, frozen=True, kw_only=True):
    """A project's or domain's own bound, in place of the registered one."""

    registered_limit_id: str
    project_id: str | None
    domain_id: str | None
    service_id: str
    region_id: str | None
    resource_name: str
    resource_limit: int
    description: str | None = None
