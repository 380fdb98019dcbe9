"""Actions: calls whose body names what is to be done with a resource, as its only key."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from kilonova.domain.errors import InvalidInput
from kilonova.embedded.http import json_object
from kilonova.embedded.volume.api.call import Access, Call, Handler, check, check_access


@dataclass(frozen=True)
class Action:
    """One action.

    Args:
        body: what its value must be; None if that tells nothing.
        handler: is given the checked value.
        since: N of the version 3.N that brought it; before it there is no such action.
    """

    body: type[Any] | None
    handler: Callable[[Call, Any], Awaitable[Response]]
    access: Access = Access.MEMBER
    since: int = 0


def answers(actions: Mapping[str, Action]) -> Handler:
    """A handler that does whichever action the body names."""
    async def act(call: Call) -> Response:
        document = await json_object(call.request)
        if len(document) != 1:
            raise InvalidInput("The request body must name exactly one action.")
        [(name, value)] = document.items()
        action = actions.get(name)
        if action is None or call.version < action.since:
            raise InvalidInput(f"There is no such action: {name[:64]}.")
        check_access(call.who, action.access)
        return await action.handler(call, None if action.body is None else check(action.body, value, name))

    return act
