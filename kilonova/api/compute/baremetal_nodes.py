"""Bare-metal nodes, up to 2.35: this cloud has no service for them, and they never were changed here.

Spec: API-302 to API-306.
"""

from __future__ import annotations

from typing import NoReturn

from kilonova.api.call import Call
from kilonova.api.policy import Audience, Rule
from kilonova.api.routes import Route
from kilonova.domain.errors import InvalidInput, NotSupported

LIST = Rule("os-baremetal-nodes:list", Audience.ADMIN)
SHOW = Rule("os-baremetal-nodes:show", Audience.ADMIN)
_UNTIL = 35


async def not_here(call: Call) -> NoReturn:
    raise NotSupported("This cloud has no bare-metal service.")


async def refuse(call: Call) -> NoReturn:
    raise InvalidInput("Bare-metal nodes are changed in the bare-metal service.")


_ONE = "/os-baremetal-nodes/{id}"
ROUTES = [
    Route(method="GET", path="/os-baremetal-nodes", handler=not_here, rule=LIST, until=_UNTIL, errors=(501,)),
    Route(method="GET", path=_ONE, handler=not_here, rule=SHOW, until=_UNTIL, errors=(501,)),
    Route(method="POST", path="/os-baremetal-nodes", handler=refuse, until=_UNTIL),
    Route(method="DELETE", path=_ONE, handler=refuse, until=_UNTIL),
    *(
        Route(method="POST", path=f"{_ONE}/action", action=action, handler=refuse, until=_UNTIL)
        for action in ("add_interface", "remove_interface")
    ),
]
