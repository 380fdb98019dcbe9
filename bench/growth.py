"""How memory, lists and actions grow with the number of servers."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from urllib.parse import quote

from bench.installation import Installation, installation
from bench.report import Result

HOSTS = 16
CLIENTS = 8
ROUNDS = 9
PAGE = 1000
MEMORY, LIST = 60.0, 150.0
"""What is promised of the largest number: MiB that the records add, milliseconds for the first page."""

Take = Callable[[], float]


def growth(sizes: Sequence[int]) -> Iterator[Result]:
    """At each of these numbers of servers (ascending): added memory, the first page of lists, a request, an action."""
    with installation("fake", HOSTS) as cloud:
        body = cloud.prepare()
        cloud.fill(body, 50, CLIENTS)  # what is loaded at the first server is not a record
        empty, before = cloud.memory(), 50
        for size in sizes:
            cloud.fill(body, size - before, CLIENTS)
            before = size
            last = size == sizes[-1]
            yield Result(f"memory added by {size:,} servers", cloud.memory() - empty, "MiB", MEMORY if last else None,
                         of="added memory", at=size)
            for name, query in _queries(cloud):
                took = [_list(cloud, query) for _ in range(ROUNDS)]
                yield Result(f"first page of {name}, {size:,} servers, p50", statistics.median(took), "ms",
                             LIST if last else None, note=f"max {max(took):.0f} ms", of=f"list: {name}", at=size)
            for name, take in _single(cloud, body):
                took = [take() for _ in range(2 * ROUNDS)]
                yield Result(f"{name}, {size:,} servers, p50", statistics.median(took), "ms", of=name, at=size)


def _queries(cloud: Installation) -> list[tuple[str, str]]:
    """Lists as dashboards and tools ask for them. At most a page each."""
    since = quote("2020-01-01T00:00:00Z")
    return [
        ("all servers, in detail", f"/detail?limit={PAGE}"),
        ("a status and flavor, in detail", f"/detail?limit={PAGE}&status=ACTIVE&flavor={cloud.flavor('m1.nano')}"),
        ("a name by pattern, in detail", f"/detail?limit={PAGE}&name=ench"),
        ("all projects by name, changed since", f"?limit={PAGE}&all_tenants=1&sort_key=display_name&sort_dir=asc"
                                                f"&changes-since={since}"),
        ("a name that nobody has", f"/detail?limit={PAGE}&name=nobody"),
    ]


def _list(cloud: Installation, query: str) -> float:
    began = time.perf_counter()
    cloud.call("GET", f"/compute/v2.1/servers{query}")
    return 1000 * (time.perf_counter() - began)


def _single(cloud: Installation, body: object) -> list[tuple[str, Take]]:
    """One server among them."""
    server = cloud.call("GET", "/compute/v2.1/servers?limit=1")["servers"][0]["id"]
    at = f"/compute/v2.1/servers/{server}"

    def show() -> float:
        began = time.perf_counter()
        cloud.call("GET", at)
        return 1000 * (time.perf_counter() - began)

    def power(action: str, status: str) -> float:
        began = time.perf_counter()
        cloud.call("POST", f"{at}/action", {action: None})
        while cloud.call("GET", at)["server"]["status"] != status:
            time.sleep(0.001)
        return 1000 * (time.perf_counter() - began)

    def boot_and_delete() -> float:
        began = time.perf_counter()
        made = cloud.call("POST", "/compute/v2.1/servers", body)["server"]["id"]
        while cloud.call("GET", f"/compute/v2.1/servers/{made}")["server"]["status"] == "BUILD":
            time.sleep(0.002)
        took = 1000 * (time.perf_counter() - began)
        cloud.call("DELETE", f"/compute/v2.1/servers/{made}")
        while cloud.exchange("GET", f"/compute/v2.1/servers/{made}")[0].status != 404:
            time.sleep(0.002)
        return took

    def stop_and_start() -> float:
        return (power("os-stop", "SHUTOFF") + power("os-start", "ACTIVE")) / 2

    return [("GET of one", show), ("stop or start", stop_and_start), ("POST to ACTIVE", boot_and_delete)]
