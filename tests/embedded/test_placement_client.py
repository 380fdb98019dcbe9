"""The operators' command line client against the placement API, unchanged."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from placement_cloud import SMALL, Cloud, placement_cloud
from starlette.applications import Starlette

__all__ = ["placement_cloud"]

LIMIT = 120.0
"""Seconds that a command may take on a busy machine."""


@asynccontextmanager
async def serving(app: Starlette) -> AsyncIterator[str]:
    """The application on a port of the loopback interface; gives its URL."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
    running = asyncio.create_task(server.serve())
    async with asyncio.timeout(LIMIT):
        while not server.started:
            assert not running.done()
            await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/placement"
    finally:
        server.should_exit = True
        await running


RUNNER = """
import contextlib, io, json, sys
from openstackclient.shell import OpenStackShell
answers = []
for words in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        shell = OpenStackShell()
        shell.stdout, shell.stderr = out, err
        failed = shell.run(words)
    answers.append([failed, out.getvalue(), err.getvalue()])
json.dump(answers, sys.stdout)
"""
"""Runs several commands in one process: importing the client takes longer than all of them."""


async def openstack(url: str, *commands: str) -> list[Any]:
    """Run the commands, which must succeed, and give what each prints; None for one that prints nothing."""
    options = ["--os-auth-type", "admin_token", "--os-endpoint", url, "--os-token", "admin",
               "--os-placement-api-version", "1.39"]
    silent = ("delete", "class create", "trait create")
    batch = [
        [*options, *command.split(), *([] if any(word in command for word in silent) else ["-f", "json"])]
        for command in commands
    ]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", RUNNER, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(json.dumps(batch).encode()), LIMIT)
    assert process.returncode == 0, err.decode()
    answers = json.loads(out)
    for command, (failed, _, complaint) in zip(commands, answers, strict=True):
        assert not failed, (command, complaint)
    return [json.loads(printed) if printed.strip() else None for _, printed, _ in answers]


@pytest.mark.spec("EMP-10", "EMP-04")
async def test_the_client_shows_hosts_and_what_servers_hold(cloud: Cloud) -> None:
    host = await cloud.host("node-1")
    server = await cloud.claim(host)
    async with serving(cloud.app) as url:
        (provider,), (held,), used, (candidate, *_), (total,) = await openstack(
            url,
            "resource provider list",
            f"resource provider allocation show {server}",
            f"resource provider usage show {host}",
            "allocation candidate list --resource VCPU=1",
            "resource usage show p-alice",
        )
    assert (provider["uuid"], provider["name"]) == (host, "node-1")
    assert held["resources"] == SMALL
    assert {row["resource_class"]: row["usage"] for row in used} == SMALL
    assert candidate["resource provider"] == host
    assert total == {"resource_class": "INSTANCE", "usage": {"consumer_count": 1, **SMALL}}


@pytest.mark.spec("EMP-10")
async def test_the_client_makes_and_removes_every_object(cloud: Cloud) -> None:
    rack, server, aggregate = str(uuid.uuid4()), str(uuid.uuid4()), str(uuid.uuid4())
    async with serving(cloud.app) as url:
        await openstack(
            url,
            f"resource provider create rack --uuid {rack}",
            "resource class create CUSTOM_GOLD",
            "trait create CUSTOM_SHINY",
            f"resource provider inventory set {rack} --resource CUSTOM_GOLD:total=4",
            f"resource provider trait set {rack} --trait CUSTOM_SHINY",
            f"resource provider aggregate set {rack} --aggregate {aggregate} --generation 2",
            f"resource provider allocation set {server} --allocation rp={rack},CUSTOM_GOLD=3"
            " --project-id p --user-id u --consumer-type INSTANCE",
        )
        assert (await cloud.get(f"/resource_providers/{rack}/usages"))["usages"] == {"CUSTOM_GOLD": 3}
        assert (await cloud.get(f"/resource_providers/{rack}/traits"))["traits"] == ["CUSTOM_SHINY"]
        assert (await cloud.get(f"/resource_providers/{rack}/aggregates"))["aggregates"] == [aggregate]
        await openstack(
            url,
            f"resource provider allocation delete {server}",
            f"resource provider inventory delete {rack}",
            f"resource provider trait delete {rack}",
            f"resource provider delete {rack}",
            "trait delete CUSTOM_SHINY",
            "resource class delete CUSTOM_GOLD",
        )
    assert (await cloud.get("/resource_providers"))["resource_providers"] == []
