"""Calling a service of another process of the control plane over the bus.

One process has the service (`ServiceCalls` answers for it); all others use a `RemoteService`. Every call may be
repeated, so it is repeated until it is answered or its time is up: a restart of the service costs time, no more.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from kilonova.bus.protocol import Bus, Subscription
from kilonova.domain import errors
from kilonova.domain.clock import Clock
from kilonova.domain.errors import KilonovaError, ServiceUnavailable, Unreachable

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
class Signature:
    """Names and types of the arguments of a call, and the type of its result."""

    names: tuple[str, ...]
    arguments: Any
    result: Any


def signatures(protocol: type, names: Iterable[str]) -> Mapping[str, Signature]:
    """The calls of those names, from the protocol of a service."""
    return {name: _signature(getattr(protocol, name)) for name in names}


def _signature(function: Any) -> Signature:
    hints = typing.get_type_hints(function)
    names = tuple(parameter for parameter in inspect.signature(function).parameters if parameter != "self")
    return Signature(names, tuple[tuple(hints[n] for n in names)], hints["return"])  # type: ignore[misc]


_encode = msgspec.msgpack.Encoder().encode
_decode_call = msgspec.msgpack.Decoder(_Call).decode
_decode_answer = msgspec.msgpack.Decoder(_Answer).decode


class ServiceCalls:
    """Answers for a service. Several processes may: each call reaches one of them.

    Args:
        name: of the service; it listens on `kn.service.<name>`.
    """

    def __init__(self, name: str, service: Any, known: Mapping[str, Signature], bus: Bus) -> None:
        self._name = name
        self._service = service
        self._known = known
        self._bus = bus
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        self._subscription = await self._bus.subscribe(subject_of(self._name), self._handle, group=self._name)

    async def close(self) -> None:
        if self._subscription is not None:
            await self._subscription.unsubscribe()

    async def _handle(self, _subject: str, payload: bytes) -> bytes:
        call = _decode_call(payload)
        signature = self._known[call.name]
        arguments = msgspec.msgpack.decode(call.arguments, type=signature.arguments)
        try:
            result = await getattr(self._service, call.name)(**dict(zip(signature.names, arguments, strict=True)))
        except KilonovaError as error:
            return _encode(_Answer(error=_public_name(error), message=error.message, hint=error.hint))
        return _encode(_Answer(result=msgspec.Raw(_encode(result))))


class RemoteService:
    """A service that another process has."""

    def __init__(self, name: str, known: Mapping[str, Signature], bus: Bus, clock: Clock) -> None:
        self._name = name
        self._known = known
        self._bus = bus
        self._clock = clock

    async def call(self, name: str, *arguments: Any) -> Any:
        """Raises what the service raises; ServiceUnavailable if it does not answer."""
        payload = _encode(_Call(name, msgspec.Raw(_encode(arguments))))
        give_up = self._clock.monotonic() + CALL_LIMIT
        while True:
            try:
                reply = await self._bus.request(subject_of(self._name), payload, timeout=ATTEMPT_LIMIT)
                answer = _decode_answer(reply)
                break
            except Unreachable as error:
                if self._clock.monotonic() > give_up:
                    raise ServiceUnavailable(
                        f"The {self._name} service does not answer.", hint="check that `kilonova api` runs"
                    ) from error
            await self._clock.sleep(PAUSE)
        if answer.error:
            raise _error(answer)
        return msgspec.msgpack.decode(answer.result, type=self._known[name].result)


def subject_of(service: str) -> str:
    """Where the process that has a service listens."""
    return f"kn.service.{service}"


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
