"""What a process that serves does not keep in memory."""

from __future__ import annotations

import subprocess
import sys

WITHOUT = ("rich", "pygments", "pycdlib", "jsonschema", "opentelemetry", "alembic", "oslo_messaging", "oslo_policy")
"""What only commands, some servers or some configurations need."""

LOADED = f"""
import sys
from pathlib import Path
from kilonova.cli.installation import configuration
configuration(Path("nowhere"))
import kilonova.cli.logs, kilonova.roles.one_machine, kilonova.hypervisor.libvirt.driver
print([name for name in {WITHOUT} if name in sys.modules])
import rich.console
"""

KEPT = """
import sys
from pathlib import Path
from kilonova.roles import allocator

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

if "give back" in sys.argv:
    allocator.give_back_large_blocks()
for _ in range(3):
    block = b"x" * (12 << 20)
    before = resident()
    del block
print(before - resident())
"""


def _printed(program: str, *arguments: str) -> str:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.strip()


def test_a_cloud_loads_nothing_that_it_does_not_need() -> None:
    assert _printed(LOADED) == "[]"


def test_large_blocks_are_given_back_as_soon_as_they_are_free() -> None:
    assert int(_printed(KEPT, "give back")) > 11 << 20
