"""`kilonova demo`: a real virtual machine with the real client, seen to work, and removed without a trace."""

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
from kilonova.cli.openstack_client import OpenStackClient
from kilonova.cli.progress import Story
from kilonova.domain.errors import KilonovaError

FLAVOR = "m1.nano"
NETWORK = "private"
ECHO_PORT = 7
READY = "LOGIN READY"
BOOT_LIMIT, ANSWER_LIMIT, DELETE_LIMIT = 180.0, 30.0, 120.0
"""Seconds. Booting is slow where the processor cannot help."""

FAKE_IMAGE_BYTES = 1 << 20


def demo(
    data_dir: DataDir = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the installation running afterwards.")] = False,
    driver: Annotated[
        str, typer.Option("--driver", help="libvirt, or fake to try the control plane without guests.")
    ] = "libvirt",
) -> None:
    """Boot a virtual machine with the openstack client, see that it works, remove it, and audit.

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
        Demonstration(story, state, image, work).run()
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

    def __init__(self, story: Story, state: State, image: Future[Path], work: Path) -> None:
        self._story = story
        self._work = work
        self._openstack = OpenStackClient(story, Path(state.data_dir, "clouds.yaml"))
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
            self._openstack.run("server event list", self._name, show=str.splitlines)
            self._remove()
        self._audit()

    def _launch(self, stack: ExitStack) -> Server:
        cloud, story, name = self._cloud, self._story, self._name
        with story.chapter("image") as chapter:
            chapter.doing("make it from packages of the distribution")
            file = self._image.result()
            chapter.outcome = f"made from packages of the distribution, {file.stat().st_size / 1e6:.1f} MB"
        stack.callback(cloud.delete_image, name)
        self._openstack.run("image create", "--private", "--disk-format", "qcow2" if self._guests else "raw",
                            "--file", str(file), name)
        with story.chapter("network") as chapter:
            addresses = cloud.addresses(NETWORK)
            group = cloud.open_group(name, (22, ECHO_PORT))
            stack.callback(cloud.delete_group, group)
            chapter.outcome = f"{NETWORK} ({addresses}), opened for ICMP and TCP 22, {ECHO_PORT}"
        stack.callback(cloud.delete_key, name)
        key = self._work / "key.pub"
        key.write_text(_public_key())
        self._openstack.run("keypair create", "--public-key", str(key), name)
        stack.callback(self._make_sure_it_is_gone)
        try:
            self._openstack.run("server create", "--flavor", FLAVOR, "--image", name, "--network", NETWORK,
                                "--security-group", name, "--key-name", name, "--wait", name)
        except KilonovaError as error:
            server = cloud.named(name)
            why = server.fault if server is not None else error.message
            raise KilonovaError(f"Server {name} was not built: {why}", hint="`kilonova ops` tells more") from error
        server = cloud.named(name)
        if server is None or server.status != "ACTIVE" or not server.addresses:
            raise KilonovaError(f"Server {name} was not built: {server}")
        story.say(f"             {server.id} is {server.status} on {server.host}, {', '.join(server.addresses)}")
        return server

    def _read_console(self, server: Server) -> None:
        """The guest says itself that it has booted, has its address and has read its metadata."""
        with self._story.chapter("boot") as chapter:
            def ready() -> str | None:
                output = self._cloud.console(server.id)
                lines = output.rstrip().splitlines()
                chapter.doing(lines[-1][-60:] if lines else "firmware")
                return output if READY in output else None

            chapter.wait_for("boot", ready, BOOT_LIMIT)
            chapter.outcome = "the guest has booted"
        output = self._openstack.run("console log show", self._name, show=_own_lines)
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

    def _remove(self) -> None:
        self._openstack.run("server delete", "--wait", self._name)
        if self._cloud.named(self._name) is not None:
            raise KilonovaError(f"Server {self._name} is still there.")

    def _make_sure_it_is_gone(self) -> None:
        server = self._cloud.named(self._name)
        if server is None:
            return
        with self._story.chapter("delete") as chapter:
            self._cloud.delete_server(server.id)
            chapter.wait_for("the end", lambda: None if self._cloud.named(self._name) else True, DELETE_LIMIT)

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
