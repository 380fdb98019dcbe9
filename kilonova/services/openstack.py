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
FAMILIES: Mapping[int, type[KilonovaError]] = {400: InvalidInput, 404: NotFound, 409: Conflict}
"""What the answers of a service mean, by their status."""
PROJECTS = 100
"""Projects of which a token is kept."""


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


class _Grant(msgspec.Struct, frozen=True):
    """A token, and the id of the project that it is for."""

    token: str = ""
    project: str = ""


class OpenStackCalls:
    """Calls of one service.

    Args:
        name: what errors call it. endpoint: what paths are appended to. account: None for a service that asks nobody
            who he is. headers: sent with each request. authority: PEM file of the certificate that signed those of
            the services, "" for those of the system. limit: seconds that it may be silent.
        families: the errors that its answers stand for, by their status.
        as_service: the token is shown as that of a service, too, for what only services may ask.
    """

    def __init__(
        self, name: str, endpoint: str, account: Account | None, headers: Mapping[str, str], *, authority: str = "",
        limit: float = LIMIT, families: Mapping[int, type[KilonovaError]] = FAMILIES, as_service: bool = False,
    ) -> None:
        self._name = name
        self._endpoint = endpoint.rstrip("/")
        self._account = account
        self._headers = dict(headers)
        self._authority = authority
        self._limit = limit
        self._families = families
        self._as_service = as_service
        self._grants: dict[str, _Grant] = {}
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(AT_ONCE, name)

    async def __call__(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: Any = None,
        headers: Mapping[str, str] | None = None, project: str = "",
    ) -> Any:
        """The body of a good answer, None if it has none.

        Args:
            path: `{project}` in it stands for the id of the project that the token is for.
            headers: sent beside those of all requests.
            project: id of the one for which it is asked, in which the account must have a role; "" for its own.

        Raises:
            NotFound, Conflict, InvalidInput: what the service says, or others that its families name.
            ServiceUnavailable: it does not answer, or cannot now. KilonovaError: it does not let us in, or answers
                something else.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._threads, self._call, method, path, dict(query or {}), body, dict(headers or {}), project
        )

    def _call(
        self, method: str, path: str, query: dict[str, str], body: Any, headers: dict[str, str], project: str
    ) -> Any:
        payload = b"" if body is None else msgspec.json.encode(body)

        def ask(grant: _Grant) -> tuple[int, bytes]:
            url = self._endpoint + path.replace("{project}", grant.project)
            asked = f"{url}?{urlencode(query)}" if query else url
            status, _, answer = self._send(method, asked, payload, headers | self._shown(grant))
            return status, answer

        grant = self._granted(project, "")
        status, answer = ask(grant)
        if status == 401 and grant.token:
            status, answer = ask(self._granted(project, grant.token))
        self._judge(status, answer)
        if not answer:
            return None
        try:
            return msgspec.json.decode(answer)
        except msgspec.DecodeError as error:
            raise KilonovaError(f"The {self._name} service answers something that is not JSON.") from error

    def _shown(self, grant: _Grant) -> dict[str, str]:
        """How a request shows who makes it."""
        if not grant.token:
            return {}
        return {"X-Auth-Token": grant.token} | ({"X-Service-Token": grant.token} if self._as_service else {})

    def _granted(self, project: str, stale: str) -> _Grant:
        """A token for a project that is not the stale one."""
        if self._account is None:
            return _Grant()
        with self._lock:
            known = self._grants.get(project, _Grant())
            if known.token == stale:
                known = self._sign_in(self._account, project)
                self._grants.pop(project, None)
                self._grants[project] = known
                while len(self._grants) > PROJECTS:
                    del self._grants[next(iter(self._grants))]
            return known

    def _sign_in(self, account: Account, project: str) -> _Grant:
        user = {"name": account.username, "domain": {"name": account.user_domain_name}, "password": account.password}
        own = {"name": account.project_name, "domain": {"name": account.project_domain_name}}
        body = {"auth": {
            "identity": {"methods": ["password"], "password": {"user": user}},
            "scope": {"project": {"id": project} if project else own},
        }}
        url = f"{account.auth_url.rstrip('/')}/auth/tokens"
        status, headers, answer = self._send("POST", url, msgspec.json.encode(body), {})
        token = headers.get("x-subject-token", "")
        if status in (401, 403) or (status < 400 and not token):
            where = f" and project {project}" if project else ""
            raise KilonovaError(
                f"The identity service gives no token for the {self._name} service{where}.",
                hint="check the user, its roles and the password in the configuration",
            )
        self._judge(status, answer)
        return _Grant(token, project or _project(answer))

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
        raise self._families.get(status, KilonovaError)(said)


def _project(body: bytes) -> str:
    """The id of the project that a token is for, "" if it is not told."""
    try:
        return str(msgspec.json.decode(body)["token"]["project"]["id"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return ""


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
