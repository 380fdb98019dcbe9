"""Calling a service of OpenStack over HTTP: with a token of the identity service, which is asked for anew when it has
expired."""

from __future__ import annotations

import asyncio
import http.client
import ssl
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import msgspec

from kilonova.domain.errors import Conflict, InvalidInput, KilonovaError, NotFound, ServiceUnavailable

LIMIT = 20.0
"""Seconds that a service may be silent, unless something else is said."""
AT_ONCE = 16
"""Requests under way: a service that is slow holds up nobody else."""
TRIED_AGAIN = (425, 429)
"""Answers below 500 that say nothing against the request."""


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks. auth_url: of the identity service, with its version. Domains and project by name."""

    auth_url: str
    username: str
    password: str
    project_name: str
    user_domain_name: str = "Default"
    project_domain_name: str = "Default"


class AccountOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options that say who asks a service, and whom he trusts."""

    auth_url: str = ""
    """Identity service that knows the user, with its version, for example `http://192.0.2.1:5000/v3`."""
    username: str = ""
    """User as whom it is asked; empty for asking without a token."""
    password_file: str = ""
    """File with the password of that user."""
    project_name: str = "service"
    """Project of that user."""
    user_domain_name: str = "Default"
    """Domain of that user."""
    project_domain_name: str = "Default"
    """Domain of that project."""
    authority: str = ""
    """PEM file of the certificate that signed those of the services; empty for the authorities of the system."""


class OpenStackCalls:
    """Calls of one service.

    Args:
        name: what errors call it. endpoint: what paths are appended to. account: None for a service that asks nobody
            who he is. headers: sent with each request. authority: PEM file of the certificate that signed those of
            the services, "" for those of the system. limit: seconds that it may be silent.
    """

    def __init__(
        self, name: str, endpoint: str, account: Account | None, headers: Mapping[str, str], *, authority: str = "",
        limit: float = LIMIT,
    ) -> None:
        self._name = name
        self._endpoint = endpoint.rstrip("/")
        self._account = account
        self._headers = dict(headers)
        self._authority = authority
        self._limit = limit
        self._token = ""
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(AT_ONCE, name)

    async def __call__(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Any = None
    ) -> Any:
        """The body of a good answer, None if it has none.

        Raises:
            NotFound, Conflict, InvalidInput: what the service says. ServiceUnavailable: it does not answer, or cannot
                now. KilonovaError: it does not let us in, or answers something else.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._call, method, path, dict(query or {}), body)

    def _call(self, method: str, path: str, query: dict[str, str], body: Any) -> Any:
        url = f"{self._endpoint}{path}" + (f"?{urlencode(query)}" if query else "")
        payload = b"" if body is None else msgspec.json.encode(body)
        token = self._known_token("")
        status, _, answer = self._send(method, url, payload, {"X-Auth-Token": token} if token else {})
        if status == 401 and token:
            token = self._known_token(token)
            status, _, answer = self._send(method, url, payload, {"X-Auth-Token": token})
        self._judge(status, answer)
        if not answer:
            return None
        try:
            return msgspec.json.decode(answer)
        except msgspec.DecodeError as error:
            raise KilonovaError(f"The {self._name} service answers something that is not JSON.") from error

    def _known_token(self, stale: str) -> str:
        """A token that is not the stale one."""
        if self._account is None:
            return ""
        with self._lock:
            if self._token == stale:
                self._token = self._sign_in(self._account)
            return self._token

    def _sign_in(self, account: Account) -> str:
        user = {"name": account.username, "domain": {"name": account.user_domain_name}, "password": account.password}
        body = {"auth": {
            "identity": {"methods": ["password"], "password": {"user": user}},
            "scope": {"project": {
                "name": account.project_name, "domain": {"name": account.project_domain_name},
            }},
        }}
        url = f"{account.auth_url.rstrip('/')}/auth/tokens"
        status, headers, answer = self._send("POST", url, msgspec.json.encode(body), {})
        token = headers.get("x-subject-token", "")
        if status in (401, 403) or (status < 400 and not token):
            raise KilonovaError(
                f"The identity service gives no token for the {self._name} service.",
                hint="check the user and the password in the configuration",
            )
        self._judge(status, answer)
        return token

    def _send(self, method: str, url: str, body: bytes, more: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        parts = urlsplit(url)
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            context = ssl.create_default_context(cafile=self._authority or None)
            connection = http.client.HTTPSConnection(parts.netloc, timeout=self._limit, context=context)
        else:
            connection = http.client.HTTPConnection(parts.netloc, timeout=self._limit)
        headers = {"Content-Type": "application/json", "Accept": "application/json", **self._headers, **more}
        try:
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise ServiceUnavailable(f"The {self._name} service does not answer.") from error
        finally:
            connection.close()

    def _judge(self, status: int, answer: bytes) -> None:
        if status < 400:
            return
        said = f"The {self._name} service answers {status}: {_message(answer)}"
        if status >= 500 or status in TRIED_AGAIN:
            raise ServiceUnavailable(said)
        families: dict[int, type[KilonovaError]] = {400: InvalidInput, 404: NotFound, 409: Conflict}
        raise families.get(status, KilonovaError)(said)


def _message(body: bytes) -> str:
    """The text of an error, however deep it lies."""
    try:
        content = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return body.decode(errors="replace").strip()[:300]
    while isinstance(content, dict):
        found = [content[key] for key in ("faultstring", "message", "detail") if isinstance(content.get(key), str)]
        content = found[0] if found else next(iter(content.values()), "")
    return str(content)[:300]


def account(section: str, options: AccountOptions) -> Account | None:
    """Who asks, as a section of the configuration says; None for nobody.

    Raises:
        InvalidInput: the options contradict themselves, or the password cannot be read.
    """
    if options.auth_url:
        check_address(f"{section}.auth_url", options.auth_url)
    if not options.username:
        return None
    if not options.auth_url or not options.password_file:
        raise InvalidInput(f"{section}.username needs {section}.auth_url and {section}.password_file.")
    return Account(
        auth_url=options.auth_url, username=options.username, project_name=options.project_name,
        password=_password(f"{section}.password_file", options.password_file),
        user_domain_name=options.user_domain_name, project_domain_name=options.project_domain_name,
    )


def check_address(option: str, url: str) -> None:
    """Raises InvalidInput if that is no address of HTTP."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidInput(f"{option}: {url!r} is no address of HTTP.")


def _password(option: str, file: str) -> str:
    try:
        password = Path(file).read_text().strip()
    except OSError as error:
        raise InvalidInput(f"{option} cannot be read: {error.strerror}.") from error
    if not password:
        raise InvalidInput(f"{option} is empty.")
    return password
