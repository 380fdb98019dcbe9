"""Telling what a long command is doing: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from kilonova.domain.errors import KilonovaError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

T = TypeVar("T")

POLL = 0.2
"""Seconds between looks at something that is waited for."""

SILENCE = 5.0
"""Seconds after which a part that takes long says what it is at, where there is no terminal."""


class Chapter:
    """One part of a long command."""

    def __init__(self, title: str, bar: Progress | None, task: TaskID | None, say: Callable[[str], None]) -> None:
        self.title = title
        self.outcome = ""
        self._bar = bar
        self._task = task
        self._say = say
        self._said_at = time.monotonic()

    def doing(self, what: str) -> None:
        """What it is at: always to be seen on a terminal, else a line now and then."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=f"{self.title}: {what}")
        elif time.monotonic() - self._said_at > SILENCE:
            self._said_at = time.monotonic()
            self._say(f"             {self.title}: {what} ...")

    def reached(self, amount: float, total: float) -> None:
        """How far it has come."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=amount, total=total)

    def wait_for(self, what: str, look: Callable[[], T | None], limit: float) -> T:
        """Look until something is there.

        Args:
            look: None while it is not. limit: seconds.

        Raises:
            KilonovaError: it did not come in time.
        """
        give_up = time.monotonic() + limit
        self.doing(what)
        while (found := look()) is None:
            if time.monotonic() > give_up:
                raise KilonovaError(f"Waited {limit:.0f} s for {what}, in vain.", hint="`kilonova ops` tells more")
            time.sleep(POLL)
        return found


class Story:
    """The parts of a long command, told as they happen. quiet: says nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._terminal = sys.stdout.isatty() and not quiet

    @contextmanager
    def chapter(self, title: str) -> Iterator[Chapter]:
        """A part; its outcome and how long it took is printed at its end."""
        began = time.monotonic()
        with self._bar() as bar:
            task = bar.add_task(title, total=None) if bar is not None else None
            chapter = Chapter(title, bar, task, self.say)
            yield chapter
        self.say(f"[{time.monotonic() - began:6.2f} s] {title:<12} {chapter.outcome}".rstrip())

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._quiet:
            return
        try:
            print(text, flush=True)
        except OSError:  # the terminal is gone; what follows may be the cleaning up
            self._quiet = True

    @contextmanager
    def _bar(self) -> Iterator[Progress | None]:
        if not self._terminal:
            yield None
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, transient=True) as bar:
            yield bar


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Shown on a terminal while something takes its time."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield
