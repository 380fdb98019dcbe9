"""The garbage collector of a process that serves for long.

What a start leaves behind (modules, tables, statements, routes) stays for good: looking through it for garbage takes
a tenth of the time of a start and again of all work after it.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

THRESHOLDS = (10_000, 20, 50)
"""New objects before the youngest are looked through; one request makes and drops some thousand."""


@contextmanager
def resting() -> Iterator[None]:
    """Start a process without collecting; leave what is there by the end out of every later collection."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.set_threshold(*THRESHOLDS)
        gc.enable()
