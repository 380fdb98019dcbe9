"""`kilonova doctor`: whether this machine and the installation on it are in order."""

from __future__ import annotations

from typing import Annotated

import typer

from kilonova.cli.installation import DataDir, Json, configuration


def doctor(
    data_dir: DataDir = None,
    driver: Annotated[str | None, typer.Option("--driver", help="libvirt or fake: what to check for.")] = None,
    port_base: Annotated[int | None, typer.Option("--port-base", help="The port that `up` would be given.")] = None,
    json: Json = False,
) -> None:
    """Check the machine and the installation, and say what to do. Fails if something must be done."""
    import msgspec

    from kilonova.cli.checks import Check, Outcome, all_checks, run_check
    from kilonova.cli.output import BAD, BUSY, GOOD, paint

    config = configuration(data_dir, {"agent.driver": driver, "api.port": port_base})
    colours = {Outcome.OK: GOOD, Outcome.WARNING: BUSY, Outcome.FAILED: BAD}
    found: list[Check] = []
    for name, check in all_checks(config):
        one = run_check(name, check)
        found.append(one)
        if not json:
            state = paint(f"{one.outcome.value:<8}", colours[one.outcome])
            print(f"{state} {one.name:<19} {one.what}", flush=True)
            if one.hint:
                print(f"{'':<28} {one.hint}", flush=True)
    healthy = all(one.outcome is not Outcome.FAILED for one in found)
    if json:
        print(msgspec.json.encode({"healthy": healthy, "checks": found}).decode())
    raise typer.Exit(0 if healthy else 1)
