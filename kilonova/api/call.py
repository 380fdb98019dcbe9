"""One authenticated request on its way to a handler, and what the handler gives back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from kilonova.api.links import Links
from kilonova.api.policy import Policy, Rule, Target
from kilonova.api.query import QueryValues
from kilonova.domain.context import RequestContext

if TYPE_CHECKING:
    from kilonova.api.cloud import Cloud
    from kilonova.cells.registry import Located


class Answer(msgspec.Struct, frozen=True):
    """What to send. content: anything msgspec encodes, None for zero bytes. status: None for the route's."""

    content: Any = None
    status: int | None = None
    headers: tuple[tuple[str, str], ...] = ()


class Call:
    """A request as a handler sees it: checked, authenticated and, for routes with a rule, authorised.

    Attributes:
        version: minor microversion. path: values of the `{names}` of the route.
        body: the normalised body, None without one. query: its normalised parameters.
        server: what the route's look-up found, for routes below one server.
        compatible: it came through the `/v2` endpoint.
    """

    __slots__ = ("_allowed", "_server", "body", "cloud", "compatible", "context", "links", "path", "policy",
                 "query", "target", "version")

    def __init__(self, *, version: int, context: RequestContext, cloud: Cloud, policy: Policy, links: Links,
                 path: dict[str, str], query: QueryValues, body: Any, compatible: bool) -> None:
        self.version = version
        self.context = context
        self.cloud = cloud
        self.policy = policy
        self.links = links
        self.path = path
        self.query = query
        self.body = body
        self.compatible = compatible
        self.target = Target(context.project_id, context.user_id)
        self._server: Located | None = None
        self._allowed: dict[tuple[Rule, Target], bool] = {}

    @property
    def server(self) -> Located:
        assert self._server is not None, "the route has no server look-up"
        return self._server

    @server.setter
    def server(self, found: Located) -> None:
        self._server = found
        self.target = Target(found.instance.project_id, found.instance.user_id)

    def allows(self, rule: Rule, target: Target | None = None) -> bool:
        """Whether the caller passes a rule, by default for the object the route is about."""
        key = (rule, target or self.target)
        if key not in self._allowed:
            self._allowed[key] = self.policy.allows(rule, self.context, key[1])
        return self._allowed[key]

    def require(self, rule: Rule, target: Target | None = None) -> None:
        """Raises PolicyNotAuthorized unless the caller passes the rule."""
        self.policy.require(rule, self.context, target or self.target)
