"""Names that are used in ways vulture cannot see: each with who uses it."""

from typing import Any

_: Any = None

# SQLAlchemy calls these on column types.
_.process_bind_param
_.process_result_value
_.load_dialect_impl

# uvicorn enters it around serving.
_.capture_signals

# typer runs commands by their decorator.
_.explain
_.build_test

# OpenTelemetry asks what makes the IDs of spans.
_.is_trace_id_random
