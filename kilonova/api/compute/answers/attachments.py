"""How consoles and interfaces of servers look in answers. Spec: API-145 to API-147, API-182, API-265, API-459."""

from __future__ import annotations

from kilonova.api.answers import INTEGER, STRING, STRING_OR_NULL, UUID, Fields, page, shown
from kilonova.api.schema import ListOf, nullable, optional, required

_CONSOLE: Fields = {"type": STRING, "url": STRING}
CONSOLE = shown({"console": shown(_CONSOLE)})
REMOTE_CONSOLE = shown({"remote_console": shown({**_CONSOLE, "protocol": STRING})})
CONSOLE_TOKEN = shown({"console": shown({
    "instance_uuid": UUID, "host": STRING, "port": INTEGER, "internal_access_path": STRING_OR_NULL,
    "tls_port": optional(nullable(INTEGER), since=99),
})})

_INTERFACE = shown({
    "net_id": STRING, "port_id": STRING, "mac_addr": STRING, "port_state": STRING,
    "fixed_ips": nullable(ListOf(shown({"ip_address": STRING, "subnet_id": STRING}))),
    "tag": required(STRING_OR_NULL, since=70),
})
INTERFACES = page("interfaceAttachments", _INTERFACE)
INTERFACE = shown({"interfaceAttachment": _INTERFACE})
