"""Packages of the distribution, downloaded and unpacked without being installed.

Nothing lands outside the given directory: a kernel unpacked here leaves the machine's own boot files alone,
and no root is needed.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
from pathlib import Path

import msgspec

from kilonova.domain.errors import KilonovaError

KERNELS = ("linux-image-cloud-amd64", "linux-image-kvm", "linux-image-virtual")
"""The smallest kernels for guests: Debian's, then Ubuntu's two. The first known one is taken."""

BOOT = ("busybox-static", "dosfstools", "mtools", "syslinux", "syslinux-common", "systemd-boot-efi", "zstd")
SERVICES = ("dropbear-bin", "qemu-guest-agent")
LIBRARIES = re.compile(
    r"(libc6|libcrypt1|libffi8|libglib2\.0-0|libgmp10|libnuma1|libpcre2-8-0|libpcre3|libtomcrypt1|libtommath1"
    r"|libudev1|liburing2|zlib1g)(t64)?"
)
KERNEL_PARTS = re.compile(r"linux-(image|modules)-[0-9].*")

LISTS = Path("/var/lib/apt/lists")


class Package(msgspec.Struct, frozen=True, order=True):
    """One downloadable package file; `digest` is what the package lists say its checksum is."""

    file: str
    digest: str


def lists_fingerprint() -> str:
    """Changes whenever the machine's package lists do. Costs microseconds, where asking apt costs seconds."""
    stats = [(path.name, path.stat()) for path in sorted(LISTS.glob("*_Packages*"))]
    text = "\n".join(f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats)
    return hashlib.sha256(text.encode()).hexdigest()


def required() -> list[str]:
    """Names of the packages the image is made of, kernel and libraries resolved.

    Raises:
        KilonovaError: the package lists know no suitable kernel.
    """
    kernel = next((name for name in KERNELS if _known(name)), None)
    if kernel is None:
        raise KilonovaError(
            "The package lists of this machine offer no guest kernel.",
            hint=f"Run 'apt-get update'; one of {', '.join(KERNELS)} must be available.",
        )
    listing = _run(
        ["apt-cache", "depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts",
         "--no-breaks", "--no-replaces", "--no-enhances", kernel, *SERVICES]
    )
    found = {line for line in listing.splitlines() if not line.startswith((" ", "<"))}
    wanted = {name for name in found if LIBRARIES.fullmatch(name) or KERNEL_PARTS.fullmatch(name)}
    return sorted(wanted | set(BOOT) | set(SERVICES))


def resolve(names: list[str]) -> list[Package]:
    """What exactly would be downloaded for these names."""
    pattern = re.compile(r"^'[^']*' (\S+) \d+ (\S+)$", re.MULTILINE)
    output = _run(["apt-get", "download", "--print-uris", *names])
    return sorted(Package(file, digest) for file, digest in pattern.findall(output))


def unpack(names: list[str], downloads: Path, tree: Path) -> None:
    """Download the packages into `downloads` (checksums verified by apt) and unpack them all into `tree`."""
    downloads.mkdir(parents=True)
    _run(["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", *names], cwd=downloads)
    for archive in sorted(downloads.glob("*.deb")):
        _run(["dpkg-deb", "-x", str(archive), str(tree)])


def _known(name: str) -> bool:
    return bool(subprocess.run(["apt-cache", "show", name], capture_output=True, timeout=60).stdout)


def _run(command: list[str], cwd: Path | None = None) -> str:
    try:
        result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)
    except FileNotFoundError as error:
        raise KilonovaError(
            f"The guest image needs the program {command[0]}, which is not there.",
            hint="The image is made from Debian or Ubuntu packages, on such a machine.",
        ) from error
    if result.returncode:
        raise KilonovaError(
            f"{' '.join(command[:2])} failed: {result.stderr.strip()[-500:]}",
            hint="Run 'apt-get update' and see that the package archive can be reached.",
        )
    return result.stdout
