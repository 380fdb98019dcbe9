"""Roles that are not configured to run apart say what is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LIMIT = 120.0


def _run(directory: Path, *arguments: str, **options: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {f"KILONOVA__{name}": value for name, value in options.items()}
    command = [sys.executable, "-m", "kilonova", *arguments, "--data-dir", str(directory)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False)


@pytest.mark.parametrize(
    ("role", "options", "complaint"),
    [
        ("conductor", {}, "cannot share a SQLite database"),
        ("console", {}, "cannot share a SQLite database"),
        ("agent", {"AGENT__DRIVER": "fake"}, "need a message bus"),
        ("agent", {}, "cannot run apart yet"),
        ("agent", {"AGENT__DRIVER": "fake", "BUS__SERVERS": '["nats://127.0.0.1:1"]', "BUS__CREDENTIALS": "/nowhere"},
         "cannot be read from /nowhere"),
        ("scheduler", {"BUS__SERVERS": "[nats://127.0.0.1:1]"}, "is not a list"),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    tmp_path: Path, role: str, options: dict[str, str], complaint: str
) -> None:
    done = _run(tmp_path, role, **options)
    assert done.returncode == 1 and done.stdout == ""
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("kilonova: ") and complaint in last and "Traceback" not in done.stderr
