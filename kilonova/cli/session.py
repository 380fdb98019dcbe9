"""A small HTTP client for a running installation: signs in as the administrator, speaks JSON."""

from __future__ import annotations

import contextlib
import http.client
import ssl
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar, overload
from urllib.parse import urlsplit

import msgspec

from kilonova.domain.errors import KilonovaError, NotFound

T = TypeVar("T")

TIMEOUT = 60.0
"""Seconds for one exchange."""

UNREACHABLE = "is it still running? `kilonova status` tells, its log is kilonova.log in the data directory"


class Refused(KilonovaError):
    """The installation answered that it will not. code: the HTTP status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Session:
    """Talks to an installation.

    Args:
        auth_url: of the identity service. password: of `admin`.
    """

    def __init__(self, auth_url: str, password: str) -> None:
        self._auth_url = auth_url
        self._password = password
        self._token = ""

    @overload
    def get(self, url: str, type: type[T], *, version: str = "", timeout: float = TIMEOUT) -> T: ...

    @overload
    def get(self, url: str, *, version: str = "", timeout: float = TIMEOUT) -> Any: ...

    def get(self, url: str, type: Any = Any, *, version: str = "", timeout: float = TIMEOUT) -> Any:
        """Read a document.

        Args:
            type: what it is decoded as. version: microversion of the Compute API.

        Raises:
            NotFound, Refused: with what the installation said. KilonovaError: it does not answer.
        """
        return self._decode(self._exchange("GET", url, None, version=version, timeout=timeout), type)

    def post(self, url: str, body: Any = None, type: Any = Any, *, version: str = "", timeout: float = TIMEOUT) -> Any:
        """Send a document and read the answer; None if there is none. Raises as `get`."""
        return self._decode(self._exchange("POST", url, body, version=version, timeout=timeout), type)

    def delete(self, url: str) -> None:
        """Raises as `get`."""
        self._exchange("DELETE", url, None)

    def events(self, url: str) -> Iterator[tuple[str, bytes]]:
        """Server-sent events as (name, data), until the installation ends them. Raises as `get`."""
        with self._open("GET", url, None, self._headers(), timeout=TIMEOUT) as response:
            _check(response)
            name, data = "", b""
            for line in _lines(response):
                if line.startswith(b"event:"):
                    name = line[6:].strip().decode()
                elif line.startswith(b"data:"):
                    data = line[5:].strip()
                elif not line and name:
                    yield name, data
                    name, data = "", b""

    def _exchange(self, method: str, url: str, body: Any, *, version: str = "", timeout: float = TIMEOUT) -> bytes:
        headers = {"Accept": "application/json"}
        encoded = None if body is None else msgspec.json.encode(body)
        if encoded is not None:
            headers["Content-Type"] = "application/json"
        if version:
            headers["OpenStack-API-Version"] = f"compute {version}"
        return self._request(method, url, encoded, headers, timeout=timeout)

    def _request(
        self, method: str, url: str, body: bytes | Iterable[bytes] | None, headers: dict[str, str], *, timeout: float
    ) -> bytes:
        with self._open(method, url, body, self._headers() | headers, timeout=timeout) as response:
            return _check(response)

    def _headers(self) -> dict[str, str]:
        if not self._token:
            self._token = self._sign_in()
        return {"X-Auth-Token": self._token}

    def _sign_in(self) -> str:
        body = {"auth": {
            "identity": {"methods": ["password"], "password": {
                "user": {"name": "admin", "domain": {"id": "default"}, "password": self._password},
            }},
            "scope": {"project": {"name": "admin", "domain": {"id": "default"}}},
        }}
        headers = {"Content-Type": "application/json"}
        url = f"{self._auth_url}/auth/tokens"
        with self._open("POST", url, msgspec.json.encode(body), headers, timeout=TIMEOUT) as response:
            _check(response)
            return response.getheader("X-Subject-Token") or ""

    @contextlib.contextmanager
    def _open(
        self, method: str, url: str, body: bytes | Iterable[bytes] | None, headers: dict[str, str], *, timeout: float
    ) -> Iterator[http.client.HTTPResponse]:
        parts = urlsplit(url)
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(parts.netloc, timeout=timeout, context=context)
        else:
            connection = http.client.HTTPConnection(parts.netloc, timeout=timeout)
        try:
            path = f"{parts.path}?{parts.query}" if parts.query else parts.path
            connection.request(method, path, body, headers)
            yield connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            where = f"{parts.scheme}://{parts.netloc}"
            raise KilonovaError(f"{where} does not answer: {error}.", hint=UNREACHABLE) from error
        finally:
            connection.close()

    @staticmethod
    def _decode(body: bytes, type: Any) -> Any:
        return msgspec.json.decode(body, type=type) if body else None


def _check(response: http.client.HTTPResponse) -> bytes:
    """The body of a good answer; an event stream is not read. Raises NotFound, Refused."""
    if response.status < 400:
        if response.getheader("Content-Type", "").startswith("text/event-stream"):
            return b""
        return response.read()
    message = _message(response.read()) or f"{response.status} {response.reason}"
    if response.status == 404:
        raise NotFound(message)
    raise Refused(response.status, message)


def _message(body: bytes) -> str:
    """The text of an error, in the form of any of the services."""
    try:
        content = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return body.decode(errors="replace").strip()[:500]
    while isinstance(content, dict):
        if isinstance(text := content.get("message"), str):
            return text
        content = next(iter(content.values()), "")
    return content if isinstance(content, str) else ""


def _lines(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while line := response.readline():
        yield line.rstrip(b"\r\n")
