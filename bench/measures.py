"""The measurements of the control plane, each on an installation of its own."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from bench.installation import Installation, fresh, installation
from bench.report import Result

HOSTS = 4
CLIENTS = 8


def _quantile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def start(rounds: int) -> Iterator[Result]:
    """From `kilonova up` on an empty directory to the end of the command, when everything answers."""
    for driver, target in (("libvirt", 2.0), ("fake", 2.0)):
        first, again = [], []
        for _ in range(rounds):
            with tempfile.TemporaryDirectory(prefix="kilonova-bench-") as directory:
                cloud = fresh(Path(directory))
                try:
                    first.append(cloud.up(driver))
                    cloud.down()
                    again.append(cloud.up(driver))
                finally:
                    cloud.down("--purge", "--yes")
        yield Result(f"`up` to ready, {driver}", statistics.median(first), "s", target,
                     note=f"median of {rounds}, empty directory")
        yield Result(f"`up` to ready again, {driver}", statistics.median(again), "s", target,
                     note=f"median of {rounds}, data kept")


def idle() -> Iterator[Result]:
    """All processes of an installation that has just come up and does nothing."""
    for driver in ("libvirt", "fake"):
        with installation(driver) as cloud:
            time.sleep(3)
            yield Result(f"memory (PSS), idle, {driver}", cloud.memory(), "MiB", 150)


def servers(few: int, many: int) -> Iterator[Result]:
    """Memory, acceptance, boots, deletes and lists, with the fake driver."""
    with installation("fake", HOSTS) as cloud:
        body = cloud.prepare()
        yield from _accept(cloud, body)
        for count, targets in ((few, (60, 100)), (many, (60, 100))):
            yield from _wave(cloud, body, count, *targets)
        _boot(cloud, body, 2 * many)
        yield Result(f"memory (PSS), {2 * many} servers", cloud.memory(), "MiB")
        yield from _lists(cloud, 2 * many)


def _accept(cloud: Installation, body: object) -> Iterator[Result]:
    """POST /servers, one at a time, each server removed before the next."""
    took, active, removed = [], [], []
    for _ in range(40):
        began = time.perf_counter()
        server = cloud.call("POST", "/compute/v2.1/servers", body)["server"]["id"]
        took.append(time.perf_counter() - began)
        while cloud.call("GET", f"/compute/v2.1/servers/{server}")["server"]["status"] == "BUILD":
            time.sleep(0.002)
        active.append(time.perf_counter() - began)
        began = time.perf_counter()
        cloud.call("DELETE", f"/compute/v2.1/servers/{server}")
        while cloud.exchange("GET", f"/compute/v2.1/servers/{server}")[0].status != 404:
            time.sleep(0.002)
        removed.append(time.perf_counter() - began)
    milliseconds = [1000 * one for one in took[5:]]
    yield Result("POST /servers accepted, p50", statistics.median(milliseconds), "ms", 15,
                 note=f"one at a time; p95 {_quantile(milliseconds, 0.95):.1f} ms")
    yield Result("POST to ACTIVE, p50", 1000 * statistics.median(active[5:]), "ms", note="one at a time, fake driver")
    yield Result("DELETE to gone, p50", 1000 * statistics.median(removed[5:]), "ms", note="one at a time, fake driver")


def _boot(cloud: Installation, body: object, count: int) -> tuple[float, list[float]]:
    """So many at once; returns the seconds from the first request to the last server that is ACTIVE, and those that
    each request took."""
    began = time.perf_counter()
    took = cloud.fill(body, count, CLIENTS)
    return time.perf_counter() - began, took


def _wave(cloud: Installation, body: object, count: int, boots: float, deletes: float) -> Iterator[Result]:
    used = cloud.cpu()
    seconds, took = _boot(cloud, body, count)
    each = 1000 * (cloud.cpu() - used) / count
    p50, p95 = (1000 * _quantile(took, share) for share in (0.5, 0.95))
    yield Result(f"boots, {count} at once", count / seconds, "/s", boots, at_least=True,
                 note=f"{CLIENTS} clients, accepted p50 {p50:.0f} ms, p95 {p95:.0f} ms, {each:.1f} ms of CPU each")
    servers = cloud.call("GET", "/compute/v2.1/servers?limit=1000")["servers"]
    used = cloud.cpu()
    began = time.perf_counter()
    cloud.every(
        [partial(cloud.call, "DELETE", f"/compute/v2.1/servers/{server['id']}") for server in servers], CLIENTS
    )
    cloud.until("/compute/v2.1/servers?limit=1")
    seconds = time.perf_counter() - began
    each = 1000 * (cloud.cpu() - used) / count
    yield Result(f"deletes, {count} at once", count / seconds, "/s", deletes, at_least=True,
                 note=f"{CLIENTS} clients, {each:.1f} ms of CPU each")


def _lists(cloud: Installation, count: int) -> Iterator[Result]:
    took, size = [], 0
    for _ in range(15):
        began = time.perf_counter()
        _, content = cloud.exchange("GET", f"/compute/v2.1/servers/detail?limit={count}")
        took.append(1000 * (time.perf_counter() - began))
        size = len(content)
    yield Result(f"GET /servers/detail, {count} servers, p50", statistics.median(took), "ms", 80,
                 note=f"{size / 1e6:.1f} MB, max {max(took):.0f} ms")


