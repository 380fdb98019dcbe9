"""Every role in processes of its own, over PostgreSQL and NATS, while they are killed one after the other."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from clouds import wait_for
from invariants import look, violations
from processes import HOSTS, Cluster, cluster
from servers import PostgresServer

from kilonova.hypervisor.fake import FakeHypervisor

SERVERS = 50
VOLUMES = 10
"""Each attached to a server, and detached."""
KINDS = 3
"""Of victims: conductors, agents and the message bus."""


class Killer:
    """Kills and restarts a conductor, an agent and the message bus in turn, until it is told to stop."""

    def __init__(self, running: Cluster) -> None:
        self._cluster = running
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.killed: Counter[str] = Counter()
        self.error: BaseException | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Every process that was killed is back when this returns."""
        self._over.set()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        victims = itertools.cycle(("conductor1", HOSTS[0], "bus", "conductor2", HOSTS[1], "bus"))
        try:
            for victim in victims:
                self._kill(victim)
                if self._over.wait(0.5):
                    return
        except BaseException as error:  # noqa: BLE001 - raised by `stop`
            self.error = error

    def _kill(self, victim: str) -> None:
        self.killed["bus" if victim == "bus" else "agent" if victim in HOSTS else "conductor"] += 1
        if victim == "bus":
            self._cluster.kill_bus()
            self._over.wait(0.5)
            self._cluster.start_bus()
        else:
            self._cluster.roles[victim].kill()
            self._over.wait(0.5)
            self._cluster.restart(victim)


def _violations(running: Cluster) -> list[str]:
    """What is wrong in the databases and on the hosts themselves."""
    guests = {host: FakeHypervisor(host, running.directory / host / "fake" / host).guests for host in HOSTS}
    api, cell = (sa.create_engine(url) for url in running.database_urls)
    try:
        with api.connect() as api_connection, cell.connect() as cell_connection:
            return violations(look(api_connection, cell_connection, guests, {}))
    finally:
        api.dispose()
        cell.dispose()


@contextmanager
def killing(running: Cluster) -> Iterator[Killer]:
    """Processes are killed during the block, each kind at least once; all are back after it."""
    killer = Killer(running)
    killer.start()
    try:
        yield killer
        wait_for("kills of every kind", lambda: killer.error or len(killer.killed) == KINDS, 120)
    finally:
        killer.stop()


@pytest.mark.timeout(500)
@pytest.mark.spec("INI-012", "DEL-23", "BLD-57", "VOL-27", "VOL-45")
def test_servers_and_volumes_come_and_go_while_processes_are_killed(
    tmp_path: Path, postgres: PostgresServer
) -> None:
    with cluster(tmp_path, postgres) as running:
        image = running.upload()
        (network, *_) = running.call("GET", "/network/v2.0/networks")["networks"]
        (flavor, *_) = running.call("GET", "/compute/v2.1/flavors")["flavors"]
        unlimited = {"instances": -1, "cores": -1, "ram": -1}
        running.call("PUT", f"/compute/v2.1/os-quota-sets/{running.project}", {"quota_set": unlimited})
        wait_for("all hosts", lambda: len(running.call("GET", "/control/hosts")["hosts"]) == len(HOSTS), 60)
        services = running.call("GET", "/compute/v2.1/os-services")["services"]
        assert {one["binary"] for one in services} == {"nova-conductor", "nova-scheduler", "nova-compute"}
        assert {one["state"] for one in services} == {"up"}

        with killing(running) as killer:
            for number in range(SERVERS):
                running.call("POST", "/compute/v2.1/servers", {"server": {
                    "name": f"vm{number}", "imageRef": image, "flavorRef": flavor["id"],
                    "networks": [{"uuid": network["id"]}],
                }})
            wait_for("all servers to be ACTIVE", lambda: killer.error or _statuses(running) == {"ACTIVE": SERVERS}, 150)
        wait_for("debts to be paid", lambda: not running.operations(), 60)
        assert running.audit() == []
        assert _violations(running) == []
        assert {server["OS-EXT-SRV-ATTR:host"] for server in running.servers()} == set(HOSTS)

        volumes = _volumes(running)
        with killing(running) as killer:
            pairs = list(zip((server["id"] for server in running.servers()), volumes, strict=False))
            for server, volume in pairs:
                body = {"volumeAttachment": {"volumeId": volume}}
                running.call("POST", f"/compute/v2.1/servers/{server}/os-volume_attachments", body)
            _wait_for_volumes(running, killer, {"in-use": VOLUMES})
            for server, volume in pairs:
                running.call("DELETE", f"/compute/v2.1/servers/{server}/os-volume_attachments/{volume}")
            _wait_for_volumes(running, killer, {"available": VOLUMES})
        wait_for("debts to be paid", lambda: not running.operations(), 60)
        assert running.audit() == []

        with killing(running) as killer:
            for server in running.servers():
                running.call("DELETE", f"/compute/v2.1/servers/{server['id']}")
            wait_for("all servers to be gone", lambda: killer.error or not running.servers(), 150)
        wait_for("debts to be paid", lambda: not running.operations(), 60)
        assert running.audit() == []
        assert _violations(running) == []

        statuses = running.stop()
        assert statuses and set(statuses.values()) == {0}, statuses


def _volumes(running: Cluster) -> list[str]:
    """New ones."""
    made = [
        running.call("POST", "/volume/v3/volumes", {"volume": {"size": 1}})["volume"]["id"] for _ in range(VOLUMES)
    ]
    wait_for("volumes", lambda: _volume_statuses(running) == {"available": VOLUMES}, 60)
    return made


def _wait_for_volumes(running: Cluster, killer: Killer, wanted: dict[str, int]) -> None:
    wait_for(f"volumes to be {wanted}", lambda: killer.error or _volume_statuses(running) == wanted, 150)


def _volume_statuses(running: Cluster) -> Counter[str]:
    return Counter(one["status"] for one in running.call("GET", "/volume/v3/volumes/detail")["volumes"])


def _statuses(running: Cluster) -> Counter[str]:
    found = Counter(server["status"] for server in running.servers())
    assert "ERROR" not in found, [server.get("fault") for server in running.servers() if server["status"] == "ERROR"]
    return found
