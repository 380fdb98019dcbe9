"""Whether the processor really runs guests, found out by trying.

/dev/kvm may exist, and QEMU may accept it, on a machine whose KVM emulates each instruction of an ordinary guest:
such a guest is hundreds of times slower than QEMU's own translation. So a loop is run in a virtual machine of a
few pages and timed: hardware needs well under a millisecond for it, an emulator tens of them.

The probe runs in a child process, because a broken KVM can hang the thread that asks it. Run as a script, this
file prints `usable` or why not.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import platform
import struct
import subprocess
import sys
import time
from pathlib import Path

import msgspec

LOOPS = 50_000
LIMIT = 0.020
"""Seconds that the loop may take."""
ATTEMPTS = 3
"""The best counts: a busy machine may take the processor away during one."""
PROBE_LIMIT = 5.0
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

CREATE_VM, CREATE_VCPU, GET_VCPU_MMAP_SIZE, RUN = 0xAE01, 0xAE41, 0xAE04, 0xAE80
SET_USER_MEMORY_REGION, GET_SREGS, SET_SREGS, SET_REGS = 0x4020AE46, 0x8138AE83, 0x4138AE84, 0x4090AE82
SREGS_SIZE, REGS_SIZE = 0x138, 0x90
EXIT_IO = 2
"""The exit reason of a guest that wrote to a port."""

MEMORY = 0x200000
PML4, PDPT, PAGE_DIRECTORY, GDT, STACK, CODE = 0x1000, 0x2000, 0x3000, 0x4000, 0x7000, 0x8000
PRESENT_WRITABLE, LARGE_PAGE = 0x3, 0x83


class Verdict(msgspec.Struct, frozen=True):
    """boot_id: of the boot the probe ran in. reason: why KVM cannot be used, "" if it can."""

    boot_id: str
    reason: str

    @property
    def usable(self) -> bool:
        return not self.reason


def verdict(cache: Path) -> Verdict:
    """Probe once per boot.

    Args:
        cache: file that keeps the answer.
    """
    boot_id = BOOT_ID.read_text().strip()
    try:
        known = msgspec.json.decode(cache.read_bytes(), type=Verdict)
        if known.boot_id == boot_id:
            return known
    except (FileNotFoundError, msgspec.DecodeError):
        pass  # never probed, or by a version that wrote it otherwise
    fresh = Verdict(boot_id, _probe_in_child())
    temporary = cache.with_suffix(".new")
    temporary.write_bytes(msgspec.json.encode(fresh))
    temporary.replace(cache)
    return fresh


def _probe_in_child() -> str:
    try:
        ended = subprocess.run(
            [sys.executable, "-m", __name__], capture_output=True, text=True, timeout=PROBE_LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return "a virtual machine did not come back from a short loop"
    if ended.returncode != 0:
        return f"the probe failed: {(ended.stderr.strip().splitlines() or ['without a word'])[-1]}"
    answer = ended.stdout.strip()
    return "" if answer == "usable" else answer


def probe() -> str:
    """Run the loop. Returns why KVM cannot be used, or ""."""
    if platform.machine() != "x86_64":
        return "" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "/dev/kvm cannot be opened"
    best = float("inf")
    for _ in range(ATTEMPTS):
        try:
            best = min(best, _timed_loop())
        except OSError as error:
            return f"KVM refuses a virtual machine: {error.strerror}"
        if best < LIMIT:
            return ""
    return f"KVM emulates instructions instead of running them ({best * 1000:.0f} ms for {LOOPS} of them)"


def _timed_loop() -> float:
    kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    machine = cpu = -1
    try:
        machine = fcntl.ioctl(kvm, CREATE_VM, 0)
        memory = mmap.mmap(-1, MEMORY)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        fcntl.ioctl(machine, SET_USER_MEMORY_REGION, struct.pack("IIQQQ", 0, 0, 0, MEMORY, address))
        _write_guest(memory)
        cpu = fcntl.ioctl(machine, CREATE_VCPU, 0)
        state = mmap.mmap(cpu, fcntl.ioctl(kvm, GET_VCPU_MMAP_SIZE, 0))
        _set_registers(cpu)
        before = time.perf_counter()
        fcntl.ioctl(cpu, RUN, 0)
        elapsed = time.perf_counter() - before
        exit_reason = struct.unpack_from("I", state, 8)[0]
        return elapsed if exit_reason == EXIT_IO else float("inf")
    finally:
        for descriptor in (cpu, machine, kvm):
            if descriptor >= 0:
                os.close(descriptor)


def _write_guest(memory: mmap.mmap) -> None:
    """Page tables that map one page of 2 MiB, flat segments, and the loop followed by a write to a port."""
    struct.pack_into("Q", memory, PML4, PDPT | PRESENT_WRITABLE)
    struct.pack_into("Q", memory, PDPT, PAGE_DIRECTORY | PRESENT_WRITABLE)
    struct.pack_into("Q", memory, PAGE_DIRECTORY, LARGE_PAGE)
    struct.pack_into("QQQ", memory, GDT, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF)
    code = b"\xb9" + struct.pack("I", LOOPS)  # mov ecx, LOOPS
    code += b"\xff\xc9\x75\xfc"  # again: dec ecx; jnz again
    code += b"\x66\xba\xf8\x03\xb0\x45\xee\xf4"  # mov dx, 0x3f8; mov al, 'E'; out dx, al; hlt
    memory[CODE : CODE + len(code)] = code


def _set_registers(cpu: int) -> None:
    special = bytearray(SREGS_SIZE)
    fcntl.ioctl(cpu, GET_SREGS, special)
    _segment(special, 0, selector=8, kind=11, long_mode=1, big=0)
    for index in range(1, 6):
        _segment(special, index, selector=16, kind=3, long_mode=0, big=1)
    struct.pack_into("QH", special, 192, GDT, 23)
    struct.pack_into("QH", special, 208, 0x5000, 0x1FF)
    cr0, cr3, cr4, efer, apic = 0x80050033, PML4, 0x20, 0x500, 0xFEE00900
    struct.pack_into("QQQQQQQ", special, 224, cr0, 0, cr3, cr4, 0, efer, apic)
    fcntl.ioctl(cpu, SET_SREGS, bytes(special))
    general = bytearray(REGS_SIZE)
    for index, value in ((6, STACK), (16, CODE), (17, 2)):  # rsp, rip, rflags
        struct.pack_into("Q", general, index * 8, value)
    fcntl.ioctl(cpu, SET_REGS, bytes(general))


def _segment(special: bytearray, index: int, *, selector: int, kind: int, long_mode: int, big: int) -> None:
    fields = (0, 0xFFFFFFFF, selector, kind, 1, 0, big, 1, long_mode, 1, 0, 0, 0)
    struct.pack_into("QIHBBBBBBBBBB", special, 24 * index, *fields)


if __name__ == "__main__":
    print(probe() or "usable")
