"""Access rules of application credentials: which requests a token that is limited by them may make. Spec: EMI-48.

The path of a rule is compared with all of a request's path below the service's place in the catalogue
(`/v2.1/servers` wherever that is mounted). In it `*` and `{anything}` stand for a part between slashes that is not
empty, `**` for any text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from kilonova.embedded.identity.records import AccessRule
from kilonova.services.identity import ServiceRequest

_PART = re.compile(r"\*\*|\*|\{[^{}]*\}|.", re.DOTALL)


def allowed(rules: Iterable[AccessRule], request: ServiceRequest) -> bool:
    """Whether one of the rules allows the request."""
    return any(
        rule.service == request.service and rule.method == request.method and matches(rule.path, request.path)
        for rule in rules
    )


def matches(pattern: str, path: str) -> bool:
    """Whether a path fits the path of a rule.

    Takes time in proportion to the path, whatever a user has written into the rule: all places of the pattern that
    may be reached are kept at once, as bits, where an expression of `re` would try them one after the other.
    """
    parts = _PART.findall(pattern)
    literal: dict[str, int] = {}
    segment = anything = 0
    for place, part in enumerate(parts):
        if part == "**":
            anything |= 1 << place
        elif part == "*" or len(part) > 1:
            segment |= 1 << place
        else:
            literal[part] = literal.get(part, 0) | 1 << place
    reached = _past_nothing(1, anything)
    for character in path:
        within = 0 if character == "/" else reached & segment
        passed = within | reached & literal.get(character, 0)
        reached = _past_nothing(reached & anything | within | passed << 1, anything)
    return bool(reached >> len(parts) & 1)


def _past_nothing(reached: int, anything: int) -> int:
    """Also what is reached if a `**` stands for nothing."""
    while (further := reached | (reached & anything) << 1) != reached:
        reached = further
    return reached
