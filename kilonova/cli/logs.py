"""The log of a process: structured lines, readable on a terminal, JSON elsewhere."""

from __future__ import annotations

import logging
from typing import TextIO

import structlog
from structlog.stdlib import ProcessorFormatter
from structlog.typing import Processor


def log_to(stream: TextIO, level: str) -> None:
    """Write the lines of this product, and the warnings of the libraries that it uses, in one form.

    Each line carries what was bound where the request, operation or step began that it is a part of
    (`kilonova.domain.trail`).

    Args:
        level: the least that is written; of libraries it is at least a warning.
    """
    number = getattr(logging, level.upper())
    begun: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    written: list[Processor] = [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    if not stream.isatty():
        written = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[*begun, *written],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(file=stream),
        cache_logger_on_first_use=True,
    )
    libraries = logging.StreamHandler(stream)
    libraries.setFormatter(ProcessorFormatter(
        foreign_pre_chain=[structlog.stdlib.add_logger_name, *begun],
        processors=[ProcessorFormatter.remove_processors_meta, *written],
    ))
    logging.basicConfig(level=max(number, logging.WARNING), handlers=[libraries], force=True)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
