"""What `kilonova doctor` looks at. Nothing here changes the machine or the installation."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from kilonova.cli.installation import State, is_served, running_state, sign_in
from kilonova.domain.errors import KilonovaError

if TYPE_CHECKING:
    from kilonova.config import Config

SEARCH_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
TOOLS = {
    "libvirtd": "libvirt-daemon-system", "qemu-system-x86_64": "qemu-system-x86", "qemu-img": "qemu-utils",
    "mkfs.ext4": "e2fsprogs", "ip": "iproute2", "nft": "nftables", "dnsmasq": "dnsmasq-base",
}
"""Programs that real guests need, and the Debian packages that have them."""
POOL_TOOLS = {"qemu-storage-daemon": "qemu-system-common", "qemu-img": "qemu-utils", "setpriv": "util-linux"}
"""Programs that storage pools need, likewise."""

FILTERS = "table bridge kilonova-doctor {\n chain c {\n type filter hook forward priority 0;\n }\n}\n"
LEAST_DISK, LITTLE_DISK = 512 << 20, 5 << 30
"""Bytes."""

LITTLE_MEMORY_KIB = 1 << 20
SECRET_FILES = ("installation.json", "clouds.yaml", "openrc", "token-keys", "kilonova.db", "agent.db", "state.json")
COMMAND_LIMIT = 20.0
EARLIEST = 1_704_067_200.0
"""The clock of a machine that has lost its battery stands before this."""


class Outcome(StrEnum):
    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at. hint: what to do about it, "" if nothing."""

    name: str
    outcome: Outcome
    what: str
    hint: str = ""


def ok(name: str, what: str) -> Check:
    return Check(name=name, outcome=Outcome.OK, what=what)


def warning(name: str, what: str, hint: str) -> Check:
    return Check(name=name, outcome=Outcome.WARNING, what=what, hint=hint)


def failed(name: str, what: str, hint: str) -> Check:
    return Check(name=name, outcome=Outcome.FAILED, what=what, hint=hint)


def all_checks(config: Config) -> Iterator[tuple[str, Callable[[], Check]]]:
    """(name, check) in the order in which they are best read."""
    if config.agent.driver == "libvirt":
        yield "privileges", _privileges
        yield "kvm", lambda: _kvm(config.directory)
        yield "filters", _filters
    needed = TOOLS if config.agent.driver == "libvirt" else {}
    for tool, package in (needed | POOL_TOOLS if config.pools else needed).items():
        yield tool, partial(_tool, tool, package)
    if config.agent.driver == "libvirt" and config.pools:
        yield "pools", lambda: _pools(config)
    yield "memory", _memory
    yield "disk", lambda: _disk(config.directory)
    yield "clock", lambda: _clock(config.directory)
    yield "permissions", lambda: _permissions(config.directory)
    yield "database", lambda: _integrity(config.directory)
    yield "schema", lambda: _schema(config)
    yield "port", lambda: _port(config)
    yield "running", lambda: _running(config.directory)
    yield "leaks", lambda: _leaks(config.directory)


def _privileges() -> Check:
    if os.geteuid() == 0:
        return ok("privileges", "root")
    return failed("privileges", "not root", "guests and networks need root; run `kilonova up` as root")


def _kvm(directory: Path) -> Check:
    from kilonova.hypervisor.libvirt import kvm

    if not Path("/dev/kvm").exists():
        return warning("kvm", "/dev/kvm does not exist: guests are emulated and slow",
                       "enable virtualization in the firmware, or nested virtualization on the host of this machine")
    with tempfile.TemporaryDirectory() as scratch:
        kept = directory / "guests" / "kvm.json"
        found = kvm.verdict(kept if os.access(kept, os.W_OK) else Path(scratch) / "kvm.json")
    if found.usable:
        return ok("kvm", "runs guests")
    return warning("kvm", f"guests are emulated and slow: {found.reason}",
                   "allow nested virtualization on the host of this machine, or go on without")


def _tool(tool: str, package: str) -> Check:
    path = shutil.which(tool, path=SEARCH_PATH)
    if path is None:
        return failed(tool, "missing", f"apt-get install {package}")
    return ok(tool, path)


def _filters() -> Check:
    """The kernel is asked whether it would take filters on bridges; they are not loaded."""
    nft = shutil.which("nft", path=SEARCH_PATH)
    if nft is None:
        return failed("filters", "cannot be tried without nft", "apt-get install nftables")
    ended = subprocess.run(
        [nft, "--check", "--file", "-"], input=FILTERS, capture_output=True, text=True, timeout=COMMAND_LIMIT,
        check=False,
    )
    if ended.returncode != 0:
        said = (ended.stderr.strip().splitlines() or ["no reason given"])[0]
        return failed("filters", f"the kernel refuses filters on bridges: {said}",
                      "run as root on a kernel with bridges and nf_tables")
    return ok("filters", "the kernel takes filters on bridges")


def _pools(config: Config) -> Check:
    """Guests run as another user, and connect to a socket in the directory of a pool."""
    from kilonova.hypervisor.libvirt.account import closed_to_guests

    for pool in config.pools:
        directory = Path(pool.within(config.directory).directory)
        closed = None if pool.listen else closed_to_guests(directory)
        if closed is not None:
            return failed("pools", f"guests cannot reach volumes of pool {pool.name}: {closed} is closed to them",
                          f"chmod o+x {closed}, or give the pool another directory")
    return ok("pools", "guests can reach their volumes")


def _memory() -> Check:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            kib = int(line.split()[1])
            if kib < LITTLE_MEMORY_KIB:
                return warning("memory", f"{kib // 1024} MiB available", "stop something, or start small servers only")
            return ok("memory", f"{kib // 1024} MiB available")
    return warning("memory", "unknown", "see /proc/meminfo")


def _disk(directory: Path) -> Check:
    there = next(path for path in (directory, *directory.parents) if path.exists())
    free = shutil.disk_usage(there).free
    what = f"{free / (1 << 30):.1f} GiB free below {there}"
    if free < LEAST_DISK:
        return failed("disk", what, "free some space, or name another --data-dir")
    if free < LITTLE_DISK:
        return warning("disk", what, "images and disks of servers go there: free some space")
    return ok("disk", what)


def _clock(directory: Path) -> Check:
    now = time.time()
    written = [path.stat().st_mtime for path in directory.glob("*.db*")] if directory.is_dir() else []
    if now < EARLIEST or any(at > now + 60 for at in written):
        return failed("clock", f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(now))} UTC is in the past",
                      "set the clock, and keep it right with chrony or systemd-timesyncd")
    return ok("clock", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now)))


def _permissions(directory: Path) -> Check:
    if not directory.exists():
        return ok("permissions", f"{directory} is made by `kilonova up`")
    if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
        return failed("permissions", f"{directory} cannot be used", "run this as the user who runs `kilonova up`")
    exposed = [
        name for name in SECRET_FILES if (file := directory / name).exists() and file.stat().st_mode & 0o077
    ]
    if exposed:
        return failed("permissions", f"others can read {', '.join(exposed)} in {directory}",
                      f"chmod 600 {' '.join(str(directory / name) for name in exposed)}")
    return ok("permissions", f"{directory} can be used, and its secrets are its owner's")


def _integrity(directory: Path) -> Check:
    """SQLite looks through its files itself."""
    checked = []
    for file in sorted(directory.glob("*.db")) if directory.is_dir() else []:
        connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=10)
        try:
            found = [str(row[0]) for row in connection.execute("PRAGMA quick_check(3)")]
        except sqlite3.Error as error:
            found = [str(error)]
        finally:
            connection.close()
        if found != ["ok"]:
            return failed("database", f"{file}: {'; '.join(found)}", "stop everything and restore a backup")
        checked.append(file.name)
    return ok("database", f"found whole: {', '.join(checked)}" if checked else "none yet")


def _schema(config: Config) -> Check:
    from kilonova.cli.database import schema_states

    wrong = [state.problem for state in asyncio.run(schema_states(config)) if state.problem]
    if wrong:
        return failed("schema", " ".join(wrong), "`kilonova db check` lists all schemas")
    return ok("schema", "fits this release")


def _port(config: Config) -> Check:
    where = f"{config.api.listen} port {config.api.port}"
    if is_served(config.directory):
        return ok("port", f"{where}: see `running`")
    family = socket.AF_INET6 if ":" in config.api.listen else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((config.api.listen, config.api.port))
        except OSError as error:
            return failed("port", f"{where}: {error.strerror}", "choose another with --port-base, or stop what uses it")
    return ok("port", f"{where} is free")


def _state(directory: Path) -> State | None:
    return running_state(directory) if directory.exists() else None


def _running(directory: Path) -> Check:
    state = _state(directory)
    if state is None:
        if directory.exists() and is_served(directory):
            return warning("running", "is coming up or going down", "look again in a moment")
        if (directory / "state.json").exists():
            return warning("running", "was ended from outside", "`kilonova up` goes on where it was")
        return ok("running", "does not run")
    from kilonova.control.documents import Status

    found = sign_in(state).get(f"{state.control_url}/status", Status)
    silent = [host.host for host in found.hosts if not host.up]
    if silent:
        return failed("running", f"hosts are silent: {', '.join(silent)}", "see the log of their agents")
    stranded = found.operations.get("stranded", 0)
    if stranded:
        return failed("running", f"{stranded} operations are stranded", "`kilonova ops` lists them")
    return ok("running", f"process {state.pids['kilonova']}, {len(found.hosts)} hosts")


def _leaks(directory: Path) -> Check:
    state = _state(directory)
    if state is None:
        return ok("leaks", "are looked for while it runs")
    from kilonova.audit.report import Report

    report = sign_in(state).get(f"{state.control_url}/audit", Report)
    if report.clean:
        return ok("leaks", "none")
    return failed("leaks", f"{len(report.differences)} differences", "`kilonova audit` lists them")


def run_check(name: str, check: Callable[[], Check]) -> Check:
    """A check that cannot be made has failed."""
    try:
        return check()
    except KilonovaError as error:
        return failed(name, error.message, error.hint or "")
    except (OSError, subprocess.SubprocessError) as error:
        return failed(name, f"cannot be looked at: {error}", "run this as root")
