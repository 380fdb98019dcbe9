"""What the log lines of a piece of work have in common: the request that it serves, the operation and step that it is.

The fields are bound once, where a request, an operation or a step begins, and every line that is written until its end
carries them. Tasks that are started meanwhile inherit them; `packed` and `unpacked` take them over the bus, and
`Threads` into threads.
"""

from __future__ import annotations

import contextvars
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, ParamSpec, TypeVar

import msgspec
from structlog.contextvars import bind_contextvars, bound_contextvars, clear_contextvars, get_contextvars

from kilonova.domain.operation import OperationRecord

P = ParamSpec("P")
T = TypeVar("T")

FIELDS = frozenset({
    "request_id", "global_request_id", "operation", "kind", "instance", "aggregate", "step", "undo", "host",
    "host_step",
})
"""All fields that a trail can have."""
LONGEST = 255
"""Characters of a field that are taken over from another process."""
LARGEST = 4096
"""Bytes of a trail that is taken over from another process."""

_REQUEST_ID = re.compile(r"req-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")

_Fields = dict[str, str | bool]
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(_Fields).decode


def global_request_id(header: str | None) -> str | None:
    """The ID that a caller gives its own request, from `X-Openstack-Request-Id`; None if it is not one."""
    return header if header is not None and _REQUEST_ID.fullmatch(header) else None


def serving(request_id: str, global_id: str | None = None) -> AbstractContextManager[None]:
    """While a request is served."""
    if global_id is None:
        return bound_contextvars(request_id=request_id)
    return bound_contextvars(request_id=request_id, global_request_id=global_id)


def driving(record: OperationRecord, about: str) -> None:
    """From here on, this task drives an operation. about: what its subject is, which is the name of the field."""
    clear_contextvars()
    asked = {"request_id": record.asker.request_id, "global_request_id": record.asker.global_request_id}
    bind_contextvars(
        operation=record.id, kind=record.kind, **{about: record.subject}, **{k: v for k, v in asked.items() if v}
    )


def at_step(step: str, *, undo: bool) -> None:
    """From here on, this task is at a step of its operation."""
    bind_contextvars(step=step, undo=undo)


def on_host(host: str, step: str, operation: str) -> None:
    """From here on, this task runs a host's part of a step."""
    bind_contextvars(host=host, host_step=step, operation=operation)


def packed() -> str:
    """The trail of this task for a message, "" if it has none."""
    fields = {name: value for name, value in get_contextvars().items() if name in FIELDS}
    return _encode(fields).decode() if fields else ""


def unpacked(text: str) -> AbstractContextManager[None]:
    """While a message is handled that came with this trail. What cannot be one is passed over."""
    try:
        found = _decode(text) if 0 < len(text) <= LARGEST else {}
    except msgspec.DecodeError:
        found = {}
    return bound_contextvars(**{
        name: value[:LONGEST] if isinstance(value, str) else value
        for name, value in found.items() if name in FIELDS
    })


class Threads(ThreadPoolExecutor):
    """Threads whose log lines carry the trail of the task that gave them their work."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        context = contextvars.copy_context()

        def work() -> Any:
            return context.run(fn, *args, **kwargs)

        return super().submit(work)
