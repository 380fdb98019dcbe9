"""What is done to servers that are there: how long until it is accepted, and until it is done."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from bench.installation import Installation, installation
from bench.report import Result

HOSTS = 4
WARM = 3
"""Rounds before those that count."""
ACCEPTED, DONE = 15.0, 40.0
"""Milliseconds that are promised: for every action, and for those that `promised` says."""


class Action(NamedTuple):
    """One action of the API.

    Args:
        name: as it is reported. body: of the request. status: of the server when it is done.
        promised: done within `DONE`.
    """

    name: str
    body: dict[str, Any]
    status: str
    promised: bool = False


def _circle(image: str, flavor: str) -> list[Action]:
    """Actions that bring a server back to where it was."""
    return [
        Action("stop", {"os-stop": None}, "SHUTOFF", True),
        Action("start", {"os-start": None}, "ACTIVE", True),
        Action("pause", {"pause": None}, "PAUSED", True),
        Action("unpause", {"unpause": None}, "ACTIVE"),
        Action("reboot, soft", {"reboot": {"type": "SOFT"}}, "ACTIVE", True),
        Action("reboot, hard", {"reboot": {"type": "HARD"}}, "ACTIVE", True),
        Action("suspend", {"suspend": None}, "SUSPENDED"),
        Action("resume", {"resume": None}, "ACTIVE"),
        Action("rescue", {"rescue": None}, "RESCUE"),
        Action("unrescue", {"unrescue": None}, "ACTIVE"),
        Action("rebuild", {"rebuild": {"imageRef": image}}, "ACTIVE"),
        Action("resize", {"resize": {"flavorRef": flavor}}, "VERIFY_RESIZE"),
        Action("revert resize", {"revertResize": None}, "ACTIVE"),
        Action("create image", {"createImage": {"name": "bench"}}, "ACTIVE"),
        Action("shelve", {"shelve": None}, "SHELVED_OFFLOADED"),
        Action("unshelve", {"unshelve": None}, "ACTIVE"),
    ]


def actions(rounds: int) -> Iterator[Result]:
    """Every action on one server, one after the other, round after round."""
    with installation("fake", HOSTS) as cloud:
        body = cloud.prepare()
        server = cloud.call("POST", "/compute/v2.1/servers", body)["server"]["id"]
        _until(cloud, server, "ACTIVE")
        circle = _circle(body["server"]["imageRef"], cloud.flavor("m1.tiny"))
        accepted: dict[str, list[float]] = {action.name: [] for action in circle}
        done: dict[str, list[float]] = {action.name: [] for action in circle}
        for _ in range(WARM + rounds):
            for action in circle:
                began = time.perf_counter()
                cloud.call("POST", f"/compute/v2.1/servers/{server}/action", action.body)
                accepted[action.name].append(1000 * (time.perf_counter() - began))
                _until(cloud, server, action.status)
                done[action.name].append(1000 * (time.perf_counter() - began))
    for action in circle:
        took, worst = done[action.name][WARM:], max(accepted[action.name][WARM:])
        yield Result(f"{action.name} accepted, p50", statistics.median(accepted[action.name][WARM:]), "ms", ACCEPTED,
                     note=f"max {worst:.1f} ms of {rounds}")
        yield Result(f"{action.name} done, p50", statistics.median(took), "ms", DONE if action.promised else None,
                     note=f"max {max(took):.0f} ms")


def _until(cloud: Installation, server: str, status: str, limit: float = 60.0) -> None:
    give_up = time.monotonic() + limit
    while True:
        found = cloud.call("GET", f"/compute/v2.1/servers/{server}")["server"]
        if found["status"] == status and found["OS-EXT-STS:task_state"] is None:
            return
        if found["status"] == "ERROR" or time.monotonic() > give_up:
            raise RuntimeError(f"the server is {found['status']}, not {status}: {found.get('fault')}")
        time.sleep(0.001)
