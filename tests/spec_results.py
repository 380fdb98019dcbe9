"""Records which requirements each test cites and how the test ended, for `script/spec-coverage`.

The record is var/spec-results.json: {"tests/unit/test_x.py::test_y": {"ids": [...], "outcome": "passed"}}. A
run replaces what it ran and keeps the rest, so that layers may be run one after another.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

RESULTS = Path(__file__).parent.parent / "var" / "spec-results.json"

WORST_LAST = ("passed", "skipped", "failed")


def cite(items: list[pytest.Item]) -> None:
    """Make the reports of tests tell what they cite, also those that come from another process (pytest-xdist)."""
    for item in items:
        ids = sorted({str(name) for mark in item.iter_markers("spec") for name in mark.args})
        item.user_properties += [("spec", name) for name in ids]


class SpecResults:
    """A pytest plugin that collects outcomes and writes them when the session ends."""

    def __init__(self, path: Path = RESULTS) -> None:
        self._path = path
        self._ids: dict[str, list[str]] = {}
        self._outcomes: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        ids = [str(value) for name, value in report.user_properties if name == "spec"]
        if not ids or (report.when != "call" and report.outcome == "passed"):
            return
        self._ids[report.nodeid] = ids
        outcome = "skipped" if hasattr(report, "wasxfail") else report.outcome
        before = self._outcomes.get(report.nodeid, WORST_LAST[0])
        self._outcomes[report.nodeid] = max(before, outcome, key=WORST_LAST.index)

    def pytest_sessionfinish(self) -> None:
        if not self._outcomes:
            return
        results = self._still_there()
        for node, outcome in self._outcomes.items():
            results[node] = {"ids": self._ids[node], "outcome": outcome}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        written = self._path.with_suffix(f".{os.getpid()}")
        written.write_text(json.dumps(results, indent=0, sort_keys=True))
        written.replace(self._path)

    def _still_there(self) -> dict[str, Any]:
        """The earlier record, without the tests of files that are gone."""
        try:
            earlier = json.loads(self._path.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return {}
        root = Path(__file__).parent.parent
        return {node: result for node, result in earlier.items() if (root / node.split("::")[0]).exists()}
