"""Spans of traces, for whoever wants to see where time goes. Off unless a process switches them on (`roles/traces.py`).

While it is off, nothing is made and nothing is kept: every call here returns at once. Spans that are begun inside each
other belong together, also in tasks that are started meanwhile; over the bus, and in the journal, the W3C form
(`traceparent`) keeps them together.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from kilonova.domain.operation import Entry, OperationRecord

Value = str | int | float | bool


class Span(Protocol):
    """A span that has begun."""

    def note(self, **attributes: Value) -> None:
        """Facts that turned up. In names, two underscores become a dot."""
        ...

    def rename(self, name: str) -> None:
        """What it does is known now."""
        ...

    def fail(self, message: str) -> None:
        """What it does has failed, without an exception that tells so."""
        ...


class Tracer(Protocol):
    """What makes spans."""

    def span(self, name: str, attributes: dict[str, Value]) -> AbstractContextManager[Span]: ...

    def serve(self, name: str, traceparent: str, attributes: dict[str, Value]) -> AbstractContextManager[Span]: ...

    def under(self, traceparent: str) -> AbstractContextManager[object]: ...

    def present(self) -> Span: ...

    def traceparent(self) -> str: ...

    def driving(self, record: OperationRecord) -> None: ...

    def ended(self, record: OperationRecord, moments: Iterable[Entry]) -> None: ...


class _NoSpan:
    """Stands for all spans while nobody wants them."""

    def note(self, **attributes: Value) -> None:
        return None

    def rename(self, name: str) -> None:
        return None

    def fail(self, message: str) -> None:
        return None


_NO_SPAN: Span = _NoSpan()
_NOTHING: AbstractContextManager[Span] = nullcontext(_NO_SPAN)
_tracer: Tracer | None = None


def use(tracer: Tracer | None) -> None:
    """From here on, this process makes spans with this; None: it makes none."""
    global _tracer
    _tracer = tracer


def span(name: str, **attributes: Value) -> AbstractContextManager[Span]:
    """A part of what this task does. An exception that leaves it is noted."""
    return _NOTHING if _tracer is None else _tracer.span(name, attributes)


def step(record: OperationRecord, name: str, *, undo: bool, attempt: int) -> AbstractContextManager[Span]:
    """A step of an operation runs."""
    if _tracer is None:
        return _NOTHING
    return _tracer.span(step_name(record, name, undo=undo), {
        "kilonova__operation": record.id, "kilonova__step": name, "kilonova__undo": undo, "kilonova__attempt": attempt,
    })


def step_name(record: OperationRecord, step: str, *, undo: bool) -> str:
    """What the span of a step is called."""
    return f"{record.kind}: {'undo ' if undo else ''}{step}"


def serve(name: str, traceparent: str, **attributes: Value) -> AbstractContextManager[Span]:
    """A request is served. traceparent: what the caller says of its own span, "" for nothing."""
    return _NOTHING if _tracer is None else _tracer.serve(name, traceparent, attributes)


def under(traceparent: str) -> AbstractContextManager[object]:
    """While a message is handled whose sender was in that span."""
    return _NOTHING if _tracer is None or not traceparent else _tracer.under(traceparent)


def present() -> Span:
    """The innermost span that this task is in."""
    return _NO_SPAN if _tracer is None else _tracer.present()


def traceparent() -> str:
    """The innermost span in the form in which others are told of it; "" if there is none."""
    return "" if _tracer is None else _tracer.traceparent()


def driving(record: OperationRecord) -> None:
    """From here on, the spans of this task are parts of that operation, whoever drove it before."""
    if _tracer is not None:
        _tracer.driving(record)


def ended(record: OperationRecord, waits: Iterable[str]) -> None:
    """An operation has ended. waits: its steps that wait, which are in the journal alone, as those are that take no
    time: a change of the record, or something that was there before."""
    if _tracer is not None:
        names = frozenset(waits)
        _tracer.ended(record, [e for e in record.entries if e.step in names or e.finished_at == e.started_at])
