"""How commands print: aligned columns, times, colours on a terminal only."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import typer

GOOD, BAD, BUSY = "green", "red", "yellow"


def columns(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lines of aligned columns; the last column is as long as it needs to be."""
    lines = [tuple(header), *(tuple(row) for row in rows)]
    widths = [max(len(line[position]) for line in lines) for position in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def paint(text: str, colour: str) -> str:
    """Coloured on a terminal."""
    return typer.style(text, fg=colour) if sys.stdout.isatty() else text


def clock_time(seconds: float | None) -> str:
    """Local time of day, with the date if it is not today's."""
    if seconds is None:
        return "-"
    then, today = time.localtime(seconds), time.localtime()
    same_day = then[:3] == today[:3]
    return time.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M:%S", then)


def duration(seconds: float) -> str:
    """A length of time in at most two units."""
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes, hours = int(seconds // 60), int(seconds // 3600)
    if minutes < 120:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def counts(numbers: dict[str, int]) -> str:
    """`3 active, 1 error`, or `none`."""
    return ", ".join(f"{number} {name}" for name, number in sorted(numbers.items())) or "none"
