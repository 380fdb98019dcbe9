"""Errors that only HTTP knows, and the body every error gets. Spec: API-033 to API-036."""

from __future__ import annotations

from typing import Any

import msgspec

from kilonova.domain.errors import KilonovaError

_NAMES = {
    400: "badRequest", 401: "unauthorized", 403: "forbidden", 404: "itemNotFound", 405: "badMethod",
    409: "conflictingRequest", 413: "overLimit", 415: "badMediaType", 429: "overLimit", 501: "notImplemented",
    503: "serviceUnavailable",
}


class NotAcceptable(KilonovaError):
    """The microversion is out of range. Spec: API-013."""

    status = 406

    def __init__(self, version: str, first: str, latest: str) -> None:
        super().__init__(
            f"Version {version} is not supported by the API. Minimum is {first} and maximum is {latest}."
        )
        self.version = version


class Gone(KilonovaError):
    """The route is retired. Spec: API-018."""

    status = 410


class UnsupportedMediaType(KilonovaError):
    """Spec: API-020."""

    status = 415


class UnknownPath(KilonovaError):
    """No route has this path and method. Spec: API-008."""

    status = 404


def fault_name(status: int) -> str:
    """Spec: API-035."""
    return _NAMES.get(status, "computeFault")


def fault(status: int, message: str) -> bytes:
    """The body of an error answer. Spec: API-034, API-035."""
    content: dict[str, Any] = {"code": status, "message": message}
    if status in (413, 429):
        content["retryAfter"] = "0"
    return msgspec.json.encode({fault_name(status): content})
