"""What the volume service tells of a connection is for the hypervisor alone."""

from __future__ import annotations

import asyncio
import secrets
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import structlog

from kilonova.db import block_devices
from kilonova.domain.errors import KilonovaError
from kilonova.embedded.volume.operations import attach
from kilonova.hypervisor.fake import FakeDriver
from tests.control_cloud import ControlCloud, cloud_with_pool, until

SECRET = f"hush-{secrets.token_hex(8)}"
MORE = {"auth_password": SECRET, "keyring": [SECRET], "of_a_later_release": {"a": [1, None, {"b": SECRET}]}}
PATHS = (
    "/servers/{server}", "/servers/detail", "/servers/{server}/os-volume_attachments", "/servers/{server}/diagnostics",
    "/servers/{server}/os-volume_attachments/{volume}", "/servers/{server}/os-instance-actions",
)


@pytest.mark.spec("EMV-43")
async def test_all_of_a_connection_is_kept_and_nothing_of_it_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain = attach.connection_info

    def with_more(*arguments: Any) -> dict[str, Any]:
        return plain(*arguments) | MORE

    monkeypatch.setattr(attach, "connection_info", with_more)
    with structlog.testing.capture_logs() as logs:
        async with cloud_with_pool(tmp_path, **{"notifications.sinks": ["log"]}) as cloud:
            told = await _live(cloud)
    assert {"instance.volume_attach.end", "instance.volume_attach.error"} <= {one.get("event_type") for one in logs}
    assert SECRET not in told
    assert SECRET not in repr(logs) + caplog.text


async def _live(cloud: ControlCloud) -> str:
    """A volume comes, stays for a restart of its guest, and another one is refused. Returns what the APIs told of it.
    """
    server, volume, refused = (await cloud.server()).id, await cloud.volume(), await cloud.volume()
    await _attach(cloud, server, volume)
    (device,) = await _attached(cloud, server)
    kept = msgspec.json.decode(device.connection_info or "")
    assert MORE.items() <= kept.items()
    assert kept["export"] == device.attachment_id
    for agent in cloud.machine.agents:
        assert isinstance(agent._driver, FakeDriver)
        agent._driver.hypervisor.faults.fail["attach_volume"] = [KilonovaError("The guest refuses.")] * 100
    await _attach(cloud, server, refused)

    async def given_up() -> bool | None:
        return True if len(await _attached(cloud, server)) == 1 and await _failed(cloud) else None

    await until(given_up)
    url = f"{cloud.state.compute_url}/servers/{server}/action"
    await asyncio.to_thread(cloud.session.post, url, {"reboot": {"type": "HARD"}}, version="2.79")
    await until(lambda: _settled(cloud))
    told = ""
    async with httpx.AsyncClient(headers=await cloud.headers() | {"OpenStack-API-Version": "compute 2.96"}) as client:
        for path in PATHS:
            answer = await client.get(cloud.state.compute_url + path.format(server=server, volume=volume))
            assert answer.status_code == 200, (path, answer.text)
            told += answer.text
        for one in await cloud.operations():
            told += (await client.get(f"{cloud.state.control_url}/operations/{one.id}")).text
    assert volume in told
    assert "The guest refuses." in told
    return told


async def _attach(cloud: ControlCloud, server: str, volume: str) -> None:
    url = f"{cloud.state.compute_url}/servers/{server}/os-volume_attachments"
    await asyncio.to_thread(cloud.session.post, url, {"volumeAttachment": {"volumeId": volume}}, version="2.79")
    await until(lambda: _settled(cloud))


async def _settled(cloud: ControlCloud) -> bool | None:
    states = ("held", "queued", "running", "undoing")
    return None if await cloud.operations("&".join(f"state={state}" for state in states)) else True


async def _attached(cloud: ControlCloud, server: str) -> list[block_devices.BlockDevice]:
    found = await cloud.database.read(lambda conn: block_devices.of_server(conn, server))
    return [one for one in found if one.volume_id is not None]


async def _failed(cloud: ControlCloud) -> bool:
    return any(one.kind == "attach-volume" for one in await cloud.operations("state=failed"))
