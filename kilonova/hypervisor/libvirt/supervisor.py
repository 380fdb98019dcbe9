"""Runs one private libvirtd in a mount namespace of its own, and restarts it when it dies.

libvirtd's state directories are compiled in. In the namespace, directories of the installation are bound over
them, so that several installations run side by side. QEMU processes are children of the namespace too: they
find the same paths whichever libvirtd started them, and outlive both libvirtd and this process.

This process is the sub-reaper of the QEMU processes that libvirtd sets free. libvirt waits for a destroyed
guest to disappear from the process table, and that must not depend on how often the machine's init reaps.

It is started as a script with the interpreter's fastest options and uses only the standard library:

    python -I -S supervisor.py DIRECTORY DATA LIBVIRTD (UID:GID | hidden)

The last argument says who may use /dev/kvm. That is settled in the namespace, because libvirt starts trying out
QEMU afresh at every call when what it finds and what QEMU's user may do differ.

It holds a lock on `DIRECTORY/supervisor.lock` as long as it lives; its number is in `DIRECTORY/supervisor.pid`.
SIGTERM ends libvirtd and this process, and leaves the guests alone.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

CLONE_NEWNS = 0x00020000
MS_RDONLY = 0x1
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_SLAVE = 0x80000
PR_SET_CHILD_SUBREAPER = 36

STATE = {
    "run": Path("/run/libvirt"),
    "lib": Path("/var/lib/libvirt"),
    "cache": Path("/var/cache/libvirt"),
    "log": Path("/var/log/libvirt"),
    "tpm-log": Path("/var/log/swtpm"),
    "tpm-ca": Path("/var/lib/swtpm-localca"),
    "etc": Path("/etc/libvirt"),
}
"""Directories of the installation, and what they take the place of."""

GUEST_FILES = Path("/var/lib/libvirt/kilonova")
"""Where QEMU finds the directory DATA. QEMU is not root, and DATA may lie below a directory closed to others."""

KVM = Path("/dev/kvm")
HIDDEN = "hidden"
PIDFILE = STATE["run"] / "libvirtd.pid"
ALREADY_RUNNING = 3
SETTLED = 5.0
"""Seconds after which a libvirtd that ends is restarted at once."""
LONGEST_PAUSE = 5.0
STOP_LIMIT = 10.0


def main(directory: Path, data: Path, libvirtd: str, kvm: str) -> int:
    """Returns ALREADY_RUNNING if another supervisor serves the directory, else 0 after SIGTERM."""
    lock = os.open(directory / "supervisor.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return ALREADY_RUNNING
    (directory / "supervisor.pid").write_text(f"{os.getpid()}\n")
    _call("prctl", PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    enter_namespace(directory, data)
    settle_kvm(directory, kvm)
    end_orphan(directory)
    return Supervision([libvirtd, "--pid-file", str(PIDFILE)]).run()


def enter_namespace(directory: Path, data: Path) -> None:
    """Move into a new mount namespace in which the installation's directories are libvirt's."""
    _call("unshare", CLONE_NEWNS)
    keep_mounts_in()
    (directory / "lib" / GUEST_FILES.name).mkdir(exist_ok=True)
    for name, target in STATE.items():
        target.mkdir(parents=True, exist_ok=True)
        _mount(directory / name, target, MS_BIND)
    _mount(data, GUEST_FILES, MS_BIND | MS_REC)


def keep_mounts_in() -> None:
    """Mounts made on the host later still arrive here; nothing made here leaves.

    In a chroot, / belongs to a mount outside, which cannot be reached from here. If that one is shared, the chroot must
    be entered in a mount namespace of its own (`unshare --mount chroot ...`).
    """
    try:
        _mount(None, Path("/"), MS_REC | MS_SLAVE)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split()[4])
            _mount(None, Path(point), MS_SLAVE)


def settle_kvm(directory: Path, users: str) -> None:
    """Give /dev/kvm to the given user and group, or put an empty file in its place."""
    if not KVM.exists():
        return
    substitute = directory / "kvm"
    substitute.unlink(missing_ok=True)
    if users == HIDDEN:
        substitute.touch(0o400)
        _mount(substitute, KVM, MS_BIND)
        # Only on a read-only mount is a file not writable for root either.
        _mount(None, KVM, MS_REMOUNT | MS_BIND | MS_RDONLY)
    else:
        uid, gid = (int(number) for number in users.split(":"))
        os.mknod(substitute, stat.S_IFCHR | 0o660, KVM.stat().st_rdev)
        os.chown(substitute, uid, gid)
        _mount(substitute, KVM, MS_BIND)


def end_orphan(directory: Path) -> None:
    """End a libvirtd whose supervisor was killed; guests are not touched by that."""
    pidfile = directory / "run" / PIDFILE.name
    try:
        pid = int(pidfile.read_text())
        theirs = Path(f"/proc/{pid}/root{STATE['run']}").stat()
    except (OSError, ValueError):
        return
    if not os.path.samestat(theirs, (directory / "run").stat()):
        return  # the number was given to a process of someone else
    deadline = time.monotonic() + STOP_LIMIT
    os.kill(pid, signal.SIGTERM)
    while _alive(pid):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


class Supervision:
    """Keeps one child running until SIGTERM, and reaps whatever else becomes a child."""

    def __init__(self, command: list[str]) -> None:
        self._command = command
        self._stopping = False
        self._child: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        pause = 0.05
        while not self._stopping:
            started = time.monotonic()
            self._child = subprocess.Popen(self._command, stdin=subprocess.DEVNULL)
            if self._stopping:  # the signal came between the test and the start
                self._child.terminate()
            self._reap_until_gone(self._child.pid)
            pause = 0.05 if time.monotonic() - started > SETTLED else min(pause * 2, LONGEST_PAUSE)
            if not self._stopping:
                print("libvirtd ended; starting it again", file=sys.stderr, flush=True)
                time.sleep(pause)
        return 0

    def _reap_until_gone(self, pid: int) -> None:
        while True:
            ended, _ = os.waitpid(-1, 0)
            if ended == pid:
                return

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True
        if self._child is not None:
            os.kill(self._child.pid, signal.SIGTERM)
            signal.signal(signal.SIGALRM, self._kill)
            signal.setitimer(signal.ITIMER_REAL, STOP_LIMIT)

    def _kill(self, _number: int, _frame: FrameType | None) -> None:
        if self._child is not None:
            os.kill(self._child.pid, signal.SIGKILL)


def _alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


_libc = ctypes.CDLL(None, use_errno=True)


def _mount(source: Path | None, target: Path, flags: int) -> None:
    _call(
        "mount", os.fsencode(source) if source else None, os.fsencode(target), None, ctypes.c_ulong(flags), None
    )


def _call(function: str, *arguments: object) -> None:
    if getattr(_libc, function)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}: {os.strerror(number)}")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]))
