"""Which cases of the crash matrix a run has: an eighth of them, others for each commit.

`KILONOVA_CRASH_SHARE` sets the part (1 for all). Cases that are named (`-k`, or by their ids) always run.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

SHARE = float(os.environ.get("KILONOVA_CRASH_SHARE", "0.125"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if SHARE >= 1 or config.option.keyword or any("::" in argument for argument in config.args):
        return
    commit = _commit()
    left = [item for item in items if _is_case(item) and _place(commit + item.name) >= SHARE]
    config.hook.pytest_deselected(items=left)
    out = set(map(id, left))
    items[:] = [item for item in items if id(item) not in out]


def _is_case(item: pytest.Item) -> bool:
    return "matrix" in getattr(item, "fixturenames", ())


def _commit() -> str:
    """That of the checkout; "" outside of one."""
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return done.stdout.strip()


def _place(text: str) -> float:
    """Where a text lies between 0 and 1."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") / (1 << 32)
