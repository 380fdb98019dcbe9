"""Consoles served by a process of their own, which shares databases and bus with the APIs."""

from __future__ import annotations

from pathlib import Path

import pytest
from clouds import free_port, wait_for
from processes import HOSTS, cluster
from servers import PostgresServer
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

VERSION = b"RFB 003.008\n"
NO_PASSWORD = b"\x01\x01"
"""One way to authenticate is offered: none (RFC 6143, 7.1.2). The token has been asked for already."""


@pytest.mark.timeout(300)
def test_a_token_of_the_api_is_good_at_the_console_role(tmp_path: Path, postgres: PostgresServer) -> None:
    """The simulated screen answers who has a token, and nobody else."""
    with cluster(tmp_path, postgres) as running:
        port = free_port()
        running.add("consoles", "console", API__PORT=str(port))
        wait_for("all hosts", lambda: len(running.call("GET", "/control/hosts")["hosts"]) == len(HOSTS), 60)
        body = {"server": {"name": "seen", "flavorRef": "1", "imageRef": running.upload(), "networks": []}}
        uuid = running.call("POST", "/compute/v2.1/servers", body)["server"]["id"]
        wait_for("the build", lambda: running.servers()[0]["status"] == "ACTIVE", 60)
        path = f"/compute/v2.1/servers/{uuid}/action"
        url = running.call("POST", path, {"os-getVNCConsole": {"type": "novnc"}})["console"]["url"]
        token = url.rpartition("%3D")[2]
        for where in (running.port, port):
            with pytest.raises(InvalidStatus):
                connect(f"ws://127.0.0.1:{where}/?token=nonsense")
            with connect(f"ws://127.0.0.1:{where}/?token={token}") as browser:
                assert browser.recv(10) == VERSION
                browser.send(VERSION)
                assert browser.recv(10) == NO_PASSWORD
        assert running.roles["consoles"].stop() == 0
