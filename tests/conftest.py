"""What every test can ask for, and what is recorded of every run."""

from collections.abc import Iterator

import pytest
import structlog
from servers import postgres, postgres_url
from spec_results import SpecResults, cite

__all__ = ["postgres", "postgres_url"]

SERVER_FIXTURES = frozenset({"postgres", "postgres_url"})
"""Fixtures that start a server process: their tests are left out of `script/test quick`."""


@pytest.fixture(autouse=True)
def _logs_as_they_come() -> Iterator[None]:
    """What one test does to logging does not reach the next."""
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()


def pytest_configure(config: pytest.Config) -> None:
    worker = hasattr(config, "workerinput")  # one of several, which report to a process that writes
    if not config.option.collectonly and not worker:
        config.pluginmanager.register(SpecResults(), "spec-results")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    cite(items)
    for item in items:
        if _starts_a_server(item):
            item.add_marker("servers")


def _starts_a_server(item: pytest.Item) -> bool:
    if SERVER_FIXTURES.intersection(getattr(item, "fixturenames", ())):
        return True
    callspec = getattr(item, "callspec", None)
    parameters = callspec.params.values() if callspec else ()
    return any(isinstance(value, str) and value.startswith("postgres") for value in parameters)
