"""The guest's file system: a tree of files, and the archive a kernel unpacks at boot."""

from __future__ import annotations

import gzip
import re
import stat
from pathlib import Path

import msgspec

from kilonova.domain.errors import KilonovaError
from kilonova.guestimage.kernel import Kernel
from kilonova.guestimage.tools import run

OVERLAY = Path(__file__).parent / "overlay"
DIRECTORIES = (
    "bin", "data", "dev", "etc", "lib", "lib/modules", "lib64", "mnt", "proc", "root", "root/.ssh", "run",
    "sbin", "sys", "tmp", "usr", "usr/bin", "usr/lib", "usr/sbin", "usr/share", "var", "var/log",
)  # fmt: skip
SERVICES = ("usr/sbin/dropbear", "usr/bin/dropbearkey", "usr/sbin/qemu-ga")
LIBRARY_PLACES = ("usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu")
LOADER = "lib64/ld-linux-x86-64.so.2"
SCRIPT = stat.S_IFREG | 0o755
DATA = stat.S_IFREG | 0o644


class Entry(msgspec.Struct, frozen=True):
    """One node of the tree. mode: type and permissions. device: major and minor of a device node."""

    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


Tree = dict[str, Entry]


def guest_tree(unpacked: Path, kernel: Kernel, *, services: bool) -> Tree:
    """Everything the guest has.

    Args:
        unpacked: the unpacked packages.
        services: with SSH server and guest agent, and the libraries they need.
    """
    tree: Tree = {name: Entry(stat.S_IFDIR | 0o755) for name in DIRECTORIES}
    tree["root/.ssh"] = Entry(stat.S_IFDIR | 0o700)
    tree["dev/console"] = Entry(stat.S_IFCHR | 0o600, device=(5, 1))
    _add_busybox(tree, unpacked)
    for name, content in kernel.modules:
        tree[f"lib/modules/{name}"] = Entry(DATA, content)
    tree["lib/modules/order"] = Entry(DATA, "".join(f"{name}\n" for name, _ in kernel.modules).encode())
    if services:
        _add_services(tree, unpacked)
    _add_overlay(tree)
    return tree


def archive(tree: Tree) -> bytes:
    """The tree as the compressed cpio archive that the kernel unpacks; equal trees give equal bytes."""
    out = bytearray()
    for number, name in enumerate(sorted(tree), start=1):
        _append(out, number, name, tree[name])
    _append(out, 0, "TRAILER!!!", Entry(0))
    return gzip.compress(bytes(out), compresslevel=6, mtime=0)


def _append(out: bytearray, number: int, name: str, entry: Entry) -> None:
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    encoded = name.encode() + b"\0"
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.content), 0, 0, *entry.device, len(encoded), 0)
    out += b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    out += bytes(-len(out) % 4)
    out += entry.content
    out += bytes(-len(out) % 4)


def _add_busybox(tree: Tree, unpacked: Path) -> None:
    program = _find(unpacked, "bin/busybox")
    tree["bin/busybox"] = Entry(SCRIPT, program.read_bytes())
    for applet in run([str(program), "--list-full"]).decode().split():
        tree.setdefault(applet, Entry(stat.S_IFLNK | 0o777, b"/bin/busybox"))


def _add_services(tree: Tree, unpacked: Path) -> None:
    """Programs, and the shared libraries that their own loader says they need."""
    loader = _find(unpacked, LOADER)
    places = ":".join(str(unpacked / place) for place in LIBRARY_PLACES)
    tree[LOADER] = Entry(SCRIPT, loader.read_bytes())
    for service in SERVICES:
        program = _find(unpacked, service)
        tree[service] = Entry(SCRIPT, program.read_bytes())
        listing = run([str(loader), "--inhibit-cache", "--library-path", places, "--list", str(program)])
        for name, path in re.findall(r"^\s*(\S+) => (\S+)", listing.decode(), re.MULTILINE):
            if not path.startswith(str(unpacked)):
                raise KilonovaError(f"{service} needs the library {name}, which no package gave.")
            tree[f"usr/lib/{name}"] = Entry(SCRIPT, Path(path).read_bytes())


def _add_overlay(tree: Tree) -> None:
    """The guest's own scripts and settings. A script is what begins with `#!`."""
    for path in sorted(OVERLAY.rglob("*")):
        name = path.relative_to(OVERLAY).as_posix()
        if path.is_dir():
            tree.setdefault(name, Entry(stat.S_IFDIR | 0o755))
        else:
            content = path.read_bytes()
            tree[name] = Entry(SCRIPT if content.startswith(b"#!") else DATA, content)
    tree["etc/shadow"] = Entry(stat.S_IFREG | 0o600, tree["etc/shadow"].content)


def _find(unpacked: Path, name: str) -> Path:
    """Older releases unpack to /bin and /lib, newer ones to /usr/bin and /usr/lib."""
    for candidate in (unpacked / name, unpacked / "usr" / name):
        if candidate.exists():
            return candidate
    raise KilonovaError(f"The packages of this distribution hold no {name}.")
