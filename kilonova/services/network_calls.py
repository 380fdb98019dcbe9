"""The network service of another process of the control plane, called over the bus.

One process has the service (`NetworkCalls` answers for it); all others use `RemoteNetwork`. Every call may be
repeated, so it is repeated until it is answered or its time is up: a restart of the service costs time, no more.
"""

from __future__ import annotations

import inspect
import typing
from dataclasses import dataclass
from typing import Any

import msgspec

from kilonova.bus.protocol import Bus, Subscription
from kilonova.domain import errors
from kilonova.domain.clock import Clock
from kilonova.domain.context import RequestContext
from kilonova.domain.errors import KilonovaError, ServiceUnavailable, Unreachable
from kilonova.domain.network import Vif
from kilonova.services.network import NetworkService, NetworkSummary, PortRequest, PortSummary

CALLS = "kn.service.network"
"""Where the process that has the service listens."""

GROUP = "network"
ATTEMPT_LIMIT = 15.0
"""Seconds that one attempt may take."""
CALL_LIMIT = 45.0
"""Seconds for which a call is repeated."""
PAUSE = 0.2


class _Call(msgspec.Struct, frozen=True):
    """arguments: in the order of the protocol, all of them."""

    name: str
    arguments: msgspec.Raw


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    """error: class name of the error that was raised, "" for none."""

    result: msgspec.Raw = msgspec.Raw(b"\xc0")
    error: str = ""
    message: str = ""
    hint: str | None = None


@dataclass(frozen=True)
class _Signature:
    names: tuple[str, ...]
    arguments: Any
    result: Any


def _signature(name: str) -> _Signature:
    function = getattr(NetworkService, name)
    hints = typing.get_type_hints(function)
    names = tuple(parameter for parameter in inspect.signature(function).parameters if parameter != "self")
    return _Signature(names, tuple[tuple(hints[n] for n in names)], hints["return"])  # type: ignore[misc]


SIGNATURES = {
    name: _signature(name) for name, value in vars(NetworkService).items() if inspect.iscoroutinefunction(value)
}

_encode = msgspec.msgpack.Encoder().encode
_decode_call = msgspec.msgpack.Decoder(_Call).decode
_decode_answer = msgspec.msgpack.Decoder(_Answer).decode


class NetworkCalls:
    """Answers for a network service. Several processes may: each call reaches one of them."""

    def __init__(self, service: NetworkService, bus: Bus) -> None:
        self._service = service
        self._bus = bus
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        self._subscription = await self._bus.subscribe(CALLS, self._handle, group=GROUP)

    async def close(self) -> None:
        if self._subscription is not None:
            await self._subscription.unsubscribe()

    async def _handle(self, _subject: str, payload: bytes) -> bytes:
        call = _decode_call(payload)
        signature = SIGNATURES[call.name]
        arguments = msgspec.msgpack.decode(call.arguments, type=signature.arguments)
        try:
            result = await getattr(self._service, call.name)(**dict(zip(signature.names, arguments, strict=True)))
        except KilonovaError as error:
            return _encode(_Answer(error=_public_name(error), message=error.message, hint=error.hint))
        return _encode(_Answer(result=msgspec.Raw(_encode(result))))


class RemoteNetwork:
    """A `NetworkService` that another process has."""

    def __init__(self, bus: Bus, clock: Clock) -> None:
        self._bus = bus
        self._clock = clock

    async def _call(self, name: str, *arguments: Any) -> Any:
        payload = _encode(_Call(name, msgspec.Raw(_encode(arguments))))
        give_up = self._clock.monotonic() + CALL_LIMIT
        while True:
            try:
                answer = _decode_answer(await self._bus.request(CALLS, payload, timeout=ATTEMPT_LIMIT))
                break
            except Unreachable as error:
                if self._clock.monotonic() > give_up:
                    raise ServiceUnavailable(
                        "The network service does not answer.", hint="check that `kilonova api` runs"
                    ) from error
            await self._clock.sleep(PAUSE)
        if answer.error:
            raise _error(answer)
        return msgspec.msgpack.decode(answer.result, type=SIGNATURES[name].result)

    async def networks(self, context: RequestContext, ids: tuple[str, ...] = ()) -> list[NetworkSummary]:
        found: list[NetworkSummary] = await self._call("networks", context, ids)
        return found

    async def port(self, context: RequestContext, port_id: str) -> PortSummary:
        found: PortSummary = await self._call("port", context, port_id)
        return found

    async def check_security_groups(self, context: RequestContext, names: tuple[str, ...]) -> tuple[str, ...]:
        ids: tuple[str, ...] = await self._call("check_security_groups", context, names)
        return ids

    async def create_port(self, request: PortRequest) -> str:
        id_: str = await self._call("create_port", request)
        return id_

    async def bind_port(self, port_id: str, instance_uuid: str, host: str, *, availability_zone: str = "",
                        tag: str | None = None) -> None:
        await self._call("bind_port", port_id, instance_uuid, host, availability_zone, tag)

    async def unbind_port(self, port_id: str, instance_uuid: str) -> None:
        await self._call("unbind_port", port_id, instance_uuid)

    async def delete_port(self, port_id: str) -> None:
        await self._call("delete_port", port_id)

    async def discard_port(self, key: str) -> None:
        await self._call("discard_port", key)

    async def ports_of(self, instance_uuid: str) -> list[PortSummary]:
        found: list[PortSummary] = await self._call("ports_of", instance_uuid)
        return found

    async def vifs(self, instance_uuid: str) -> tuple[Vif, ...]:
        found: tuple[Vif, ...] = await self._call("vifs", instance_uuid)
        return found

    async def release(self, instance_uuid: str, keep_ports: tuple[str, ...] = (), host: str | None = None) -> None:
        await self._call("release", instance_uuid, keep_ports, host)

    async def security_groups_of(self, port_ids: tuple[str, ...]) -> tuple[str, ...]:
        names: tuple[str, ...] = await self._call("security_groups_of", port_ids)
        return names


def _public_name(error: KilonovaError) -> str:
    """The name of its class, or of the nearest base that every release knows."""
    return next(class_.__name__ for class_ in type(error).__mro__ if class_.__module__ == errors.__name__)


def _error(answer: _Answer) -> KilonovaError:
    """The error that was raised there; of a class that this release does not know, a plain one."""
    class_ = getattr(errors, answer.error, KilonovaError)
    if not (isinstance(class_, type) and issubclass(class_, KilonovaError)):
        class_ = KilonovaError
    error: KilonovaError = class_.__new__(class_)
    KilonovaError.__init__(error, answer.message, hint=answer.hint)
    return error
