"""Console tokens: who gets one, what it is judged by, and what ends it."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from simulation.process import SimClock
from small_cloud import CONTEXT, OPTIONS, SmallCloud, in_cloud

from kilonova.db import console_tokens, instances
from kilonova.domain.console import ConsoleKind, ConsoleToken
from kilonova.domain.errors import (
    Conflict,
    ConsoleTypeInvalid,
    ConsoleTypeUnavailable,
    InstanceInvalidState,
    InstanceNotFound,
    InstanceNotReady,
    KilonovaError,
    NotFound,
    NotSupported,
    ServiceUnavailable,
)
from kilonova.domain.states import TaskState, VmState
from kilonova.operations.consoles import ConsoleOptions, Consoles

VNC, SERIAL, SPICE = ConsoleKind.VNC, ConsoleKind.SERIAL, ConsoleKind.SPICE
URL = "https://cloud.example.org:8774"
TTL = 600.0


def consoles(cloud: SmallCloud, **options: Any) -> Consoles:
    clock = SimClock(cloud.loop, cloud.processes["api"])
    return Consoles(cloud.cells, cloud._bus, clock, ConsoleOptions(**options), URL)


async def token(cloud: SmallCloud, uuid: str, kind: ConsoleKind = VNC, type_: str = "novnc") -> str:
    return (await consoles(cloud).create(await cloud.located(uuid), kind, type_)).token


def stored(cloud: SmallCloud, uuid: str) -> int:
    table = console_tokens.console_tokens
    query = sa.select(sa.func.count()).where(table.c.instance_uuid == uuid)
    found: int = cloud.cell(lambda conn: conn.execute(query).scalar())
    return found


async def is_valid(cloud: SmallCloud, one: str) -> bool:
    try:
        await consoles(cloud).admit(one)
    except KilonovaError:
        return False
    return True


def change(cloud: SmallCloud, uuid: str, **changes: Any) -> None:
    with cloud.databases.cell.engine.begin() as conn:
        instances.update(conn, uuid, now=cloud.now, **changes)


@pytest.mark.spec("CON-13", "CON-14", "CON-18")
@in_cloud()
async def test_a_request_makes_a_token(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    before = cloud.server(uuid)
    console = await consoles(cloud).create(await cloud.located(uuid), SERIAL, "serial")
    assert console.url == f"wss://cloud.example.org:8774/console/?token={console.token}"
    right = await consoles(cloud).show(console.token)
    assert right == ConsoleToken(
        instance_uuid=uuid, type="serial", compute_host="host0", access_url_base="wss://cloud.example.org:8774/console/",
        address=await cloud.drivers["host0"].console(uuid, SERIAL), expires_at=right.expires_at,
    )
    assert TTL - 5 < right.expires_at - cloud.now <= TTL
    again = await token(cloud, uuid, SERIAL, "serial")
    assert again != console.token
    assert stored(cloud, uuid) == 2
    assert await is_valid(cloud, again)
    assert await is_valid(cloud, console.token)
    assert cloud.server(uuid) == before


@pytest.mark.spec("CON-19")
@in_cloud()
async def test_a_base_url_is_taken_with_its_page(cloud: SmallCloud) -> None:
    server = await cloud.located(await cloud.build())
    for base, start in (
        ("", f"{URL}/console/novnc/vnc_lite.html?"), ("http://proxy/vnc.html", "http://proxy/vnc.html?"),
        ("http://proxy/vnc.html?autoconnect=1", "http://proxy/vnc.html?autoconnect=1&"),
    ):
        console = await consoles(cloud, novncproxy_base_url=base).create(server, VNC, "novnc")
        assert console.url == f"{start}path=%3Ftoken%3D{console.token}"


@pytest.mark.spec("CON-10", "CON-11", "CON-12")
@in_cloud()
async def test_the_kind_is_checked_before_the_type_and_both_before_the_host(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    server = await cloud.located(uuid)
    cloud.effects.clear()
    off = consoles(cloud, vnc_enabled=False, serial_enabled=False)
    for kind in ConsoleKind:
        for type_ in ("novnc", "serial", "nonsense"):
            with pytest.raises(ConsoleTypeUnavailable):
                await off.create(server, kind, type_)
    on = consoles(cloud, spice_enabled=True)
    for kind, type_ in ((VNC, "xvpvnc"), (VNC, "serial"), (SPICE, "novnc"), (SERIAL, "novnc"), (SERIAL, "")):
        with pytest.raises(ConsoleTypeInvalid):
            await on.create(server, kind, type_)
    for kind, type_ in ((ConsoleKind.RDP, "rdp-html5"), (ConsoleKind.MKS, "webmks"), (SPICE, "spice-direct")):
        with pytest.raises(ConsoleTypeUnavailable):
            await on.create(server, kind, type_)
    assert cloud.calls("console") == []
    assert stored(cloud, uuid) == 0


@pytest.mark.spec("CON-16", "CON-17", "CON-18", "CON-22", "CON-09")
@in_cloud()
async def test_what_the_host_refuses_leaves_nothing(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    server, before = await cloud.located(uuid), cloud.server(uuid)
    spice = consoles(cloud, spice_enabled=True)
    with pytest.raises(NotSupported):
        await spice.create(server, SPICE, "spice-html5")
    for error in (Conflict("off"), KilonovaError("broken")):
        cloud.hypervisors["host0"].faults.fail["console"] = [error]
        with pytest.raises(KilonovaError, match=str(error)):
            await token(cloud, uuid)
    cloud.hypervisors["host0"].guests.clear()
    with pytest.raises(InstanceNotFound):
        await token(cloud, uuid)
    with pytest.raises(NotFound):
        await cloud.compute.console_output(CONTEXT, server, None)
    cloud.crash("host0")
    with pytest.raises(ServiceUnavailable):
        await token(cloud, uuid)
    assert stored(cloud, uuid) == 0
    assert cloud.faults(uuid) == 0
    assert cloud.server(uuid) == before


@pytest.mark.spec("CON-15", "CON-21")
@in_cloud()
async def test_whether_a_server_is_built_is_read_when_its_guest_is_missed(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    asked = await cloud.located(uuid)
    cloud.hypervisors["host0"].guests.clear()
    with pytest.raises(InstanceNotFound):
        await consoles(cloud).create(asked, VNC, "novnc")
    change(cloud, uuid, vm_state=VmState.BUILDING)
    with pytest.raises(InstanceNotReady):
        await consoles(cloud).create(asked, VNC, "novnc")
    asked = await cloud.located(uuid)
    change(cloud, uuid, vm_state=VmState.ERROR)
    with pytest.raises(InstanceNotFound):
        await consoles(cloud).create(asked, VNC, "novnc")


@in_cloud()
async def test_a_server_that_goes_away_gives_no_console(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    for task in (TaskState.DELETING, TaskState.MIGRATING):
        change(cloud, uuid, task_state=task)
        with pytest.raises(InstanceInvalidState, match=f"Cannot 'get_vnc_console' instance {uuid} while it is in"):
            await token(cloud, uuid)
    change(cloud, uuid, task_state=None)
    homeless = await cloud.located(uuid)
    homeless = msgspec.structs.replace(homeless, instance=msgspec.structs.replace(homeless.instance, host=None))
    with pytest.raises(InstanceNotReady):
        await consoles(cloud).create(homeless, VNC, "novnc")


@in_cloud()
async def test_no_token_is_made_for_a_server_that_is_deleted_meanwhile(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    asked = await cloud.located(uuid)
    change(cloud, uuid, task_state=TaskState.DELETING)
    with pytest.raises(InstanceNotReady):
        await consoles(cloud).create(asked, VNC, "novnc")
    assert stored(cloud, uuid) == 0


@pytest.mark.spec("CON-20", "DEL-23", "DEL-31", "LMR-27")
@in_cloud()
async def test_tokens_end_with_what_they_are_for(cloud: SmallCloud) -> None:
    """Whatever is configured then: the record's change revokes them, no operation has to think of it."""
    uuid = await cloud.build()
    other = await token(cloud, await cloud.build())

    async def ended_by(act: Any) -> None:
        one = await token(cloud, uuid)
        assert await is_valid(cloud, one)
        await act
        await cloud.rest()
        assert stored(cloud, uuid) == 0
        with pytest.raises(NotFound, match="Token not found"):
            await consoles(cloud).show(one)

    await ended_by(cloud.reboot(uuid, hard=True))
    await ended_by(cloud.stop(uuid))
    await cloud.start(uuid)
    await cloud.rest()
    await ended_by(cloud.delete(uuid))
    assert await is_valid(cloud, other)


@pytest.mark.spec("CON-20", "DEL-31", "DEL-55")
@in_cloud()
async def test_a_delete_revokes_before_its_host_answers(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    one = await token(cloud, uuid)
    cloud.crash("host0")
    await cloud.delete(uuid)
    assert stored(cloud, uuid) == 0
    assert not await is_valid(cloud, one)


@pytest.mark.spec("CON-20", "RBD-37", "LMR-17")
@in_cloud()
async def test_tokens_of_a_server_that_moves_are_revoked(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    await token(cloud, uuid)
    change(cloud, uuid, display_name="renamed")
    assert stored(cloud, uuid) == 1
    change(cloud, uuid, host="host7")
    assert stored(cloud, uuid) == 0


@pytest.mark.spec("CON-23")
@in_cloud()
async def test_a_token_lives_through_restarts_until_it_expires(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    one = await token(cloud, uuid)
    for name in cloud.names:
        cloud.crash(name)
        await cloud.boot(name)
    assert await is_valid(cloud, one)
    await asyncio.sleep(TTL + 1)
    assert not await is_valid(cloud, one)


@pytest.mark.spec("PER-110", "CON-23")
@in_cloud()
async def test_expired_tokens_are_forgotten(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    await token(cloud, uuid)
    await asyncio.sleep(OPTIONS.instance_delete_interval + OPTIONS.instance_delete_interval / 3)
    await token(cloud, uuid)
    await cloud.until(lambda: stored(cloud, uuid) == 1, within=TTL + OPTIONS.instance_delete_interval)
    await cloud.until(lambda: stored(cloud, uuid) == 0, within=TTL + OPTIONS.instance_delete_interval)


@pytest.mark.spec("CON-24", "CON-26", "CON-28")
@in_cloud()
async def test_a_token_is_good_while_its_console_is_where_it_was(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    one = await token(cloud, uuid)
    guest = cloud.hypervisors["host0"].guests[uuid]
    assert await is_valid(cloud, one)
    guest.starts += 1  # another port
    assert not await is_valid(cloud, one)
    guest.starts -= 1
    assert await is_valid(cloud, one)
    for error in (NotFound("no guest"), Conflict("off"), NotSupported("no screen"), KilonovaError("broken")):
        cloud.hypervisors["host0"].faults.fail["console"] = [error]
        assert not await is_valid(cloud, one)
    cloud.crash("host0")
    assert not await is_valid(cloud, one)


@pytest.mark.spec("CON-24", "CON-28")
@in_cloud()
async def test_host_and_socket_are_compared_as_well_as_the_port(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    table = console_tokens.console_tokens

    def tamper(**values: Any) -> None:
        with cloud.databases.cell.engine.begin() as conn:
            conn.execute(sa.update(table).where(table.c.instance_uuid == uuid).values(**values))

    screen, line = await token(cloud, uuid), await token(cloud, uuid, SERIAL, "serial")
    assert await is_valid(cloud, screen)
    assert await is_valid(cloud, line)
    tamper(internal_access_path="/elsewhere")
    assert not await is_valid(cloud, screen)
    assert not await is_valid(cloud, line)
    tamper(internal_access_path="")
    assert await is_valid(cloud, screen)
    tamper(host="192.0.2.9")
    assert not await is_valid(cloud, screen)
    tamper(host="127.0.0.1", compute_host="host9")
    assert not await is_valid(cloud, screen)


@pytest.mark.spec("CON-27", "CON-28", "CON-29")
@in_cloud()
async def test_a_token_of_an_unknown_type_or_a_disabled_kind_is_not_valid(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    one = await token(cloud, uuid)
    with pytest.raises(ConsoleTypeUnavailable):
        await consoles(cloud, vnc_enabled=False).admit(one)
    with cloud.databases.cell.engine.begin() as conn:
        conn.execute(sa.update(console_tokens.console_tokens).values(type="telepathy"))
    with pytest.raises(ConsoleTypeInvalid):
        await consoles(cloud).admit(one)
    with cloud.databases.cell.engine.begin() as conn:
        conn.execute(sa.update(console_tokens.console_tokens).values(type="spice-html5"))
    with pytest.raises(NotSupported):
        await consoles(cloud, spice_enabled=True).admit(one)


@in_cloud()
async def test_an_open_connection_lasts_as_long_as_the_server_is_there(cloud: SmallCloud) -> None:
    uuid = await cloud.build()
    right = await consoles(cloud).admit(await token(cloud, uuid))
    assert await consoles(cloud).still_there(right)
    change(cloud, uuid, task_state=TaskState.MIGRATING)
    assert await consoles(cloud).still_there(right)
    change(cloud, uuid, task_state=TaskState.DELETING)
    assert not await consoles(cloud).still_there(right)
    change(cloud, uuid, task_state=None, host="host9")
    assert not await consoles(cloud).still_there(right)
    change(cloud, uuid, host="host0")
    await cloud.delete(uuid)
    await cloud.rest()
    assert not await consoles(cloud).still_there(right)


@pytest.mark.spec("CON-01", "CON-02", "CON-05", "CON-07", "CON-08")
@in_cloud()
async def test_console_output(cloud: SmallCloud) -> None:
    server = await cloud.located(await cloud.build())
    limits = []

    def writes(log: bytes) -> None:
        async def output(_uuid: str, limit: int) -> bytes:
            limits.append(limit)
            return log[-limit:]

        cloud.drivers["host0"].console_output = output  # type: ignore[method-assign]

    async def read(lines: int | None) -> str:
        return await cloud.compute.console_output(CONTEXT, server, lines)

    writes(b"one\ntwo\nthree\n")
    assert await read(None) == "one\ntwo\nthree\n"
    assert [await read(n) for n in (1, 2, 4, 99)] == ["", "three\n", "one\ntwo\nthree\n", "one\ntwo\nthree\n"]
    assert await read(0) == ""
    writes("caf\u00e9 \u20ac ".encode() + b"\xff\xfe end")
    assert await read(None) == "caf\u00e9 \u20ac \ufffd\ufffd end"
    writes(b"x" * 10_000_000)
    assert len(await read(None)) == max(limits) <= 102_400
    for error in (NotSupported("no console here"), NotFound("no record")):
        async def fails(_uuid: str, _limit: int, error: KilonovaError = error) -> bytes:
            raise error

        cloud.drivers["host0"].console_output = fails  # type: ignore[method-assign]
        with pytest.raises(type(error), match=error.message):
            await read(None)
