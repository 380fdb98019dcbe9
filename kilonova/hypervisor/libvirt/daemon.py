"""The libvirtd that a driver talks to: a private one of the installation, or the machine's.

The private daemon lives in a directory of the installation, needs no service manager, and survives this
process: `start` adopts one that runs. See `supervisor` for how it is kept apart and kept alive.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from concurrent.futures import Executor
from pathlib import Path
from typing import Protocol

from kilonova.domain.clock import Clock
from kilonova.domain.errors import KilonovaError
from kilonova.hypervisor.libvirt import kvm, supervisor
from kilonova.hypervisor.libvirt.account import guest_account

START_LIMIT = 30.0
"""Seconds in which a private libvirtd must accept connections."""
STOP_LIMIT = 20.0
POLL = 0.02
TPM_STATES = "swtpm"
"""Where libvirt keeps the state of TPMs, in its directory for state."""
FIRST_DISPLAY, DISPLAYS, DISPLAY_WINDOWS = 5900, 1000, 26
"""Ports of screens: the first, how many an installation has, and how many installations can have their own below those
that the kernel gives to clients."""
LONGEST_SOCKET_PATH = 107
SEARCH_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin", "/sbin"))


class Daemon(Protocol):
    """Where guests are run."""

    uri: str

    async def start(self, workers: Executor) -> None:
        """Make sure that it runs. Cheap when it does."""
        ...

    def guest_path(self, path: Path) -> Path:
        """How QEMU names a file of the data directory."""
        ...

    def guest_logs(self, name: str) -> tuple[Path, ...]:
        """The logs that libvirtd keeps of the domain of that name, as far as they are this product's to remove."""
        ...

    def tpm_state(self, uuid: str) -> Path:
        """The directory with the state of the TPM of a guest."""
        ...

    def tpm_owners(self) -> list[str]:
        """UUIDs of the guests of this product of whose TPMs there is a state."""
        ...

    @property
    def guest_owner(self) -> tuple[int, int] | None:
        """The user and group numbers that QEMU runs as, if files must be given to them; None if not."""
        ...


class SystemDaemon:
    """A libvirtd that somebody else runs, or one on another machine.

    Args:
        uri: as libvirt takes it, for example `qemu:///system`.
    """

    def __init__(self, uri: str = "qemu:///system") -> None:
        self.uri = uri

    async def start(self, workers: Executor) -> None:
        """Nothing to do: connecting tells whether it runs."""

    def guest_path(self, path: Path) -> Path:
        return path

    def guest_logs(self, name: str) -> tuple[Path, ...]:
        return ()

    def tpm_state(self, uuid: str) -> Path:
        return supervisor.STATE["lib"] / TPM_STATES / uuid

    def tpm_owners(self) -> list[str]:
        """Nobody can tell whose they are."""
        return []

    @property
    def guest_owner(self) -> tuple[int, int] | None:
        """None: that libvirtd hands files to QEMU as it is configured to."""
        return None


class PrivateDaemon:
    """A libvirtd of this installation alone.

    Args:
        directory: what libvirtd keeps; made when missing. It must be on a path short enough for a socket.
        data: the directory of the guests' files.
        nbd_tls: directory of the certificates with which guests reach volumes over TLS; None for none.
    """

    def __init__(self, directory: Path, data: Path, clock: Clock, *, nbd_tls: Path | None = None) -> None:
        self._directory = directory.absolute()
        self._data = data.absolute()
        self._clock = clock
        self._nbd_tls = nbd_tls
        self._starting = asyncio.Lock()
        self._socket = self._directory / "run" / "libvirt-sock"
        self._account = guest_account()
        self._supervisor: subprocess.Popen[bytes] | None = None
        self.uri = f"qemu:///system?socket={self._socket}"

    def guest_path(self, path: Path) -> Path:
        return supervisor.GUEST_FILES / path.absolute().relative_to(self._data)

    def guest_logs(self, name: str) -> tuple[Path, ...]:
        return (
            self._directory / "log" / "qemu" / f"{name}.log",
            self._directory / "tpm-log" / "libvirt" / "qemu" / f"{name}-swtpm.log",
        )

    def tpm_state(self, uuid: str) -> Path:
        return self._directory / "lib" / TPM_STATES / uuid

    def tpm_owners(self) -> list[str]:
        states = self._directory / "lib" / TPM_STATES
        return [state.name for state in states.iterdir()] if states.is_dir() else []

    @property
    def guest_owner(self) -> tuple[int, int] | None:
        return None if self._account is None else (self._account.pw_uid, self._account.pw_gid)

    async def start(self, workers: Executor) -> None:
        """Start it, or find it running; return when it accepts connections.

        Raises:
            KilonovaError: something it needs is missing, or it does not start.
        """
        loop = asyncio.get_running_loop()
        async with self._starting:
            deadline = self._clock.monotonic() + START_LIMIT
            if not self.is_running():
                await loop.run_in_executor(workers, self._launch)
            while not await loop.run_in_executor(workers, self._accepts):
                process = self._supervisor
                if process is not None and process.poll() not in (None, supervisor.ALREADY_RUNNING):
                    raise self._failure("ended at once")
                if self._clock.monotonic() > deadline:
                    raise self._failure(f"did not accept connections within {START_LIMIT:.0f} s")
                await self._clock.sleep(POLL)

    async def stop(self) -> None:
        """End libvirtd and its supervisor. Guests keep running; the next `start` finds them."""
        if not self.is_running():
            return
        pid = int((self._directory / "supervisor.pid").read_text())
        os.kill(pid, signal.SIGTERM)
        deadline = self._clock.monotonic() + STOP_LIMIT
        while self.is_running():
            if self._clock.monotonic() > deadline:
                raise self._failure(f"did not end within {STOP_LIMIT:.0f} s")
            await self._clock.sleep(POLL)
        if self._supervisor is not None:
            self._supervisor.wait()

    def is_running(self) -> bool:
        """Whether a supervisor serves the directory (its lock cannot outlive it)."""
        try:
            lock = os.open(self._directory / "supervisor.lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def _launch(self) -> None:
        libvirtd = shutil.which("libvirtd", path=SEARCH_PATH)
        if libvirtd is None:
            raise KilonovaError(
                "libvirtd is not installed.",
                hint="install libvirt and QEMU (Debian: libvirt-daemon-system qemu-system-x86 qemu-utils)",
            )
        if os.geteuid() != 0:
            raise KilonovaError("A private libvirtd can only be started by root.", hint="run as root")
        if len(os.fsencode(self._socket)) > LONGEST_SOCKET_PATH:
            raise KilonovaError(
                f"The path {self._socket} is too long for a socket.", hint="choose a shorter data directory"
            )
        self._prepare()
        self._socket.unlink(missing_ok=True)  # of a libvirtd without supervisor, which is about to be replaced
        command = [sys.executable, "-I", "-S", supervisor.__file__, str(self._directory), str(self._data), libvirtd]
        with (self._directory / "log" / "supervisor.log").open("ab") as log:
            self._supervisor = subprocess.Popen(
                [*command, self._kvm()], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/",
                start_new_session=True,
            )

    def _kvm(self) -> str:
        if not kvm.verdict(self._data / "kvm.json").usable:
            return supervisor.HIDDEN
        uid, gid = self.guest_owner or (0, 0)
        return f"{uid}:{gid}"

    def _prepare(self) -> None:
        self._data.mkdir(parents=True, exist_ok=True)
        self._data.chmod(0o711)  # QEMU passes through, and sees only what it is told of
        self._directory.mkdir(parents=True, exist_ok=True)
        self._directory.chmod(0o700)
        for name in supervisor.STATE:
            (self._directory / name).mkdir(exist_ok=True)
            (self._directory / name).chmod(0o755)
        if self._account is not None:
            os.chown(self._directory / "tpm-ca", self._account.pw_uid, self._account.pw_gid)
        etc = self._directory / "etc"
        (etc / "libvirtd.conf").write_text(_configuration(self._daemon_options()))
        (etc / "qemu.conf").write_text(_configuration(self._qemu_options()))

    def _daemon_options(self) -> dict[str, str | int]:
        return {
            "host_uuid": self._host_uuid(),
            "auth_unix_rw": "none",
            "auth_unix_ro": "none",
            "unix_sock_rw_perms": "0700",
            "unix_sock_ro_perms": "0700",
            "max_client_requests": 32,
            "log_outputs": "3:file:/var/log/libvirt/libvirtd.log",
        }

    def _qemu_options(self) -> dict[str, str | int | tuple[str, ...]]:
        options: dict[str, str | int | tuple[str, ...]] = {
            # A log daemon would be one more process whose death takes the guests' consoles with it.
            "stdio_handler": "file",
            "security_driver": "none",
            "dynamic_ownership": 0,
            "remember_owner": 0,
            "namespaces": (),
            "vnc_listen": "127.0.0.1",
            **self._display_ports(),
        }
        if self._nbd_tls is not None:
            options["nbd_tls_x509_cert_dir"] = str(self._nbd_tls)
        if self._account is not None:
            options["user"] = self._account.pw_name
            options["group"] = f"+{self._account.pw_gid}"
            # Else QEMU may not use the socket of the program that emulates its TPM.
            options["swtpm_user"] = self._account.pw_name
            options["swtpm_group"] = f"+{self._account.pw_gid}"
        return options

    def _display_ports(self) -> dict[str, str | int | tuple[str, ...]]:
        """Ports of screens: installations on one machine, of which none knows the other's, hardly ever share them."""
        window = uuid.UUID(self._host_uuid()).int % DISPLAY_WINDOWS
        first = FIRST_DISPLAY + window * DISPLAYS
        return {"remote_display_port_min": first, "remote_display_port_max": first + DISPLAYS - 1}

    def _host_uuid(self) -> str:
        """Chosen once: machines without DMI would otherwise be another host after each start."""
        file = self._directory / "host_uuid"
        if not file.exists():
            file.write_text(f"{uuid.uuid4()}\n")
        return file.read_text().strip()

    def _accepts(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(POLL * 10)
            try:
                probe.connect(str(self._socket))
            except OSError:
                return False
            return True

    def _failure(self, what: str) -> KilonovaError:
        tail = ""
        for name in ("supervisor.log", "libvirtd.log"):
            file = self._directory / "log" / name
            if file.exists():
                tail += "".join(file.read_text(errors="replace").splitlines(keepends=True)[-3:])
        return KilonovaError(
            f"The private libvirtd {what}.", hint=f"see {self._directory / 'log'}; its last lines: {tail.strip()}"
        )


def _configuration(options: dict[str, str | int] | dict[str, str | int | tuple[str, ...]]) -> str:
    lines = []
    for name, value in options.items():
        if isinstance(value, tuple):
            rendered = "[ " + ", ".join(_quoted(item) for item in value) + " ]"
        else:
            rendered = _quoted(value) if isinstance(value, str) else str(value)
        lines.append(f"{name} = {rendered}\n")
    return "".join(lines)


def _quoted(text: str) -> str:
    if '"' in text or "\n" in text:
        raise ValueError(f"{text!r} cannot be written to a libvirt configuration file")
    return f'"{text}"'
