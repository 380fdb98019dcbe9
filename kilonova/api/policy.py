"""Who may do what: the rules of the API, their defaults, and the operator's overrides.

A rule is declared beside the route that needs it, with the audience it has by default. Without a policy file
the audiences are judged here, by a few look-ups. With one, oslo.policy judges every rule, so that the file
may use its whole language; it is imported only then, because the import takes half a second.

Spec: API-040, API-041.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

import msgspec
import structlog

from kilonova.domain.clock import Clock
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import KilonovaError, PolicyNotAuthorized

log = structlog.get_logger(__name__)

RELOAD_INTERVAL = 1.0
"""Seconds between two looks at the policy file."""


class Audience(Enum):
    """Default audiences, each with its rule in the language of policy files."""

    ANY = "@"
    READER = "rule:project_reader_or_admin"
    MEMBER = "rule:project_member_or_admin"
    MANAGER = "rule:project_manager_or_admin"
    ADMIN = "rule:context_is_admin"
    SERVICE = "rule:service_or_admin"
    USER = "rule:admin_or_user"
    NOBODY = "!"


BASE_RULES: Mapping[str, str] = {
    "context_is_admin": "role:admin",
    "admin_api": "rule:context_is_admin",
    "project_reader_api": "role:reader and project_id:%(project_id)s",
    "project_member_api": "role:member and project_id:%(project_id)s",
    "project_manager_api": "role:manager and project_id:%(project_id)s",
    "project_reader_or_admin": "rule:project_reader_api or rule:context_is_admin",
    "project_member_or_admin": "rule:project_member_api or rule:context_is_admin",
    "project_manager_or_admin": "rule:project_manager_api or rule:context_is_admin",
    "service_api": "role:service",
    "service_or_admin": "rule:service_api or rule:context_is_admin",
    "admin_or_user": "rule:context_is_admin or user_id:%(user_id)s",
}
"""What rules refer to; a policy file may override these too."""


class Rule(msgspec.Struct, frozen=True):
    """One policy rule. Names that start with `compute:` or `network:` are complete, others get the prefix."""

    short: str
    audience: Audience

    @property
    def name(self) -> str:
        if self.short.startswith(("compute:", "network:")):
            return self.short
        return f"os_compute_api:{self.short}"


class Target(msgspec.Struct, frozen=True):
    """Whose object it is."""

    project_id: str | None
    user_id: str | None


class PolicyFileInvalid(KilonovaError):
    """The policy file cannot be read."""


class Judge(Protocol):
    """Decides about rules."""

    def allows(self, rule: Rule, context: RequestContext, target: Target) -> bool: ...

    def is_admin(self, context: RequestContext) -> bool: ...


_IMPLIED = ("admin", "manager", "member", "reader")


def with_implied(roles: tuple[str, ...]) -> tuple[str, ...]:
    """Add the roles that the given ones imply. Spec: API-040."""
    held = [_IMPLIED.index(role) for role in roles if role in _IMPLIED]
    if not held:
        return roles
    return (*roles, *(role for role in _IMPLIED[min(held):] if role not in roles))


class Defaults:
    """The default audiences, without a policy file."""

    def allows(self, rule: Rule, context: RequestContext, target: Target) -> bool:
        audience, roles = rule.audience, context.roles
        if context.project_id is None or audience is Audience.NOBODY:
            return False
        if audience is Audience.ANY or "admin" in roles:
            return True
        if audience is Audience.USER:
            return context.user_id == target.user_id
        if audience is Audience.SERVICE:
            return "service" in roles
        if audience is Audience.ADMIN or context.project_id != target.project_id:
            return False
        return audience.name.lower() in roles

    def is_admin(self, context: RequestContext) -> bool:
        return "admin" in context.roles


class Policy:
    """Judges rules, by the defaults or by the operator's file, which is read again when it changes.

    Args:
        rules: all rules of the API. file: a policy.yaml (or .json), None or missing for the defaults.

    Raises:
        PolicyFileInvalid: the file cannot be parsed at start. Later the old rules stay, the error is logged.
    """

    def __init__(self, rules: Iterable[Rule], file: Path | None, clock: Clock) -> None:
        self._rules = {rule.name: rule for rule in rules}
        self._file = file
        self._clock = clock
        self._next_look = 0.0
        self._stamp: tuple[int, int] | None = None
        self._judge: Judge = Defaults()
        if file is not None:
            self._load(file)

    def allows(self, rule: Rule, context: RequestContext, target: Target) -> bool:
        """Whether the caller passes the rule for this target."""
        if self._file is not None and self._clock.monotonic() >= self._next_look:
            try:
                self._load(self._file)
            except PolicyFileInvalid as error:
                log.error("policy file ignored", file=str(self._file), reason=error.message)
        return self._judge.allows(rule, context, target)

    def is_admin(self, context: RequestContext) -> bool:
        """Whether the caller counts as an administrator (rule context_is_admin)."""
        return self._judge.is_admin(context)

    def require(self, rule: Rule, context: RequestContext, target: Target) -> None:
        """Raises PolicyNotAuthorized unless the rule allows it. Spec: API-041."""
        if not self.allows(rule, context, target):
            raise PolicyNotAuthorized(rule.name)

    def _load(self, file: Path) -> None:
        self._next_look = self._clock.monotonic() + RELOAD_INTERVAL
        stamp = _stamp(file)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        if stamp is None:
            self._judge = Defaults()
            return
        from kilonova.api.policy_file import PolicyFile

        self._judge = PolicyFile(file, self._rules)


def _stamp(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_ino


def credentials(context: RequestContext) -> dict[str, Any]:
    """What rules of a policy file can refer to."""
    return {
        "user_id": context.user_id, "project_id": context.project_id, "roles": list(context.roles),
        "is_admin": context.is_admin, "user_domain_id": context.user_domain_id,
        "project_domain_id": context.project_domain_id, "system_scope": "all" if context.system else None,
    }
