"""`script/bench`: run measurements, print the table, keep it in var/bench."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.actions import actions
from bench.growth import growth
from bench.guests import guest_up
from bench.measures import idle, servers, start
from bench.report import Result, machine, table, write
from bench.volumes import volumes

OUTPUT = Path(__file__).parent.parent / "var" / "bench"

MEASURES: dict[str, tuple[Callable[[], Iterator[Result]], Callable[[], Iterator[Result]]]] = {
    "start": (lambda: start(5), lambda: start(1)),
    "idle": (idle, idle),
    "servers": (lambda: servers(50, 500), lambda: servers(5, 10)),
    "actions": (lambda: actions(30), lambda: actions(1)),
    "growth": (lambda: growth((100, 1_000, 3_000, 10_000)), lambda: growth((60, 100))),
    "volumes": (lambda: volumes(15, 100, 10, 512, 3, 2048), lambda: volumes(1, 4, 2, 32, 1, 32)),
    "guests": (lambda: guest_up(5), lambda: guest_up(1)),
}
"""By name: as it is meant, and quickly, to see that it works."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="script/bench", description="Measure the control plane on this machine.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MEASURES)}; all of them if none")
    parser.add_argument("--quick", action="store_true", help="small numbers: says only that the benchmarks work")
    options = parser.parse_args()
    unknown = set(options.names) - MEASURES.keys()
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are: {', '.join(MEASURES)}")
    where = machine()
    results: list[Result] = []
    for name, (whole, quick) in MEASURES.items():
        if options.names and name not in options.names:
            continue
        for result in (quick if options.quick else whole)():
            results.append(result)
            print(f"{result.name}: {result.value:.3g} {result.unit} {result.note}".rstrip(), flush=True)
    write(OUTPUT, results, where)
    print(f"\n{table(results, where)}\nwritten to {OUTPUT}/results.json and results.md")


if __name__ == "__main__":
    main()
