"""Runs of Tempest, and the page that says what they leave out."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parent.parent.parent / "docs/reference/tempest.md"
SELECTION = r"^tempest\.(api\.compute|scenario)\."
VOLUME_API = "tempest.api.volume"

_ROW = re.compile(
    r"^\| `(tempest\.[\w.]+)` \| (fake|libvirt|both|volumes|attached) \| (skipped|left out) \| (\w+) \|$", re.MULTILINE
)
_CLASS = re.compile(r"^setUpClass \(([\w.]+)\)$")


@dataclass(frozen=True)
class Results:
    """What tests did, by their names; a class that was skipped as a whole stands under its own name.

    Args:
        failed, skipped: with what was said of it.
    """

    passed: frozenset[str]
    failed: dict[str, str]
    skipped: dict[str, str]


@dataclass(frozen=True)
class Omission:
    """Why a test does not run. Args: ours: it is left out by us, and not skipped by Tempest itself."""

    reason: str
    ours: bool


def run(programs: Path, configuration: Path, selection: str, left_out: set[str], workers: int, limit: float) -> Results:
    """Run the tests whose names match.

    Args:
        programs: where those of Tempest are. left_out: names of tests and classes that do not run although they match.
        workers: tests that run at once. limit: seconds.
    """
    directory = configuration.parent / "workspace"
    tempest = str(programs / "tempest")
    init = [tempest, "init", "--workspace-path", str(configuration.parent / "workspaces.yaml"), str(directory)]
    subprocess.run(init, capture_output=True, timeout=60, check=True)
    (directory / "etc/tempest.conf").write_bytes(configuration.read_bytes())
    excluded = directory / "left-out"
    excluded.write_text("".join(f"^{re.escape(name)}[.[]\n" for name in sorted(left_out)))
    command = [tempest, "run", "--regex", selection, "--exclude-list", str(excluded), "--concurrency", str(workers)]
    with (directory / "run.out").open("wb") as output:
        subprocess.run(command, cwd=directory, stdout=output, stderr=output, timeout=limit, check=False)
    done = subprocess.run(
        [str(programs / "python"), str(Path(__file__).parent / "read_results.py")],
        cwd=directory, capture_output=True, text=True, timeout=120, check=True,
    )
    return _sorted(json.loads(done.stdout))


def complaints(programs: Path, configuration: Path) -> str:
    """What Tempest finds wrong in what it is told of the cloud; empty if it is all true."""
    done = subprocess.run(
        [str(programs / "tempest"), "verify-config"], capture_output=True, text=True, timeout=120, check=True,
        env=os.environ | {"TEMPEST_CONFIG_DIR": str(configuration.parent), "TEMPEST_CONFIG": configuration.name},
        cwd=configuration.parent,
    )
    return done.stdout


def _sorted(found: list[list[str]]) -> Results:
    passed, failed, skipped = set(), {}, {}
    for id_, status, details in found:
        matched = _CLASS.match(id_)
        name = matched[1] if matched else id_.partition("[")[0]
        if status == "skip":
            skipped[name] = details
        elif status != "success":
            failed[name] = details
        elif not matched:
            passed.add(name)
    return Results(frozenset(passed), failed, skipped)


def omitted(name: str) -> dict[str, Omission]:
    """The tests and classes that the page says are not run by the run of this name. That with other settings runs all
    that it is there for."""
    rows = _ROW.findall(PAGE.read_text())
    here = (name, "both") if name in ("fake", "libvirt") else (name,)
    return {test: Omission(why, how == "left out") for test, runs, how, why in rows if runs in here}


def of_reason(name: str, reason: str) -> list[str]:
    """The tests and classes that the page says are not run by the run of this name, for this reason."""
    return [test for test, omission in omitted(name).items() if omission.reason == reason]


def reasons() -> set[str]:
    """The reasons that the page knows: the words that its list of them begins with."""
    return set(re.findall(r"^- \*\*(\w+)\*\*: \S", PAGE.read_text(), re.MULTILINE))


def counted(name: str) -> tuple[int, int]:
    """How many tests passed, and how many entries were skipped, in a whole run of this name, says the page."""
    found = re.search(rf"^\| {name} \| (\d+) \| (\d+) \| 0 \|", PAGE.read_text(), re.MULTILINE)
    assert found is not None, f"{PAGE.name} counts no run {name}"
    return int(found[1]), int(found[2])
