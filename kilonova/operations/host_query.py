"""Asking a host something outside of the steps of operations: nothing of it is journaled."""

from __future__ import annotations

import msgspec

from kilonova.agent.reports import Answer, Query
from kilonova.bus.protocol import Bus
from kilonova.bus.subjects import to_host
from kilonova.domain.errors import (
    Conflict,
    GuestAgentAway,
    KilonovaError,
    NotFound,
    NotSupported,
    ServiceUnavailable,
    Unreachable,
)

LIMIT = 10.0
"""Seconds that a host may take to answer."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Answer).decode
_ERRORS: dict[int, type[KilonovaError]] = {
    404: NotFound, 409: Conflict, 501: NotSupported, 503: ServiceUnavailable,
}


async def ask_host(bus: Bus, host: str, query: Query, *, limit: float = LIMIT) -> Answer:
    """The host's answer, within so many seconds.

    Raises:
        NotFound, Conflict, NotSupported, GuestAgentAway: what the host's driver said. ServiceUnavailable: it does not
        answer, or cannot say now. KilonovaError: it failed.
    """
    try:
        answer = _decode(await bus.request(to_host(host, "query"), _encode(query), timeout=limit))
    except Unreachable as error:
        raise ServiceUnavailable(f"Host {host} does not answer.") from error
    if answer.agent_away:
        raise GuestAgentAway(answer.error)
    if answer.error:
        raise _ERRORS.get(answer.status, KilonovaError)(answer.error)
    return answer
