"""Two fork servers, and the cases that wait for them."""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

import msgspec

from crash_matrix.cases import Case
from crash_matrix.server import LAST_RESORT, Result

SERVERS = 2
NEVER = 10 * LAST_RESORT


class Matrix:
    """Runs cases ahead of those who ask for their results.

    Args:
        directory: for the files of the clouds. planned: cases in the order in which they will be asked for.
    """

    def __init__(self, directory: Path, planned: list[Case]) -> None:
        self._waiting = deque(planned)
        self._results: dict[str, Result] = {}
        self._selector = selectors.DefaultSelector()
        self._servers = [self._start(directory / f"server{n}") for n in range(SERVERS)]
        self._busy: dict[subprocess.Popen[str], Case] = {}

    def _start(self, directory: Path) -> subprocess.Popen[str]:
        directory.mkdir()
        paths = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
        server = subprocess.Popen(
            [sys.executable, "-m", "crash_matrix.server", str(directory)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        assert server.stdout is not None
        self._selector.register(server.stdout, selectors.EVENT_READ, server)
        return server

    def result(self, case: Case) -> Result:
        """The result of a case, which is the next to run if it has not begun."""
        if case.id not in self._results and case not in self._busy.values():
            with contextlib.suppress(ValueError):
                self._waiting.remove(case)
            self._waiting.appendleft(case)
        give_up = time.monotonic() + NEVER
        while case.id not in self._results:
            self._feed()
            for key, _ in self._selector.select(timeout=give_up - time.monotonic()):
                self._take(key.data)
            if time.monotonic() > give_up:
                raise TimeoutError(f"no result of {case.id}")
        self._feed()
        return self._results[case.id]

    def _feed(self) -> None:
        for server in self._servers:
            if server not in self._busy and self._waiting:
                case = self._waiting.popleft()
                self._busy[server] = case
                assert server.stdin is not None
                server.stdin.write(msgspec.json.encode(case).decode() + "\n")
                server.stdin.flush()

    def _take(self, server: subprocess.Popen[str]) -> None:
        assert server.stdout is not None
        line = server.stdout.readline()
        case = self._busy.pop(server)
        if not line:
            raise AssertionError(f"the fork server ended during {case.id}")
        self._results[case.id] = msgspec.json.decode(line, type=Result)

    @property
    def results(self) -> list[Result]:
        return list(self._results.values())

    def close(self) -> None:
        self._selector.close()
        for server in self._servers:
            assert server.stdin is not None
            server.stdin.close()
        for server in self._servers:
            server.wait(LAST_RESORT)
