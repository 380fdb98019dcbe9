"""The test guest boots for real, on QEMU without KVM or libvirt, and does what a cloud guest does."""

from __future__ import annotations

import base64
import json
import os
import selectors
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from kilonova.domain.instance import InjectedFile
from kilonova.guestimage import Variant, build, packages
from kilonova.guestimage.kernel import load_order, uncompressed
from kilonova.hypervisor.guest import GuestMetadata
from kilonova.metadata.configdrive import build_iso

HERE = Path(__file__).parent
LIMIT = 120.0
"""seconds"""
UUID = "6b1f2f0e-1111-4222-8333-444455556666"


class Machine:
    """A running QEMU and what its serial console has said."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.console = ""
        assert process.stdout is not None
        self._out = process.stdout.fileno()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._out, selectors.EVENT_READ)

    def wait_for(self, text: str) -> None:
        """Return once the console has said `text`; its words before that are in the failure."""
        end = time.monotonic() + LIMIT
        while text not in self.console:
            ready = self._selector.select(max(0.0, end - time.monotonic()))
            said = os.read(self._out, 65536) if ready else b""
            if not said:
                pytest.fail(f"The console did not say {text!r}:\n{self.console}")
            self.console += said.decode(errors="replace")

    def type(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()


@contextmanager
def machine(image: Path, *arguments: str, network: str = "user,id=net", memory: int = 128) -> Iterator[Machine]:
    """memory: MiB."""
    command = [
        "qemu-system-x86_64", "-accel", "tcg", "-machine", "q35", "-m", str(memory), "-snapshot", "-display", "none",
        "-serial", "stdio", "-drive", f"file={image},if=virtio,format=qcow2", "-device", "virtio-rng-pci",
        "-netdev", network, "-device", "virtio-net-pci,netdev=net,romfile=", *arguments,
    ]  # fmt: skip
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        yield Machine(process)
    finally:
        process.kill()
        process.wait()


@contextmanager
def connected(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(LIMIT)
        link.connect(str(path))
        yield link


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def metadata(key: str = "ssh-ed25519 AAAA someone") -> GuestMetadata:
    return GuestMetadata(
        instance_uuid=UUID, name="web one", hostname="web-one", project_id="p", flavor_name="m1.tiny",
        user_data=encoded("#!/bin/sh\necho my data runs as $(whoami)\n"), keys={"k": key},
        metadata={"uuid": "not this one", "text": 'quo"te } ] ,'}, admin_password='pa"ss',
        files=(InjectedFile("/etc/motd", encoded("first")), InjectedFile("/opt/two", encoded("second"))),
    )  # fmt: skip


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("image") / "guest.qcow2")


def test_guest_adopts_its_config_drive_and_serves(image: Path, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    build_iso(metadata((tmp_path / "key.pub").read_text().strip()), tmp_path / "drive.iso")
    ssh, echo = free_port(), free_port()
    forwards = f",hostfwd=tcp:127.0.0.1:{ssh}-:22,hostfwd=tcp:127.0.0.1:{echo}-:7"
    arguments = [
        "-drive", f"file={tmp_path}/drive.iso,if=none,id=drive,format=raw,readonly=on",
        "-device", "virtio-scsi-pci", "-device", "scsi-cd,drive=drive", "-device", "virtio-serial-pci",
        "-chardev", f"socket,id=agent,path={tmp_path}/agent,server=on,wait=off",
        "-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
        "-qmp", f"unix:{tmp_path}/qmp,server=on,wait=off",
        "-netdev", "user,id=second,net=10.7.7.0/24", "-device", "virtio-net-pci,netdev=second",
    ]  # fmt: skip
    with machine(image, *arguments, network=f"user,id=net{forwards}") as guest:
        guest.wait_for(f"guest: config-drive device=/dev/sr0 uuid={UUID} hostname=web-one")
        guest.wait_for("LOGIN READY")
        guest.wait_for("my data runs as root")
        guest.wait_for("web-one login: ")
        guest.type("root\necho typed-$((6 * 7))\n")
        guest.wait_for("typed-42")

        with socket.create_connection(("127.0.0.1", echo), timeout=LIMIT) as link:
            link.sendall(b"anyone there?\n")
            assert link.recv(64) == b"anyone there?\n"

        with connected(tmp_path / "agent") as agent:
            agent.sendall(b'{"execute": "guest-ping"}\n')
            assert json.loads(agent.recv(4096)) == {"return": {}}

        options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes"]
        login = ["ssh", "-q", "-i", str(tmp_path / "key"), *options, "-p", str(ssh), "root@127.0.0.1"]
        found = "blkid -t LABEL=config-2 -o device; sudo blkid -L config-2"
        made = "dd if=/dev/zero of=/tmp/fat bs=1M count=4; mkfs -t vfat /tmp/fat; dd if=/tmp/fat bs=1 skip=82 count=5"
        commands = f"cat /etc/motd /opt/two; {found}; lsblk -lb --nodeps; ({made}) 2>/dev/null; echo; ip route"
        seen = subprocess.run([*login, commands], capture_output=True, text=True, timeout=LIMIT, check=True).stdout
        assert seen.startswith("firstsecond/dev/sr0\n/dev/sr0\n")
        heading, first, *_, made_there, way_out, second_way = seen.partition("\n10.")[0].splitlines()[2:]
        assert made_there == "FAT32"
        assert (way_out.split()[:5], second_way.split()[-2:]) == (
            ["default", "via", "10.0.2.2", "dev", "eth0"], ["metric", "1"],
        )
        assert first.split() == ["vda", "254:0", "0", "69206016", "0", "disk"]
        assert first.index("disk") == heading.index("TYPE")

        with connected(tmp_path / "qmp") as qmp:
            qmp.sendall(b'{"execute": "qmp_capabilities"}{"execute": "system_powerdown"}')
            guest.wait_for("guest: shutting down")
            assert guest.process.wait(LIMIT) == 0


def test_guest_finds_the_metadata_service(tmp_path: Path) -> None:
    (tmp_path / "metadata.json").write_bytes(msgspec.json.encode(metadata()))
    python = f"env PYTHONPATH={HERE.parents[1]} {sys.executable}"
    program = f"{python} {HERE / 'metadata_on_stdio.py'} {tmp_path / 'metadata.json'}"
    network = f"user,id=net,net=169.254.169.0/24,guestfwd=tcp:169.254.169.254:80-cmd:{program}"
    tiny = build(tmp_path / "tiny.qcow2", variant=Variant.TINY)
    with machine(tiny, network=network) as guest:
        guest.wait_for(f"guest: metadata instance-id=i-6b1f2f0e111142228 hostname=web-one uuid={UUID}")
        guest.wait_for("LOGIN READY")
        assert "guest: ssh keys=1" in guest.console
        guest.wait_for("guest: user-data exit=0")


def test_guest_boots_from_uefi(image: Path, tmp_path: Path) -> None:
    variables = shutil.copy("/usr/share/OVMF/OVMF_VARS_4M.fd", tmp_path / "variables.fd")
    firmware = [
        "-drive", "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd",
        "-drive", f"if=pflash,format=raw,file={variables}",
    ]  # fmt: skip
    with machine(image, *firmware, memory=256) as guest:
        guest.wait_for("guest: network eth0 10.0.2.15/24")


def test_second_build_comes_from_the_cache(image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        pytest.fail("nothing should be asked of the package archive")

    for name in ("required", "resolve", "unpack"):
        monkeypatch.setattr(packages, name, refuse)
    again = build(tmp_path / "again.qcow2")
    assert again.read_bytes() == image.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again.qcow2"]


@pytest.mark.parametrize("program", ["gzip", "xz", "zstd"])
def test_compressed_modules_are_read(program: str, tmp_path: Path) -> None:
    suffix = {"gzip": "gz", "xz": "xz", "zstd": "zst"}[program]
    packed = tmp_path / f"module.ko.{suffix}"
    packed.write_bytes(subprocess.run([program, "-c"], input=b"ELF" * 999, capture_output=True, check=True).stdout)
    assert uncompressed(packed, tmp_path) == b"ELF" * 999


def test_modules_come_after_what_they_need() -> None:
    dependencies = (
        "kernel/net/b.ko.xz: kernel/net/c.ko.xz kernel/a-a.ko.xz\nkernel/net/c.ko.xz: kernel/a-a.ko.xz\n"
        "kernel/a-a.ko.xz:\nkernel/unwanted.ko.xz:\n"
    )
    order = load_order(dependencies, ("b", "a_a", "built_in"))
    assert order == ["kernel/a-a.ko.xz", "kernel/net/c.ko.xz", "kernel/net/b.ko.xz"]
