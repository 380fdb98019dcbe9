"""Tempest in an environment of its own, made once from its lock file and kept in the cache."""

import fcntl
import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

LOCK = Path(__file__).parent.parent.parent / "requirements/tempest.lock"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("servers")


@pytest.fixture(scope="session")
def tempest_programs() -> Path:
    """The directory with the programs of Tempest."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kilonova" / "tempest"
    cache.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(sys.version.encode() + LOCK.read_bytes()).hexdigest()[:16]
    made = cache / digest
    with (cache / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (made / "complete").exists():
            venv.create(made, clear=True, with_pip=True)
            install = [made / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            done = subprocess.run(
                [*install, "--require-hashes", "-r", LOCK], capture_output=True, text=True, timeout=600, check=False
            )
            assert done.returncode == 0, done.stderr
            (made / "complete").touch()
    return made / "bin"
