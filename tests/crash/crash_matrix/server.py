"""A process that has everything imported and forks a child for each life of each case.

Cases come as lines of JSON on standard input, results go as lines of JSON to standard output.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import os
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

from crash_matrix.cases import Case
from crash_matrix.clock import FastClock
from crash_matrix.cloud import LIMIT
from crash_matrix.life import End, Outcome, prepare, run_life
from crash_matrix.scenarios import SCENARIOS

EPOCH = 1_700_000_000.0
LAST_RESORT = LIMIT * 2 + 10.0
COMMON = ("build", "stop", "start", "delete")
"""Operations of which all others have something."""


class Result(msgspec.Struct, kw_only=True):
    """What a case showed. log: of all lives, if something was wrong."""

    id: str
    problems: list[str]
    end: End | None
    seconds: float
    log: str = ""


class ForkServer:
    """Args: directory: where clouds are kept while their cases run."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._now = EPOCH

    def serve(self) -> None:
        """Until standard input ends."""
        decode = msgspec.json.Decoder(Case).decode
        for line in sys.stdin:
            result = self.run(decode(line))
            print(msgspec.json.encode(result).decode(), flush=True)

    def run(self, case: Case) -> Result:
        """One case from the beginning."""
        began = time.monotonic()
        place = self._directory / "case"
        try:
            shutil.copytree(self._prepared(SCENARIOS[case.operation].before), place)
            outcome = self._lives(case, place)
            log = _read(place / "log") if outcome.problems else ""
        except Exception as error:  # noqa: BLE001 - told to whoever asked for the case
            outcome, log = Outcome(problems=[repr(error)]), traceback.format_exc()
        finally:
            shutil.rmtree(place, ignore_errors=True)
        return Result(
            id=case.id, problems=outcome.problems, end=outcome.end, seconds=time.monotonic() - began, log=log
        )

    def _lives(self, case: Case, place: Path) -> Outcome:
        start, began = self._now, time.time()
        for number, acts in enumerate(case.lives):
            clock = FastClock(start + number * case.pause, began)
            outcome = place / f"outcome{number}"

            def life(number: int = number, clock: FastClock = clock, outcome: Path = outcome) -> None:
                found = asyncio.run(run_life(case, number, place, clock))
                outcome.write_bytes(msgspec.json.encode(found))

            status = _fork(life, place / "log")
            killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            if number < len(case.lives) - 1:
                if not killed:
                    return Outcome(problems=[f"never came to {acts[-1].point}", *_problems(outcome)])
            elif not outcome.exists():
                return Outcome(problems=[f"the process ended with status {status}"])
        return msgspec.json.decode(outcome.read_bytes(), type=Outcome)

    def warm_up(self) -> None:
        """Live through a little, so that what children would do again is there when they are forked: statements are
        compiled, and modules imported."""
        with tempfile.TemporaryDirectory(dir=self._directory) as place:
            for length in range(len(COMMON) + 1):
                asyncio.run(prepare(Path(place), FastClock(self._now, time.time()), COMMON[:length]))

    def _prepared(self, requests: tuple[str, ...]) -> Path:
        """A directory with a cloud in which these requests have been made; made once."""
        place = self._directory / ("-".join(requests) or "empty")
        if not place.exists():
            building = place.with_suffix(".new")
            shutil.rmtree(building, ignore_errors=True)
            if requests:
                shutil.copytree(self._prepared(requests[:-1]), building)
            else:
                building.mkdir()
            clock = FastClock(self._now, time.time())
            status = _fork(lambda: asyncio.run(prepare(building, clock, requests)), building / "log")
            if status != 0:
                raise AssertionError(_read(building / "log"))
            self._now = clock.now()
            (building / "log").unlink()
            building.rename(place)
        return place


def _problems(outcome: Path) -> list[str]:
    return msgspec.json.decode(outcome.read_bytes(), type=Outcome).problems if outcome.exists() else []


def _read(log: Path) -> str:
    return log.read_text(errors="replace") if log.exists() else ""


def _fork(life: Callable[[], None], log: Path) -> int:
    """Run a function in a child process; returns its status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(output, 1)
            os.dup2(output, 2)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            faulthandler.dump_traceback_later(LAST_RESORT - 2)
            life()
            status = 0
        except BaseException:  # noqa: BLE001 - into the log, whatever it is
            traceback.print_exc()
        finally:
            with contextlib.suppress(BaseException):
                sys.stderr.flush()
            os._exit(status)
    handle = os.pidfd_open(child)
    try:
        if not select.select([handle], [], [], LAST_RESORT)[0]:
            os.kill(child, signal.SIGQUIT)
    finally:
        os.close(handle)
    return os.waitpid(child, 0)[1]


def main() -> None:
    """Serve in the directory that is the only argument."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level, structlog.processors.format_exc_info,
            structlog.processors.LogfmtRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr), cache_logger_on_first_use=False,
    )
    server = ForkServer(Path(sys.argv[1]))
    server.warm_up()
    gc.collect()
    gc.freeze()
    server.serve()


if __name__ == "__main__":
    main()
