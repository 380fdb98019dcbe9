"""What `kilonova up` shows while it comes up, and its log."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, TextIO

import structlog

if TYPE_CHECKING:
    from kilonova.roles.one_machine import Running


class StartupLines:
    """One line for each component. Args: quiet: show nothing."""

    def __init__(self, stream: TextIO, *, quiet: bool) -> None:
        self._stream = stream
        self._quiet = quiet
        self._began = time.monotonic()

    def progress(self, component: str, doing: str) -> None:
        """A component begins to do something."""
        if not self._quiet:
            seconds = time.monotonic() - self._began
            self._stream.write(f"[{seconds:5.2f} s] {component:<11} {doing}\n")
            self._stream.flush()

    def done(self) -> None:
        self.progress("ready", "")


def summary(running: Running) -> str:
    """What to do next, for people."""
    return (
        f"Kilonova is up ({running.driver} driver, data in {running.data_dir}).\n"
        f"  identity  {running.auth_url}\n"
        f"  compute   {running.compute_url}\n"
        f"Use it:\n"
        f"  export OS_CLIENT_CONFIG_FILE={running.clouds_yaml} OS_CLOUD={running.cloud}\n"
        f"  openstack server list\n"
    )


def log_to(stream: TextIO, level: str) -> None:
    """Structured log lines: readable on a terminal, JSON elsewhere."""
    number = getattr(logging, level.upper())
    terminal = stream.isatty()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer() if terminal else structlog.processors.format_exc_info,
            *(() if terminal else (structlog.processors.JSONRenderer(),)),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(file=stream),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=max(number, logging.WARNING), stream=stream, format="%(levelname)s %(name)s %(message)s")
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
