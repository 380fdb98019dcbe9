"""The guest's kernel and the modules it loads, in an order in which each finds what it depends on."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import msgspec

from kilonova.domain.errors import KilonovaError
from kilonova.guestimage.tools import run

MINIMAL_MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "button", "evdev", "virtio_rng")
FULL_MODULES = (
    *MINIMAL_MODULES,
    "virtio_console", "virtio_balloon", "virtio_scsi", "sd_mod", "sr_mod", "ata_piix", "isofs", "vfat",
    "nls_cp437", "nls_ascii", "nls_iso8859_1", "nls_utf8", "ext4", "pvpanic_pci", "pvpanic_mmio",
    "vmw_vsock_virtio_transport", "virtiofs",
)  # fmt: skip


class Kernel(msgspec.Struct, frozen=True):
    """modules: file name and content (uncompressed), in load order."""

    version: str
    image: bytes
    modules: tuple[tuple[str, bytes], ...]


def read_kernel(tree: Path, wanted: tuple[str, ...]) -> Kernel:
    """Take the kernel and the wanted modules from unpacked packages.

    A module that the kernel does not have as a file is taken to be built in, as some distributions do.
    """
    roots = sorted(path for base in ("usr/lib/modules", "lib/modules") for path in (tree / base).glob("*"))
    images = sorted((tree / "boot").glob("vmlinuz-*"))
    if not roots or not images:
        raise KilonovaError("The kernel package holds no kernel or no modules.")
    version = roots[-1].name
    base = roots[-1].parent.parent.parent
    run(["depmod", "-b", str(base), version])
    order = load_order((roots[-1] / "modules.dep").read_text(), wanted)
    modules = tuple((_plain_name(path), uncompressed(roots[-1] / path, tree)) for path in order)
    return Kernel(version, images[-1].read_bytes(), modules)


def load_order(modules_dep: str, wanted: tuple[str, ...]) -> list[str]:
    """Paths of the wanted modules and all they depend on, dependencies first.

    Args:
        modules_dep: the text of depmod's modules.dep, which lists for each module its whole closure, the
            deepest dependency last.
    """
    closure: dict[str, list[str]] = {}
    for line in modules_dep.splitlines():
        path, _, needs = line.partition(":")
        closure[_module_name(path)] = [*reversed(needs.split()), path]
    order: dict[str, None] = {}
    for name in wanted:
        order.update(dict.fromkeys(closure.get(name, [])))
    return list(order)


def _plain_name(path: str) -> str:
    return path.rsplit("/", 1)[-1].partition(".ko")[0] + ".ko"


def _module_name(path: str) -> str:
    return _plain_name(path).removesuffix(".ko").replace("-", "_")


def uncompressed(path: Path, tree: Path) -> bytes:
    """The content of a module file: distributions compress them in three ways or not at all.

    Args:
        tree: unpacked packages, with the program zstd.
    """
    match path.suffix:
        case ".gz":
            return gzip.decompress(path.read_bytes())
        case ".xz":
            return lzma.decompress(path.read_bytes())
        case ".zst":
            return run(["zstd", "-dcq", str(path)], unpacked=tree)
        case _:
            return path.read_bytes()
