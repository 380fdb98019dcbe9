"""Running the programs that make file systems and boot loaders."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from kilonova.domain.errors import KilonovaError

TIMEOUT = 120.0
"""seconds"""
NEEDED = "Making the guest image needs the packages e2fsprogs, kmod and qemu-utils."


def run(command: list[str], *, unpacked: Path | None = None, cwd: Path | None = None) -> bytes:
    """Run a program to its end and return its output.

    Args:
        unpacked: a tree of unpacked packages whose programs come before those of the machine.
    """
    places = [str(unpacked / place) for place in ("usr/bin", "bin", "usr/sbin", "sbin")] if unpacked else []
    path = os.pathsep.join([*places, os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    environment = {"PATH": path, "LC_ALL": "C", "MTOOLS_SKIP_CHECK": "1", "HOME": "/nonexistent"}
    try:
        result = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, timeout=TIMEOUT)
    except FileNotFoundError as error:
        raise KilonovaError(f"The program {command[0]} is not there.", hint=NEEDED) from error
    except subprocess.TimeoutExpired as error:
        raise KilonovaError(f"{command[0]} did not end within {TIMEOUT:.0f} s.") from error
    if result.returncode:
        reason = result.stderr.decode(errors="replace").strip()[-500:]
        raise KilonovaError(
            f"{command[0]} failed with code {result.returncode}: {reason}",
            hint=NEEDED,
        )
    return result.stdout
