"""Security groups as the network service has them, for the Compute API that once offered them itself."""

from __future__ import annotations

from typing import Protocol

import msgspec

from kilonova.domain.context import RequestContext


class NewRule(msgspec.Struct, frozen=True, kw_only=True):
    """A rule of a security group about what comes in.

    Args:
        version: of IP. protocol: None for all. port_min, port_max: ports, or ICMP type and code; None for all.
        remote_prefix, remote_group: who it lets in, an address range or the id of a group.
    """

    version: int = 4
    protocol: str | None = None
    port_min: int | None = None
    port_max: int | None = None
    remote_prefix: str | None = None
    remote_group: str | None = None


class GroupRule(msgspec.Struct, frozen=True, kw_only=True):
    """A rule of a security group.

    Args:
        version: of IP. protocol: its name or number, None for all. port_min, port_max: ports, or ICMP type and code.
        remote_group: name of the group that it lets in, "" if it names none.
    """

    id: str
    ingress: bool
    version: int = 4
    protocol: str | None = None
    port_min: int | None = None
    port_max: int | None = None
    remote_prefix: str | None = None
    remote_group: str = ""


class GroupSummary(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    name: str
    description: str
    project_id: str
    rules: tuple[GroupRule, ...] = ()


class SecurityGroups(Protocol):
    """Part of what a network service does. All raise ServiceUnavailable when it is down."""

    async def check_security_groups(self, context: RequestContext, names: tuple[str, ...]) -> tuple[str, ...]:
        """Resolve names or ids to ids. Raises InvalidInput naming the one that does not exist."""
        ...

    async def security_groups_of(self, port_ids: tuple[str, ...]) -> tuple[str, ...]:
        """Names of the security groups of those ports."""
        ...

    async def groups_of_ports(self, port_ids: tuple[str, ...]) -> list[GroupSummary]:
        """The security groups of those ports with their rules, each once."""
        ...

    async def change_group(
        self, context: RequestContext, port_ids: tuple[str, ...], group: str, *, member: bool
    ) -> None:
        """Put ports into a security group, given by id or name, or take them out. Ports that can have none are left
        as they are.

        Raises:
            NotFound: no such group, or none of the ports is in it. Conflict: several of that name, or no port can
            have one.
        """
        ...

    async def groups(
        self, context: RequestContext, *, all_projects: bool, offset: int, limit: int
    ) -> list[GroupSummary]:
        """Those of the caller's project, or of all, by project and name."""
        ...

    async def group(self, context: RequestContext, id_: str) -> GroupSummary:
        """Raises NotFound."""
        ...

    async def create_group(self, context: RequestContext, name: str, description: str) -> GroupSummary:
        """Raises OverQuota; Conflict: the name is the one that every project has already."""
        ...

    async def update_group(
        self, context: RequestContext, id_: str, name: str, description: str | None
    ) -> GroupSummary:
        """description: None leaves it. Raises NotFound; Conflict: the group of that name cannot be renamed."""
        ...

    async def delete_group(self, context: RequestContext, id_: str) -> None:
        """Raises NotFound; Conflict: ports use it, or the project cannot be without it."""
        ...

    async def create_group_rule(self, context: RequestContext, group_id: str, rule: NewRule) -> GroupRule:
        """Raises NotFound (either group), InvalidInput, OverQuota; Conflict: the group has this rule."""
        ...

    async def delete_group_rule(self, context: RequestContext, id_: str) -> None:
        """Raises NotFound."""
        ...
