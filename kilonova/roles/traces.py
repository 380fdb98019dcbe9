"""Traces for OpenTelemetry, sent over OTLP/HTTP. Imported only by processes that have traces switched on.

The span of an operation is made when the operation has ended, from its journal; that of a step where it runs. So that
they belong together whichever processes drove the operation, the span of an operation has an ID that follows from
that of the operation.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, contextmanager
from typing import Any
from uuid import UUID

import structlog
from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import kilonova
from kilonova.domain import tracing
from kilonova.domain.operation import Entry, EntryState, OperationRecord, OperationState
from kilonova.domain.tracing import Span, Value

log = structlog.get_logger(__name__)

FLUSH_LIMIT = 3.0
"""Seconds that a process which ends waits for its last spans to be taken."""
SEND_LIMIT = 5.0
"""Seconds that sending some spans may take, repeats included; then they are dropped."""

_HALF = (1 << 64) - 1
_W3C = TraceContextTextMapPropagator()


def start(endpoint: str, role: str, host: str, stack: AsyncExitStack) -> None:
    """Send the spans of this process to an endpoint; the stack sends the rest and stops it."""
    tracer = OpenTelemetry(OTLPSpanExporter(endpoint=endpoint, timeout=SEND_LIMIT), role, host)
    tracing.use(tracer)
    stack.push_async_callback(tracer.close)
    log.info("traces are sent", endpoint=endpoint)


class _Ids:
    """Random IDs, unless the next one is given."""

    def __init__(self) -> None:
        self._random = RandomIdGenerator()
        self.trace = 0
        self.span = 0

    def generate_trace_id(self) -> int:
        return self.trace or int(self._random.generate_trace_id())

    def generate_span_id(self) -> int:
        return self.span or int(self._random.generate_span_id())

    def is_trace_id_random(self) -> bool:
        return False


class _Span:
    """A span of the SDK, as the rest of this product sees it."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def note(self, **attributes: Value) -> None:
        self._span.set_attributes(_named(attributes))

    def rename(self, name: str) -> None:
        self._span.update_name(name)

    def fail(self, message: str) -> None:
        self._span.set_status(trace.StatusCode.ERROR, message)


class OpenTelemetry:
    """Makes spans and hands them to an exporter, in a thread of its own: what it meets is logged and changes nothing.

    Args:
        role, host: of this process.
    """

    def __init__(self, exporter: SpanExporter, role: str, host: str) -> None:
        self._ids = _Ids()
        made_by = {"service.name": "kilonova", "service.version": kilonova.__version__, "service.instance.id": role,
                   "host.name": host}
        ids: Any = self._ids
        self._provider = TracerProvider(resource=Resource.create(made_by), id_generator=ids, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("kilonova", kilonova.__version__)

    # --- spans of what happens now --------------------------------------------------------------------

    @contextmanager
    def span(self, name: str, attributes: dict[str, Value]) -> Iterator[Span]:
        with self._tracer.start_as_current_span(name, attributes=_named(attributes)) as begun:
            yield _Span(begun)

    @contextmanager
    def serve(self, name: str, traceparent: str, attributes: dict[str, Value]) -> Iterator[Span]:
        with self._tracer.start_as_current_span(
            name, _from_w3c(traceparent), kind=trace.SpanKind.SERVER, attributes=_named(attributes)
        ) as begun:
            yield _Span(begun)

    @contextmanager
    def _under(self, traceparent: str) -> Iterator[None]:
        token = context.attach(_from_w3c(traceparent))
        try:
            yield
        finally:
            context.detach(token)

    def under(self, traceparent: str) -> AbstractContextManager[object]:
        return self._under(traceparent)

    def present(self) -> Span:
        return _Span(trace.get_current_span())

    def traceparent(self) -> str:
        carried: dict[str, str] = {}
        _W3C.inject(carried)
        return carried.get("traceparent", "")

    # --- operations -----------------------------------------------------------------------------------

    def driving(self, record: OperationRecord) -> None:
        trace_id, flags = self._trace_of(record)
        ours = trace.SpanContext(trace_id, _span_id(record), is_remote=True, trace_flags=flags)
        context.attach(trace.set_span_in_context(trace.NonRecordingSpan(ours), context.Context()))

    def _trace_of(self, record: OperationRecord) -> tuple[int, trace.TraceFlags]:
        """The trace of the request that asked for it; one of its own if the service began it by itself."""
        asked = trace.get_current_span(_from_w3c(record.asker.traceparent)).get_span_context()
        if asked.is_valid:
            return asked.trace_id, asked.trace_flags
        own = UUID(record.id).int
        sampled = self._provider.sampler.should_sample(None, own, record.kind).decision is Decision.RECORD_AND_SAMPLE
        return own, trace.TraceFlags(trace.TraceFlags.SAMPLED if sampled else trace.TraceFlags.DEFAULT)

    def ended(self, record: OperationRecord, moments: Iterable[Entry]) -> None:
        about: dict[str, Value] = {
            "kilonova__operation": record.id, "kilonova__kind": record.kind, "kilonova__subject": record.subject,
        }
        asker = record.asker
        if asker.request_id:
            about["kilonova__request_id"] = asker.request_id
        for entry in moments:
            if entry.finished_at is not None:
                moment = self._tracer.start_span(
                    tracing.step_name(record, entry.step, undo=entry.undo),
                    attributes=_named(about | {"kilonova__step": entry.step, "kilonova__undo": entry.undo}),
                    start_time=_nanoseconds(entry.started_at),
                )
                if entry.state is EntryState.FAILED:
                    moment.set_status(trace.StatusCode.ERROR, entry.failure.message if entry.failure else None)
                moment.end(_nanoseconds(entry.finished_at))
        self._ids.trace, self._ids.span = UUID(record.id).int, _span_id(record)
        try:
            whole = self._tracer.start_span(
                record.kind, _from_w3c(asker.traceparent), start_time=_nanoseconds(record.created_at),
                attributes=_named(about | {"kilonova__outcome": record.state.value}),
            )
        finally:
            self._ids.trace = self._ids.span = 0
        if record.state is not OperationState.SUCCEEDED:
            whole.set_status(trace.StatusCode.ERROR, record.failure.message if record.failure else None)
        whole.end(_nanoseconds(record.finished_at or record.updated_at))

    # --- the end --------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Send what is left, if somebody takes it soon: a receiver that is away does not hold the process up."""
        tracing.use(None)
        loop, sent = asyncio.get_running_loop(), asyncio.Event()

        def send() -> None:
            self._provider.shutdown()
            if not loop.is_closed():
                loop.call_soon_threadsafe(sent.set)

        threading.Thread(target=send, name="last-spans", daemon=True).start()
        try:
            async with asyncio.timeout(FLUSH_LIMIT):
                await sent.wait()
        except TimeoutError:
            log.warning("the last spans were not taken in time")


def _from_w3c(traceparent: str) -> context.Context:
    """A context with that span alone; an empty one if there is none, or its form is wrong."""
    return _W3C.extract({"traceparent": traceparent}, context.Context())


def _span_id(record: OperationRecord) -> int:
    return UUID(record.id).int & _HALF or 1


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1_000_000_000)


def _named(attributes: dict[str, Value]) -> dict[str, Value]:
    return {name.replace("__", "."): value for name, value in attributes.items()}
