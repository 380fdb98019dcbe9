"""The state of a simulated hypervisor: it outlives the driver, as that of a real one does."""

from __future__ import annotations

from collections.abc import Callable, Container
from pathlib import Path
from typing import BinaryIO

import msgspec

from kilonova.domain.errors import KilonovaError
from kilonova.domain.states import GUEST_OFF, PowerState
from kilonova.hypervisor.fake_screen import FakeScreens
from kilonova.hypervisor.guest import GuestShare, HostDevice
from kilonova.hypervisor.volumes import FileMerge, VolumeSource, VolumeUsage
from kilonova.imaging.signatures import ImageSignatures
from kilonova.shapes.host import HostTopology, Layout
from kilonova.shapes.pci import PciDevice
from kilonova.shapes.traits import LOCKED_MEMORY

TRAITS = (
    "COMPUTE_NET_ATTACH_INTERFACE", "COMPUTE_NET_ATTACH_INTERFACE_WITH_TAG", "COMPUTE_FIRMWARE_BIOS",
    "COMPUTE_VOLUME_ATTACH_WITH_TAG", "COMPUTE_VOLUME_MULTI_ATTACH", "COMPUTE_VOLUME_EXTEND",
    "COMPUTE_DEVICE_TAGGING", "COMPUTE_RESCUE_BFV",
    "COMPUTE_FIRMWARE_UEFI", "COMPUTE_SECURITY_UEFI_SECURE_BOOT", "COMPUTE_SECURITY_STATELESS_FIRMWARE",
    *(f"COMPUTE_STORAGE_BUS_{bus}" for bus in ("VIRTIO", "SCSI", "SATA", "IDE", "USB", "FDC")),
    *(f"COMPUTE_NET_VIF_MODEL_{model}" for model in ("VIRTIO", "E1000", "E1000E", "RTL8139", "VMXNET3")),
    *(f"COMPUTE_GRAPHICS_MODEL_{model}" for model in ("VGA", "VIRTIO", "CIRRUS", "QXL", "BOCHS", "NONE")),
    *(f"COMPUTE_VIOMMU_MODEL_{model}" for model in ("INTEL", "VIRTIO")),
    *(f"COMPUTE_USB_MODEL_{model}" for model in ("QEMU_XHCI", "NEC_XHCI")),
    *(f"COMPUTE_SECURITY_TPM_{name}" for name in (
        "1_2", "2_0", "TIS", "CRB", "SECRET_SECURITY_USER", "SECRET_SECURITY_HOST", "SECRET_SECURITY_DEPLOYMENT",
    )),
    "COMPUTE_EPHEMERAL_ENCRYPTION", "COMPUTE_EPHEMERAL_ENCRYPTION_LUKS", "COMPUTE_SOUND_MODEL_ICH9",
    "COMPUTE_NET_VIRTIO_PACKED", "COMPUTE_STORAGE_VIRTIO_FS", "COMPUTE_MEM_BACKING_FILE", LOCKED_MEMORY,
)
"""What a host claims to be able to do."""


class FakeDisks(msgspec.Struct, frozen=True):
    """The disks of a guest: the image that the first was made of, and a count of ephemeral disks ever made.

    Args:
        base: the image of the server that this image was made of, "" for none.
    """

    image: str
    ephemeral: int
    base: str = ""


class Sizes(msgspec.Struct, frozen=True):
    """Sizes of disks, GiB and MiB. ephemerals: one each."""

    root_gib: int = 0
    ephemerals: tuple[int, ...] = ()
    swap_mib: int = 0


class FakeVolume(msgspec.Struct, frozen=True, kw_only=True):
    """A volume in a guest.

    Args:
        device_name: with `/dev/`. running, defined: what the running guest has it from, and what its definition names.
        size: bytes that the running guest sees; 0 if nobody knows.
        target: where it is being copied to. merge: of its files, which is being made. since: when either began,
            seconds since the epoch.
        backing: the names of the files below the one that the guest writes to, the next below first.
    """

    device_name: str
    running: VolumeSource | None
    defined: VolumeSource | None
    multiattach: bool = False
    size: int = 0
    usage: VolumeUsage = VolumeUsage(read_requests=0, read_bytes=0, write_requests=0, write_bytes=0)
    target: VolumeSource | None = None
    merge: FileMerge | None = None
    since: float = 0.0
    backing: tuple[str, ...] = ()


class FakeGuest(msgspec.Struct, kw_only=True):
    """One guest.

    Args:
        starts: how often it was started, for tests of 'effective once'.
        uses, prepared, old: the disks it has, those made beside them, and those put aside.
        snapshots: ids of images being made of it.
        rescue: the image of its rescue disk, None without one. rescued: it was started from that.
        sizes: of its disks. kept: those of the disks that are kept, by the name under which they are.
        vcpus, memory_mib, layout, shares, host_devices: what it was last started with.
        volumes: by their ids.
        frozen: its file systems are held still. freezes: how often they were.
    """

    uuid: str
    name: str = ""
    disks: bool = False
    defined: bool = False
    power_state: PowerState = PowerState.NOSTATE
    starts: int = 0
    devnames: tuple[str, ...] = ()
    uses: FakeDisks = FakeDisks("", 0)
    prepared: FakeDisks | None = None
    old: FakeDisks | None = None
    snapshots: tuple[str, ...] = ()
    rescue: str | None = None
    rescued: bool = False
    sizes: Sizes = Sizes()
    kept: dict[str, Sizes] = {}
    vcpus: int = 0
    memory_mib: int = 0
    layout: Layout | None = None
    shares: tuple[GuestShare, ...] = ()
    host_devices: tuple[HostDevice, ...] = ()
    volumes: dict[str, FakeVolume] = {}
    frozen: bool = False
    freezes: int = 0


class Faults(msgspec.Struct, kw_only=True):
    """What the hypervisor is told to do wrong.

    Args:
        latency: seconds that every call takes. disobedient: guests that ignore a shutdown signal and let go of no
            device.
        fail: by call name, errors to raise, one each time. hang: names of calls that go on only when their name is
            taken away. lie: names of calls about volumes that do nothing and say that they did.
        copying: seconds that the copy of a volume takes, or the merge of its files.
        absent: directories that the host does not have. forged: images that are not what was signed.
        booting: guests in which nothing answers yet.
    """

    latency: float = 0.0
    disobedient: set[str] = set()
    fail: dict[str, list[KilonovaError]] = {}
    hang: set[str] = set()
    lie: set[str] = set()
    copying: float = 0.0
    absent: set[str] = set()
    forged: set[str] = set()
    booting: set[str] = set()


class FakeHypervisor:
    """The state of one host.

    Args:
        directory: where it is kept across processes, as a log of what each guest became; None keeps it in memory.
        topology: its NUMA cells and CPUs, in place of `vcpus`; None for a host that does not tell.
        screens: what its guests show; None for addresses where nobody listens.
        signatures: which images must be signed; None for a host that does not look at that.
    """

    def __init__(self, host: str, directory: Path | None = None, *, vcpus: int = 1000, memory_mib: int = 8_000_000,
                 local_gib: int = 600_000, topology: HostTopology | None = None,
                 screens: FakeScreens | None = None, signatures: ImageSignatures | None = None) -> None:
        self.host = host
        self.topology = topology
        self.vcpus = vcpus if topology is None else sum(len(cell.shared) for cell in topology.cells)
        self.pcpus = 0 if topology is None else sum(len(cell.dedicated) for cell in topology.cells)
        self.memory_mib = memory_mib
        self.local_gib = local_gib
        self.devices: tuple[PciDevice, ...] = ()
        """PCI devices that it has."""
        self.traits = TRAITS
        self.screens = screens
        self.signatures = signatures
        self.faults = Faults()
        self.agents: Container[str] = frozenset()
        """Guests in which an agent answers."""
        self.served: Callable[[VolumeSource], int | None] | None = None
        """How many bytes a volume has as it is served to this host, None for one that is not. Without it, all are."""
        self.guests: dict[str, FakeGuest] = {}
        self.images: dict[str, float] = {}
        """When each image of the cache was last used. A new process finds none."""
        self.passwords: dict[tuple[str, str], str] = {}
        """By guest and user; never written to a file."""
        self._log = directory / "guests.jsonl" if directory is not None else None
        self._written: BinaryIO | None = None
        if self._log is not None:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            for line in self._log.read_bytes().split(b"\n")[:-1] if self._log.exists() else ():
                self._become(msgspec.json.decode(line, type=FakeGuest))

    def keep(self, guest: FakeGuest) -> None:
        """Write a guest down; one without disks and definition is forgotten."""
        self._become(guest)
        if self.screens is not None and (guest.power_state in GUEST_OFF or not guest.defined):
            self.screens.close(guest.uuid)
        if self._log is None:
            return
        if self._written is None:
            self._written = self._log.open("ab", buffering=0)
        self._written.write(msgspec.json.encode(guest) + b"\n")

    def _become(self, guest: FakeGuest) -> None:
        if guest.disks or guest.defined:
            self.guests[guest.uuid] = guest
        else:
            self.guests.pop(guest.uuid, None)

    def rest(self) -> None:
        """Keep no file open until something is written again, and show nothing until somebody asks again."""
        if self.screens is not None:
            self.screens.close_all()
        if self._written is not None:
            self._written.close()
            self._written = None
