"""The configuration file of nats-server: who may connect, and which subjects each may use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from kilonova.bus.credentials import CONTROL, host_user
from kilonova.bus.nats import MAX_PAYLOAD
from kilonova.bus.subjects import REPLIES, host_token

REPLY_WINDOW = "5m"
"""How long after a request its receiver may reply: longer than any request waits."""


class Users(msgspec.Struct, frozen=True, kw_only=True):
    """Passwords of the control plane and, by name, of the hosts."""

    control: str
    hosts: dict[str, str] = {}


class TlsFiles(msgspec.Struct, frozen=True, kw_only=True):
    """PEM files with which the server proves who it is.

    Args:
        authority: the certificate that signed the server's; clients are given the same.
    """

    certificate: Path
    key: Path
    authority: Path


def render(directory: Path, address: str, port: int, users: Users, tls: TlsFiles | None) -> bytes:
    """The file's content. nats-server reads JSON as well as its own format."""
    settings: dict[str, Any] = {
        "host": address,
        "port": port,
        "pid_file": str(directory / "nats.pid"),
        "log_file": str(directory / "nats.log"),
        "logfile_size_limit": 10 * 1024 * 1024,
        "logfile_max_num": 2,
        "max_payload": MAX_PAYLOAD,
        "ping_interval": "10s",
        "ping_max": 2,
        "write_deadline": "5s",
        "authorization": authorization(users),
    }
    if tls is not None:
        # TLS from the first byte: what is exchanged before cannot be tampered with.
        settings["tls"] = {
            "cert_file": str(tls.certificate), "key_file": str(tls.key), "handshake_first": True, "timeout": 5,
        }
    return msgspec.json.format(msgspec.json.encode(settings), indent=1)


def authorization(users: Users) -> dict[str, Any]:
    """Who may connect, and as what."""
    return {"timeout": 5, "users": _users(users)}


def _users(users: Users) -> list[dict[str, Any]]:
    control = _user(CONTROL, users.control, publish=["kn.>"], subscribe=["kn.>"])
    return [control, *(_host(name, password) for name, password in sorted(users.hosts.items()))]


def _host(host: str, password: str) -> dict[str, Any]:
    """An agent hears what is for its host, speaks as its host, and replies where it was asked."""
    token = host_token(host)
    return _user(host_user(host), password, publish=[f"kn.from.{token}.>"], subscribe=[f"kn.host.{token}.>"])


def _user(name: str, password: str, *, publish: list[str], subscribe: list[str]) -> dict[str, Any]:
    inbox = f"{REPLIES}.{name}.>"
    return {
        "user": name,
        "password": password,
        "permissions": {
            # To itself, because that is how a client finds out that the server has handled what it sent.
            "publish": {"allow": [*publish, inbox]},
            "subscribe": {"allow": [*subscribe, inbox]},
            "allow_responses": {"max": 1, "expires": REPLY_WINDOW},
        },
    }
