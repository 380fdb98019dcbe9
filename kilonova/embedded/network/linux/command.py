"""Runs the machine's own tools: argument lists, bounded in time, errors with what the tool said."""

from __future__ import annotations

import asyncio
import os
import shutil

from kilonova.domain.errors import KilonovaError, Retryable

LIMIT = 20.0
"""Seconds a command may take."""

_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def find(tool: str, package: str) -> str:
    """The path of a tool. Raises KilonovaError naming the package that has it."""
    path = shutil.which(tool, path=_PATH)
    if path is None:
        raise KilonovaError(f"The command {tool} is missing.", hint=f"install the package {package}")
    return path


async def run(arguments: list[str], text: str = "") -> str:
    """Run a command and return what it printed.

    Args:
        text: its standard input.

    Raises:
        Retryable: it failed or took too long.
    """
    has_input = bool(text)  # a pipe that nobody reads may be closed before it is written to
    process = await asyncio.create_subprocess_exec(
        *arguments, stdin=asyncio.subprocess.PIPE if has_input else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={"PATH": _PATH, "LC_ALL": "C"},
    )
    name = os.path.basename(arguments[0])  # noqa: PTH119 - text, not a file
    try:
        async with asyncio.timeout(LIMIT):
            output, errors = await process.communicate(text.encode() if has_input else None)
    except TimeoutError as error:
        process.kill()
        await process.wait()
        raise Retryable(f"The command {name} did not end within {LIMIT:.0f} seconds.") from error
    if process.returncode:
        said = errors.decode(errors="replace").strip() or f"exit code {process.returncode}"
        raise Retryable(f"The command {name} failed: {said[:500]}")
    return output.decode(errors="replace")
