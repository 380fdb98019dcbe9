"""`kilonova audit`: compare everything that is recorded with everything that exists."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from kilonova.cli.installation import DataDir, Json, require_running, sign_in

if TYPE_CHECKING:
    from kilonova.audit.report import Healing, Report

LIMIT = 300.0
"""Seconds."""


def audit(
    data_dir: DataDir = None,
    heal: Annotated[bool, typer.Option("--heal", help="Settle what provably belongs to nothing.")] = False,
    json: Json = False,
) -> None:
    """Compare database, placement, hypervisors, networks, images and disks. Fails if they differ."""
    import msgspec

    from kilonova.audit.report import Healing, Report
    from kilonova.cli.progress import busy

    state = require_running(data_dir)
    session = sign_in(state)
    if heal:
        with busy("compare and heal"):
            healing: Healing = session.post(f"{state.control_url}/audit/heal", None, Healing, timeout=LIMIT)
        report = healing.after
        print(msgspec.json.encode(healing).decode() if json else f"{_healed(healing)}{text(report)}")
    else:
        with busy("compare"):
            report = session.get(f"{state.control_url}/audit", Report, timeout=LIMIT)
        print(msgspec.json.encode(report).decode() if json else text(report))
    raise typer.Exit(0 if report.clean else 1)


def _healed(healing: Healing) -> str:
    lines = []
    for one in healing.healed:
        if one.done:
            by = f" ({one.operation})" if one.operation else ""
            lines.append(f"healed: {one.what}: {one.done}{by}")
        else:
            lines.append(f"left alone: {one.what}: {one.why_not}")
    return "".join(f"{line}\n" for line in lines)


def text(report: Report) -> str:
    """A report for people: one line for each difference."""
    from kilonova.cli.output import BAD, GOOD, duration, paint

    compared = report.compared
    looked_at = (
        f"{compared.servers} servers, {compared.allocations} allocations, {compared.ports} ports, "
        f"{compared.images} images and {compared.hosts} hosts in {duration(report.seconds)}"
    )
    if compared.busy:
        looked_at += f"; left out {compared.busy} that operations work on"
    lines = [f"{paint(one.kind.value, BAD)}: {one.what}\n    {one.advice}" for one in report.differences]
    number = len(report.differences)
    found = f"{number} {'difference' if number == 1 else 'differences'}"
    outcome = paint("clean", GOOD) if report.clean else paint(found, BAD)
    return "\n".join([*lines, f"{outcome}: compared {looked_at}"])
