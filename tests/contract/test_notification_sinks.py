"""The places that notifications go to, against real servers."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nats
import pytest
from clouds import free_port
from rabbitmq import rabbit_server

from kilonova.config import Config
from kilonova.domain.errors import InvalidInput, KilonovaError
from kilonova.domain.notification import Notification, Priority
from kilonova.notifications.nats import NatsSink
from kilonova.notifications.options import NotificationOptions
from kilonova.notifications.sinks import Refused
from kilonova.notifications.webhook import SIGNATURE, WebhookSink
from kilonova.roles import sinks


def message(number: int = 1, *, versioned: bool = True, priority: Priority = Priority.INFO) -> Notification:
    return Notification(
        message_id=f"00000000-0000-4000-8000-{number:012}", subject="server", event_type="instance.power_off.end",
        priority=priority, publisher_id="nova-compute:host0", timestamp="2026-11-21 10:00:00.000000",
        payload={"number": number}, request_id="req-1", user_id="u", project_id="p", versioned=versioned,
    )


# --- webhook --------------------------------------------------------------------------------------------


class Receiver(http.server.BaseHTTPRequestHandler):
    """Answers what the test wants, and keeps what came."""

    protocol_version = "HTTP/1.1"
    answers: list[int]
    came: list[tuple[dict[str, str], bytes]]
    connections: set[int]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.came.append((dict(self.headers.items()), body))
        self.connections.add(self.client_address[1])
        self.send_response(self.answers.pop(0) if self.answers else 204)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def receiver(*answers: int) -> Iterator[tuple[str, type[Receiver]]]:
    handler = type("Handler", (Receiver,), {"answers": list(answers), "came": [], "connections": set()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/hook?from=kilonova", handler
    finally:
        server.shutdown()
        server.server_close()


async def test_a_webhook_gets_the_message_as_json_with_a_signature() -> None:
    with receiver() as (url, handler):
        sink = WebhookSink(url, b"key")
        for number in range(5):
            await sink.send(message(number))
        await sink.close()
    headers, body = handler.came[0]
    assert json.loads(body) == {
        "message_id": "00000000-0000-4000-8000-000000000000", "publisher_id": "nova-compute:host0",
        "event_type": "instance.power_off.end", "priority": "INFO", "timestamp": "2026-11-21 10:00:00.000000",
        "payload": {"number": 0}, "context": {"request_id": "req-1", "user_id": "u", "project_id": "p"},
    }
    assert headers[SIGNATURE] == "sha256=" + hmac.new(b"key", body, hashlib.sha256).hexdigest()
    assert [json.loads(b)["payload"]["number"] for _, b in handler.came] == [0, 1, 2, 3, 4]
    assert len(handler.connections) <= 5


@pytest.mark.parametrize(
    ("status", "error"), [(400, Refused), (404, Refused), (429, KilonovaError), (503, KilonovaError)]
)
async def test_what_a_webhook_answers_tells_whether_the_message_or_the_receiver_is_at_fault(
    status: int, error: type[KilonovaError]
) -> None:
    with receiver(status) as (url, _handler):
        sink = WebhookSink(url, b"")
        with pytest.raises(KilonovaError) as raised:
            await sink.send(message())
        assert type(raised.value) is error
        await sink.send(message())
        await sink.close()


async def test_a_webhook_that_is_away_is_an_error_and_comes_back() -> None:
    port = free_port()
    sink = WebhookSink(f"http://127.0.0.1:{port}/", b"")
    with pytest.raises(KilonovaError, match="does not answer"):
        await sink.send(message())
    await sink.close()


@pytest.mark.parametrize("options", [
    {"sinks": ["webhook"]}, {"sinks": ["webhook"], "webhook_url": "ftp://127.0.0.1/"},
    {"sinks": ["webhook"], "webhook_url": "http://127.0.0.1/", "webhook_key_file": "/nowhere"},
    {"sinks": ["nats"]}, {"sinks": ["messaging"], "transport_url": "nothing://127.0.0.1/"},
])
def test_a_sink_that_lacks_an_option_is_refused_at_the_start(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        sinks.open_all(Config(notifications=NotificationOptions(**options)))


# --- NATS -----------------------------------------------------------------------------------------------


@contextmanager
def nats_server(directory: Path, port: int) -> Iterator[str]:
    program = Path(sys.executable).parent / "nats-server"
    command = [str(program), "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(directory)]
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield f"nats://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


async def connect(url: str) -> Any:
    for _ in range(100):
        try:
            return await nats.connect(url, allow_reconnect=False, connect_timeout=1)
        except (OSError, nats.errors.Error):
            await asyncio.sleep(0.1)
    raise AssertionError("no NATS server")


@pytest.mark.servers
async def test_nats_subscribers_hear_messages_by_their_type(tmp_path: Path) -> None:
    with nats_server(tmp_path, free_port()) as url:
        client = await connect(url)
        heard = await client.subscribe("told.instance.>")
        await client.flush()
        sink = NatsSink([url], "", "", prefix="told", stream="")
        await sink.send(message(7))
        came = await heard.next_msg(timeout=5)
        assert (came.subject, came.headers["Nats-Msg-Id"]) == (
            "told.instance.power_off.end", "00000000-0000-4000-8000-000000000007",
        )
        assert json.loads(came.data)["payload"] == {"number": 7}
        await sink.close()
        await client.close()


@pytest.mark.servers
async def test_a_nats_stream_keeps_messages_and_knows_one_that_comes_again(tmp_path: Path) -> None:
    port = free_port()
    sink = NatsSink([f"nats://127.0.0.1:{port}"], "", "", prefix="told", stream="TOLD")
    with pytest.raises(nats.errors.NoServersError):
        await asyncio.wait_for(sink.send(message(1)), 10)  # others are waiting behind it
    with nats_server(tmp_path, port) as url:
        client = await connect(url)
        for number in (1, 2, 2, 1):
            await sink.send(message(number))
        assert (await client.jetstream().stream_info("TOLD")).state.messages == 2
        await client.close()
    with pytest.raises(Exception):  # noqa: B017 - whatever it raises, it is tried again
        await sink.send(message(3))
    with nats_server(tmp_path, port) as url:
        client = await connect(url)
        await sink.send(message(3))
        assert (await client.jetstream().stream_info("TOLD")).state.messages == 3
        await client.close()
    await sink.close()


# --- oslo.messaging -------------------------------------------------------------------------------------


class Listening:
    """A consumer of the ecosystem: oslo.messaging's own listener."""

    def __init__(self, url: str, *topics: str) -> None:
        import oslo_messaging
        from oslo_config import cfg

        self.came: list[tuple[str, dict[str, Any]]] = []
        options = cfg.ConfigOpts()
        options([], project="listener", default_config_files=[])
        transport = oslo_messaging.get_notification_transport(options, url=url)
        targets = [oslo_messaging.Target(topic=topic) for topic in topics]
        self._listener = oslo_messaging.get_notification_listener(transport, targets, [self], executor="threading")
        self._listener.start()

    def info(self, context: Any, publisher_id: str, event_type: str, payload: Any, metadata: Any) -> None:
        told = {"context": context, "publisher_id": publisher_id, "payload": payload, **metadata}
        self.came.append((event_type, told))

    error = info

    async def until(self, count: int) -> None:
        for _ in range(300):
            if len(self.came) >= count:
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"{len(self.came)} of {count} came")

    def close(self) -> None:
        self._listener.stop()
        self._listener.wait()


@pytest.mark.servers
@pytest.mark.timeout(600)
async def test_consumers_of_the_ecosystem_hear_of_it_over_rabbitmq(tmp_path: Path) -> None:
    """Also those who begin to listen later, and those who were cut off."""
    with rabbit_server(tmp_path) as rabbit:
        config = Config(notifications=NotificationOptions(sinks=("messaging",), transport_url=rabbit.url))
        sink = sinks.open_all(config)["messaging"]
        await sink.send(message(1))
        await sink.send(message(2, versioned=False))
        await sink.send(message(3, priority=Priority.ERROR))
        versioned, older = Listening(rabbit.url, "versioned_notifications"), Listening(rabbit.url, "notifications")
        await versioned.until(2)
        await older.until(1)
        told = {kept["payload"]["number"]: kept for _, kept in versioned.came}
        assert sorted(told) == [1, 3]
        assert (told[1]["publisher_id"], told[1]["message_id"], told[1]["context"]["request_id"]) == (
            "nova-compute:host0", "00000000-0000-4000-8000-000000000001", "req-1",
        )
        assert [event for event, _ in older.came] == ["instance.power_off.end"]
        rabbit.stop()
        with pytest.raises(Exception):  # noqa: B017 - whatever it raises, it is tried again
            async with asyncio.timeout(30):
                await sink.send(message(4))
        rabbit.start()
        for _ in range(60):
            try:
                await sink.send(message(5))
            except Exception:  # noqa: BLE001 - as the deliverer does
                await asyncio.sleep(0.5)
            else:
                break
        await versioned.until(3)
        assert versioned.came[-1][1]["payload"]["number"] in (4, 5)
        versioned.close()
        older.close()
        await sink.close()
