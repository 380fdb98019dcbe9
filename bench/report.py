"""The results: a table for people, JSON for machines."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path


@dataclass(frozen=True)
class Result:
    """One measured figure.

    Args:
        name: what was measured. value: how much, in `unit`. target: what is to be reached, None if nothing is promised.
        at_least: the target is a lower bound. note: how it was measured, with what else was seen.
        of, at: what grows, and the number of servers at which it was measured.
    """

    name: str
    value: float
    unit: str
    target: float | None = None
    at_least: bool = False
    note: str = ""
    of: str = ""
    at: int = 0

    @property
    def reached(self) -> bool | None:
        if self.target is None:
            return None
        return self.value >= self.target if self.at_least else self.value <= self.target


def machine() -> dict[str, str]:
    """Where this ran."""
    memory = Path("/proc/meminfo").read_text().split()[1]
    return {
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{int(memory) / 2**20:.0f} GiB",
        "python": platform.python_version(),
        "kernel": platform.release(),
        "kilonova": metadata.version("kilonova"),
        "load": f"{os.getloadavg()[0]:.1f} before the run",
        "date": time.strftime("%Y-%m-%d"),
    }


def table(results: Iterable[Result], where: dict[str, str]) -> str:
    """Markdown."""
    lines = ["| what | measured | target | |", "| --- | --- | --- | --- |"]
    for result in results:
        sign = "at least" if result.at_least else "at most"
        target = "" if result.target is None else f"{sign} {result.target:g} {result.unit}".strip()
        verdict = {True: "reached", False: "**missed**", None: ""}[result.reached]
        measured = f"{result.value:.3g} {result.unit}".strip()
        lines.append(f"| {result.name} | {measured} | {target} | {'; '.join(filter(None, (verdict, result.note)))} |")
    about = ", ".join(f"{name} {value}" for name, value in where.items())
    return "\n".join([*lines, "", f"Machine: {about}.", ""])


def charts(results: Iterable[Result]) -> str:
    """Markdown: how what grows has grown, a table and a chart (Mermaid) for each unit. The lines of a chart are in the
    order of the table."""
    by_unit: dict[str, dict[str, dict[int, float]]] = {}
    for result in results:
        if result.of:
            by_unit.setdefault(result.unit, {}).setdefault(result.of, {})[result.at] = result.value
    lines: list[str] = []
    for unit, series in by_unit.items():
        sizes = sorted({at for values in series.values() for at in values})
        heads = [f"{at:,} servers" for at in sizes]
        lines += [f"| {unit} | {' | '.join(heads)} |", "| --- |" + " --- |" * len(sizes)]
        lines += [f"| {of} | {' | '.join(f'{values[at]:.3g}' for at in sizes)} |" for of, values in series.items()]
        quoted = ", ".join(f'"{at:,}"' for at in sizes)
        lines += ["", "```mermaid", "xychart-beta", f"    x-axis servers [{quoted}]", f'    y-axis "{unit}"']
        lines += [f"    line [{', '.join(f'{values[at]:.2f}' for at in sizes)}]" for values in series.values()]
        lines += ["```", ""]
    return "\n".join(lines)


def write(directory: Path, results: list[Result], where: dict[str, str]) -> None:
    """results.json and results.md."""
    directory.mkdir(parents=True, exist_ok=True)
    document = {"machine": where, "results": [asdict(one) | {"reached": one.reached} for one in results]}
    (directory / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    (directory / "results.md").write_text("\n".join(filter(None, (table(results, where), charts(results)))))
