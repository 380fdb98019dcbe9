"""`kilonova demo`: a real virtual machine through the public API, seen to work, and removed without a trace."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from kilonova.cli.demo_cloud import DemoCloud, Server
from kilonova.cli.installation import DataDir, State, directory, running_state, sign_in
from kilonova.cli.progress import Chapter, Story
from kilonova.domain.errors import KilonovaError

FLAVOR = "m1.nano"
NETWORK = "private"
ECHO_PORT = 7
READY = "LOGIN READY"
BUILD_LIMIT, BOOT_LIMIT, ANSWER_LIMIT, DELETE_LIMIT = 300.0, 180.0, 30.0, 120.0
"""Seconds. Booting is slow where the processor cannot help."""

FAKE_IMAGE_BYTES = 1 << 20


def demo(
    data_dir: DataDir = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the installation running afterwards.")] = False,
    driver: Annotated[
        str, typer.Option("--driver", help="libvirt, or fake to try the control plane without guests.")
    ] = "libvirt",
) -> None:
    """Boot a virtual machine through the public API, see that it works, remove it, and audit.

    Uses the installation that runs in the data directory; otherwise one of its own, removed afterwards.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: what was made is removed
        signal.signal(number, signal.default_int_handler)
    story = Story()
    began = time.monotonic()
    with ExitStack() as stack, ThreadPoolExecutor(1, "image") as worker:
        borrowed = running_state(directory(data_dir))
        kind = borrowed.driver if borrowed is not None else driver
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kilonova-demo-image-")))
        image = worker.submit(_image, work / "image", kind)
        state = borrowed or stack.enter_context(_own_installation(story, data_dir, driver, keep=keep))
        if borrowed is not None:
            story.say(f"using the installation in {borrowed.data_dir}")
        Demonstration(story, state, image).run()
    story.say(f"clean: everything held, in {time.monotonic() - began:.0f} s")


def _image(file: Path, driver: str) -> Path:
    """A bootable image; without guests any bytes will do."""
    if driver == "fake":
        with file.open("wb") as stream:
            stream.truncate(FAKE_IMAGE_BYTES)
        return file
    from kilonova.guestimage.build import build

    return build(file)


@contextmanager
def _own_installation(story: Story, data_dir: Path | None, driver: str, *, keep: bool) -> Iterator[State]:
    """Bring one up, and afterwards take it down again with all that it has made, unless it was there before."""
    base = data_dir.absolute() if data_dir is not None else Path(tempfile.mkdtemp(prefix="kilonova-demo-"))
    existed = (base / "installation.json").exists()
    command = [sys.executable, "-m", "kilonova"]
    try:
        with story.chapter("cloud") as chapter:
            chapter.doing("come up")
            ended = subprocess.run(
                [*command, "up", "--detach", "--data-dir", str(base), "--driver", driver, "--port-base",
                 str(_free_port())],
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=180, check=False,
            )
            state = running_state(base)
            if ended.returncode != 0 or state is None:
                raise KilonovaError(
                    ended.stderr.strip().removeprefix("kilonova: ") or "The cloud did not come up.",
                    hint="`kilonova doctor` tells what this machine lacks",
                )
            chapter.outcome = f"{driver} driver, {state.compute_url}"
        yield state
    finally:
        if keep and running_state(base) is not None:
            story.say(f"kept: OS_CLIENT_CONFIG_FILE={base}/clouds.yaml OS_CLOUD=kilonova, "
                      f"`kilonova down --purge --data-dir {base}` removes it")
        else:
            with story.chapter("cloud") as chapter:
                chapter.doing("go down")
                purge = [] if existed else ["--purge", "--yes"]
                ended = subprocess.run(
                    [*command, "down", "--data-dir", str(base), *purge], stdin=subprocess.DEVNULL,
                    capture_output=True, text=True, timeout=180, check=False,
                )
                chapter.outcome = "stopped" if existed else "removed"
            if ended.returncode != 0:
                raise KilonovaError(f"{base} could not be removed: {ended.stderr.strip()}")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


class Demonstration:
    """The story, told on a running cloud. Whatever it makes it removes, also when something fails."""

    def __init__(self, story: Story, state: State, image: Future[Path]) -> None:
        self._story = story
        self._state = state
        self._session = sign_in(state)
        self._cloud = DemoCloud(state, self._session)
        self._image = image
        self._name = f"kilonova-demo-{uuid.uuid4().hex[:8]}"
        self._guests = state.driver != "fake"

    def run(self) -> None:
        """Raises KilonovaError: something did not hold."""
        with ExitStack() as stack:
            server = self._launch(stack)
            if self._guests:
                self._read_console(server)
                self._reach(server)
            else:
                self._story.say("             (the fake driver has no guests: nothing boots, answers, reads metadata)")
            self._show_events(server)
            self._remove(server)
        self._audit()

    def _launch(self, stack: ExitStack) -> Server:
        cloud, story, name = self._cloud, self._story, self._name
        with story.chapter("image") as chapter:
            chapter.doing("make it from packages of the distribution")
            file = self._image.result()
            size = file.stat().st_size
            chapter.doing("upload it")
            disk_format = "qcow2" if self._guests else "raw"
            image = cloud.upload_image(name, file, disk_format, lambda sent: chapter.reached(sent, size))
            stack.callback(cloud.delete_image, image)
            chapter.outcome = f"{size / 1e6:.1f} MB uploaded, {image}"
        with story.chapter("network") as chapter:
            network, addresses = cloud.network(NETWORK)
            group = cloud.open_group(name, (22, ECHO_PORT))
            stack.callback(cloud.delete_group, group)
            chapter.outcome = f"{NETWORK} ({addresses}), opened for ICMP and TCP 22, {ECHO_PORT}"
        with story.chapter("key pair") as chapter:
            cloud.add_key(name, _public_key())
            stack.callback(cloud.delete_key, name)
            chapter.outcome = name
        with story.chapter("server") as chapter:
            uuid_ = cloud.create_server(
                name, image=image, flavor=cloud.flavor(FLAVOR), network=network, group=group, key=name
            )
            stack.callback(self._make_sure_it_is_gone, uuid_)
            server = chapter.wait_for("build", lambda: self._built(chapter, uuid_), BUILD_LIMIT)
            chapter.outcome = f"{server.id} is {server.status} on {server.host}, {', '.join(server.addresses)}"
        return server

    def _built(self, chapter: Chapter, uuid_: str) -> Server | None:
        server = self._cloud.server(uuid_)
        if server is None or server.status == "ERROR":
            why = server.fault if server is not None else "it disappeared"
            raise KilonovaError(f"Server {uuid_} was not built: {why}", hint=f"`kilonova ops --server {uuid_}`")
        chapter.doing(server.task or server.status)
        return server if server.status == "ACTIVE" and server.addresses else None

    def _read_console(self, server: Server) -> None:
        """The guest says itself that it has booted, has its address and has read its metadata."""
        with self._story.chapter("boot") as chapter:
            def ready() -> str | None:
                output = self._cloud.console(server.id)
                lines = output.rstrip().splitlines()
                chapter.doing(lines[-1][-60:] if lines else "firmware")
                return output if READY in output else None

            output = chapter.wait_for("boot", ready, BOOT_LIMIT)
            chapter.outcome = "the guest has booted; it wrote on its console:"
        for line in _own_lines(output):
            self._story.say(f"             | {line}")
        address = server.addresses[0]
        if f" {address}/" not in output:
            raise KilonovaError(f"The guest did not get its address {address}.")
        if f"instance-id={server.id}" not in output and f"uuid={server.id}" not in output:
            raise KilonovaError("The guest did not get its metadata.", hint="its console tells what it did get")

    def _reach(self, server: Server) -> None:
        address = server.addresses[0]
        with self._story.chapter("reach") as chapter:
            said = f"hello {self._name}\n".encode()
            heard = chapter.wait_for(f"an answer of {address}", lambda: _echo(address, said), ANSWER_LIMIT)
            if heard != said:
                raise KilonovaError(f"{address} answered {heard!r} instead of {said!r}.")
            chapter.outcome = f"{address} port {ECHO_PORT} echoes what this machine says"

    def _show_events(self, server: Server) -> None:
        from kilonova.cli.output import columns

        rows = [
            (f"             {event.event}", event.result, event.start[11:23], event.finish[11:23])
            for event in self._cloud.events(server.id)
        ]
        self._story.say(columns(("             EVENT", "RESULT", "START", "FINISH"), rows))

    def _remove(self, server: Server) -> None:
        with self._story.chapter("delete") as chapter:
            self._cloud.delete_server(server.id)
            self._wait_until_gone(chapter, server.id)
            chapter.outcome = "the server is gone"

    def _make_sure_it_is_gone(self, uuid_: str) -> None:
        if self._cloud.server(uuid_) is None:
            return
        with self._story.chapter("delete") as chapter:
            self._cloud.delete_server(uuid_)
            self._wait_until_gone(chapter, uuid_)

    def _wait_until_gone(self, chapter: Chapter, uuid_: str) -> None:
        chapter.wait_for("the end", lambda: True if self._cloud.server(uuid_) is None else None, DELETE_LIMIT)

    def _audit(self) -> None:
        from kilonova.audit.report import Report
        from kilonova.cli.audit import text

        with self._story.chapter("audit") as chapter:
            report = self._session.get(f"{self._state.control_url}/audit", Report, timeout=DELETE_LIMIT)
            chapter.outcome = text(report)
        if not report.clean:
            raise KilonovaError("Something was left behind.", hint="`kilonova audit` lists it")


def _public_key() -> str:
    """A key nobody has the other half of: the demonstration does not sign in."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = Ed25519PrivateKey.generate().public_key()
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def _own_lines(console: str) -> list[str]:
    """What the guest's own programs wrote, without the firmware's and the kernel's lines."""
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x08\x0b-\x1f]", "", line).strip() for line in console.splitlines()]
    own = [line for line in lines if line.startswith("guest:") or READY in line]
    return own or lines[-10:]


def _echo(address: str, said: bytes) -> bytes | None:
    """What the guest sends back; None if it does not answer (yet)."""
    try:
        with socket.create_connection((address, ECHO_PORT), timeout=2) as connection:
            connection.sendall(said)
            heard = b""
            while len(heard) < len(said) and (data := connection.recv(len(said) - len(heard))):
                heard += data
            return heard
    except OSError:
        return None
