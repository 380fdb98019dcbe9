"""Access to the screens and serial consoles of servers. Spec: API-145 to API-148, API-182, API-265."""

from __future__ import annotations

from typing import Any

from kilonova.api.call import Call
from kilonova.api.compute.answers import attachments as answers
from kilonova.api.compute.server_lookup import find_server
from kilonova.api.policy import Audience, Rule
from kilonova.api.query import Query
from kilonova.api.routes import Handler, Route
from kilonova.api.schema import Enum, Object, required
from kilonova.domain.console import SPICE_DIRECT, ConsoleKind
from kilonova.domain.errors import ConsoleTypeUnavailable, InvalidInput

ACTIONS_END = 5
"""The last microversion with an action for each kind of console. Spec: API-506."""

_RULE = Rule("os-remote-consoles", Audience.MEMBER)
_TOKEN_RULE = Rule("os-console-auth-tokens", Audience.ADMIN)


def _action(name: str, kind: ConsoleKind, *types: str) -> Route:
    """An action that checks its rule before it looks for the server. Spec: API-042."""
    async def handle(call: Call) -> Any:
        await find_server(call)
        console = await call.cloud.consoles.create(call.server, kind, call.body[name]["type"])
        return {"console": {"type": console.type, "url": console.url}}

    return _old(name, handle, _RULE, Object({"type": required(Enum(*types))}))


def _old(name: str, handler: Handler, rule: Rule | None, value: Object) -> Route:
    return Route(
        method="POST", path="/servers/{server_id}/action", action=name, handler=handler, rule=rule,
        body=Object({name: required(value)}), until=ACTIONS_END, answer=answers.CONSOLE,
    )


async def rdp(call: Call) -> None:
    raise ConsoleTypeUnavailable(ConsoleKind.RDP.value)


async def create(call: Call) -> Any:
    asked = call.body["remote_console"]
    console = await call.cloud.consoles.create(call.server, ConsoleKind(asked["protocol"]), asked["type"])
    return {"remote_console": {"protocol": asked["protocol"], "type": console.type, "url": console.url}}


async def show_token(call: Call) -> Any:
    """Spec: API-531, API-599."""
    if call.version <= 30:
        raise InvalidInput("The console of this token is not told in this version of the API.")
    found = await call.cloud.consoles.show(call.path["token"])
    shown: dict[str, Any] = {
        "instance_uuid": found.instance_uuid,
        "host": found.address.host,
        "port": found.address.port,
        "internal_access_path": found.address.internal_access_path or None,
    }
    if call.version >= 99 and found.type == SPICE_DIRECT:
        shown["tls_port"] = found.address.tls_port
    return {"console": shown}


_PROTOCOLS = ("vnc", "spice", "rdp", "serial")
_TYPES = ("novnc", "xvpvnc", "spice-html5", "rdp-html5", "serial")
_REMOTE_CONSOLE = Object({
    "protocol": (required(Enum(*_PROTOCOLS), until=7), required(Enum(*_PROTOCOLS, "mks"), since=8)),
    "type": (
        required(Enum(*_TYPES), until=7),
        required(Enum(*_TYPES, "webmks"), since=8, until=98),
        required(Enum(*_TYPES, "webmks", SPICE_DIRECT), since=99),
    ),
})

ROUTES = [
    _action("os-getVNCConsole", ConsoleKind.VNC, "novnc", "xvpvnc"),
    _action("os-getSPICEConsole", ConsoleKind.SPICE, "spice-html5"),
    _action("os-getSerialConsole", ConsoleKind.SERIAL, "serial"),
    _old("os-getRDPConsole", rdp, None, Object({"type": required(Enum("rdp-html5"))})),
    Route(
        method="POST", path="/servers/{server_id}/remote-consoles", handler=create, look_up=find_server, rule=_RULE,
        body=Object({"remote_console": required(_REMOTE_CONSOLE)}), since=ACTIONS_END + 1,
        answer=answers.REMOTE_CONSOLE,
    ),
    Route(
        method="GET", path="/os-console-auth-tokens/{token}", handler=show_token, rule=_TOKEN_RULE,
        query=Query(strict_since=99), answer=answers.CONSOLE_TOKEN,
    ),
]
