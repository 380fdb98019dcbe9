"""What a host may do on the bus with its credentials, and what it may not, whatever client it uses."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client
from nats_servers import bus_server

from kilonova.bus.credentials import Credentials, CredentialsUnusable, host_user, load, store
from kilonova.bus.nats import NatsBus
from kilonova.bus.server import BusServer
from kilonova.bus.subjects import from_host, host_token, speaker, to_host
from kilonova.domain.errors import Forbidden, InvalidInput, NotFound, Unreachable

pytestmark = pytest.mark.servers

LIMIT = 10.0
DOTTED = "web.example.org"


@dataclass
class Cloud:
    server: BusServer
    control: NatsBus
    credentials: dict[str, Credentials]


@pytest.fixture
async def cloud(tmp_path: Path) -> AsyncIterator[Cloud]:
    async with bus_server(tmp_path) as server:
        credentials = {host: await server.add_host(host) for host in ("a", "b", "web", DOTTED)}
        control = await NatsBus.connect([server.url], server.control())
        yield Cloud(server, control, credentials)
        await control.close()


class Intruder:
    """A raw client with a host's credentials, which sends what it likes."""

    def __init__(self, client: Client, errors: list[str]) -> None:
        self.client = client
        self.errors = errors
        self.heard: list[str] = []

    async def listen(self, subject: str, queue: str = "") -> None:
        async def hear(message: nats.aio.msg.Msg) -> None:
            self.heard.append(message.subject)

        await self.client.subscribe(subject, queue=queue, cb=hear)
        await self.settle()

    async def say(self, subject: str, reply: str = "") -> None:
        await self.client.publish(subject, b"forged", reply=reply)
        await self.settle()

    async def settle(self) -> None:
        """Wait until the server has handled everything: the first ping may overtake what waits to be sent."""
        await self.client.flush()
        await self.client.flush()


@pytest.fixture
async def intruder(cloud: Cloud) -> AsyncIterator[Intruder]:
    errors: list[str] = []

    async def note(error: Exception) -> None:
        errors.append(str(error))

    mine = cloud.credentials["a"]
    client = await nats.connect(
        cloud.server.url, user=mine.user, password=mine.password, error_cb=note, inbox_prefix=mine.inbox,
        allow_reconnect=False,
    )
    yield Intruder(client, errors)
    await client.close()


class Heard:
    def __init__(self, reply: bytes | None = None) -> None:
        self.messages: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue()
        self._reply = reply

    async def __call__(self, subject: str, payload: bytes) -> bytes | None:
        self.messages.put_nowait((subject, payload))
        return self._reply

    async def next(self) -> tuple[str, bytes]:
        async with asyncio.timeout(LIMIT):
            return await self.messages.get()


async def agent(cloud: Cloud, host: str) -> NatsBus:
    return await NatsBus.connect([cloud.server.url], cloud.credentials[host])


@pytest.mark.parametrize("host", ["a", DOTTED])
async def test_an_agent_hears_its_commands_answers_and_reports(cloud: Cloud, host: str) -> None:
    bus, reports = await agent(cloud, host), Heard()
    await bus.subscribe(to_host(host, "command"), Heard(b"done"))
    await cloud.control.subscribe("kn.from.*.report", reports, group="conductors.1")
    for _ in range(3):  # one reply to each request, not one in all
        assert await cloud.control.request(to_host(host, "command"), b"do", timeout=LIMIT) == b"done"
    await bus.publish(from_host(host, "report"), b"r")
    subject, payload = await reports.next()
    assert (speaker(subject), payload) == (host, b"r")
    await bus.close()


async def test_an_agent_may_ask_conductors(cloud: Cloud) -> None:
    bus = await agent(cloud, "a")
    await cloud.control.subscribe("kn.from.*.question", Heard(b"answer"))
    assert await bus.request(from_host("a", "question"), b"", timeout=LIMIT) == b"answer"
    await bus.close()


@pytest.mark.parametrize(
    "subject",
    [
        "kn.host.b.command", "kn.host.a.command", "kn.from.b.report", f"kn.from.{host_token(DOTTED)}.report",
        "kn.wake.cell", "kn.wake.api", "kn.watch.operation", "_INBOX.control.x.1", "_INBOX.host.b.x.1", "other",
    ],
)
async def test_a_host_cannot_speak_as_another(cloud: Cloud, intruder: Intruder, subject: str) -> None:
    heard = Heard()
    await cloud.control.subscribe("kn.>", heard)
    await intruder.say(subject)
    assert any("permissions violation for publish" in error for error in intruder.errors), intruder.errors
    await intruder.say("kn.from.a.last")
    assert (await heard.next())[0] == "kn.from.a.last"


@pytest.mark.parametrize("queue", ["", "conductors.1"])
@pytest.mark.parametrize(
    "subject",
    [
        "kn.host.b.command", "kn.host.b.>", "kn.host.*.command", "kn.host.>", "kn.>", ">", "*.*.*.*",
        "kn.from.*.report", "kn.from.a.report", "kn.wake.>", "kn.watch.>", "_INBOX.>", "_INBOX.control.>",
        "_INBOX.host.b.>", "$SYS.>",
    ],
)
async def test_a_host_cannot_hear_others(cloud: Cloud, intruder: Intruder, subject: str, queue: str) -> None:
    await intruder.listen(subject, queue)
    assert any("permissions violation for subscription" in error for error in intruder.errors), intruder.errors
    other = await agent(cloud, "b")
    await other.subscribe(to_host("b", "command"), Heard(b"done"))
    reports = Heard()
    await cloud.control.subscribe("kn.from.*.report", reports, group="conductors.1")
    assert await cloud.control.request(to_host("b", "command"), b"secret", timeout=LIMIT) == b"done"
    await other.publish(from_host("b", "report"), b"r")
    assert await reports.next() == ("kn.from.b.report", b"r")
    await cloud.control.publish("kn.wake.cell", b"")
    await intruder.settle()
    assert intruder.heard == []
    await other.close()


async def test_a_host_does_not_hear_one_whose_name_begins_like_its_own(cloud: Cloud) -> None:
    short, heard = await agent(cloud, "web"), Heard(b"stolen")
    await short.subscribe("kn.host.web.>", heard)
    with pytest.raises(Unreachable):
        await cloud.control.request(to_host(DOTTED, "command"), b"", timeout=LIMIT)
    assert heard.messages.empty()
    await short.close()


async def test_a_listener_without_permission_is_told(cloud: Cloud) -> None:
    bus = await agent(cloud, "a")
    with pytest.raises(Forbidden, match="b"):
        await bus.subscribe(to_host("b", "command"), Heard())
    await bus.subscribe(to_host("a", "command"), Heard(b"fine"))
    assert await cloud.control.request(to_host("a", "command"), b"", timeout=LIMIT) == b"fine"
    await bus.close()


async def test_a_request_without_permission_fails_at_once(cloud: Cloud) -> None:
    bus = await agent(cloud, "a")
    async with asyncio.timeout(2):
        with pytest.raises(Unreachable, match="may not"):
            await bus.request(to_host("b", "command"), b"", timeout=60)
    await bus.close()


async def test_a_reply_never_becomes_a_command(cloud: Cloud, intruder: Intruder) -> None:
    """A host asks with host B's command subject as the place for the answer."""
    asked, commands = Heard(b"reboot"), Heard()
    await cloud.control.subscribe("kn.from.*.report", asked)
    other = await agent(cloud, "b")
    await other.subscribe("kn.host.b.>", commands)
    await intruder.say("kn.from.a.report", reply="kn.host.b.command")
    await asked.next()
    await cloud.control.publish("kn.host.b.last", b"")
    assert (await commands.next())[0] == "kn.host.b.last"
    await other.close()


async def test_one_request_gets_one_reply(cloud: Cloud, intruder: Intruder) -> None:
    async def twice(message: nats.aio.msg.Msg) -> None:
        await intruder.client.publish(message.reply, b"1")
        await intruder.client.publish(message.reply, b"2")

    await intruder.client.subscribe("kn.host.a.command", cb=twice)
    await intruder.settle()
    assert await cloud.control.request("kn.host.a.command", b"", timeout=LIMIT) == b"1"
    await intruder.settle()
    assert any("permissions violation for publish" in error for error in intruder.errors)


@pytest.mark.parametrize(
    ("user", "password"), [("control", "wrong"), ("host.a", "wrong"), ("host.nobody", "x"), ("", ""), ("control", "")]
)
async def test_strangers_are_refused(cloud: Cloud, user: str, password: str) -> None:
    refused: list[str] = []

    async def note(error: Exception) -> None:
        refused.append(str(error))

    with pytest.raises(nats.errors.Error):
        await nats.connect(
            cloud.server.url, user=user, password=password, allow_reconnect=False, error_cb=note, connect_timeout=2
        )
    assert any("authorization violation" in error.lower() for error in refused)


async def test_adding_a_host_disturbs_nobody_and_its_new_credentials_end_the_old(cloud: Cloud) -> None:
    bus = await agent(cloud, "a")
    link = bus._link
    made = await cloud.server.add_host("new")
    added = await NatsBus.connect([cloud.server.url], made)
    assert added.connected
    again = await cloud.server.add_host("new")
    assert again.password != made.password
    renewed = await NatsBus.connect([cloud.server.url], again)
    assert renewed.connected
    await bus.subscribe(to_host("a", "command"), Heard(b"ok"))
    assert await cloud.control.request(to_host("a", "command"), b"", timeout=LIMIT) == b"ok"
    assert bus._link is link
    for one in (bus, added, renewed):
        await one.close()


async def test_a_removed_host_is_cut_off(cloud: Cloud, intruder: Intruder) -> None:
    gone = asyncio.Event()

    async def closed() -> None:
        gone.set()

    intruder.client._closed_cb = closed
    cloud.server.remove_host("a")
    async with asyncio.timeout(LIMIT):
        await gone.wait()
    with pytest.raises(NotFound):
        cloud.server.remove_host("a")


@pytest.mark.parametrize("name", ["", "two\nlines", "x" * 256])
async def test_what_is_no_host_name_is_refused(cloud: Cloud, name: str) -> None:
    with pytest.raises(InvalidInput):
        await cloud.server.add_host(name)


@pytest.mark.parametrize("name", ["*", ">", "b.>", "b c", 'q"}', "ä", "..", "%2E"])
async def test_odd_host_names_stay_within_their_token(cloud: Cloud, name: str) -> None:
    odd = await NatsBus.connect([cloud.server.url], await cloud.server.add_host(name))
    await odd.subscribe(to_host(name, "command"), Heard(b"mine"))
    assert await cloud.control.request(to_host(name, "command"), b"", timeout=LIMIT) == b"mine"
    with pytest.raises(Unreachable):
        await cloud.control.request(to_host("b", "command"), b"", timeout=LIMIT)
    assert speaker(from_host(name, "report")) == name
    await odd.close()


async def test_files_with_passwords_are_for_their_owner(cloud: Cloud, tmp_path: Path) -> None:
    store(tmp_path / "agent.json", cloud.credentials["a"])
    passwords = {cloud.server.control().password, cloud.credentials["a"].password}
    secret = files_with(tmp_path, passwords)
    assert {path.name for path in secret} == {"users.json", "nats.conf", "agent.json"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in secret} == {0o600}
    assert load(tmp_path / "agent.json") == cloud.credentials["a"]
    assert not any(word in repr(cloud.credentials["a"]) for word in passwords)


def files_with(directory: Path, words: set[str]) -> list[Path]:
    files = [path for path in directory.iterdir() if path.is_file()]
    return [path for path in files if any(word in path.read_text() for word in words)]


def test_credentials_that_cannot_be_read_are_an_error(tmp_path: Path) -> None:
    for content in (None, b"", b"{}", b"[1]"):
        if content is not None:
            (tmp_path / "agent.json").write_bytes(content)
        with pytest.raises(CredentialsUnusable, match=r"agent\.json"):
            load(tmp_path / "agent.json")


def test_a_host_name_is_one_token() -> None:
    assert host_token("node-1_a") == "node-1_a"
    assert host_user("node-1") == "host.node-1"
    names = ["a", "a.b", "a%2Eb", "a b", "a*", "a>", "~", "%"]
    tokens = [host_token(name) for name in names]
    assert len(set(tokens)) == len(names)
    assert not any(set(token) & set(".*> ~") for token in tokens)
