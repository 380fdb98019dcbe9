"""A guest as a driver is asked to make it: plain data that crosses the bus to the agent."""

from __future__ import annotations

import msgspec

from kilonova.domain.block_device import BlockDevice
from kilonova.domain.image import Image
from kilonova.domain.instance import InjectedFile
from kilonova.domain.network import Vif
from kilonova.domain.states import PowerState
from kilonova.hypervisor.volumes import GuestVolume
from kilonova.shapes.blank_disks import BlankDisk, blank_disks
from kilonova.shapes.host import HostTopology, Layout


class TaggedDisk(msgspec.Struct, frozen=True):
    """A disk that the user named with a tag.

    Args:
        device_name: for example `/dev/vdb`. serial: of a volume, its id; a local disk has none.
    """

    device_name: str
    tag: str
    serial: str | None = None


class GuestMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """What the guest may learn of itself (config drive and metadata service)."""

    instance_uuid: str
    name: str
    hostname: str
    project_id: str
    flavor_name: str
    availability_zone: str = ""
    launch_index: int = 0
    user_data: str | None = None
    """base64"""
    keys: dict[str, str] = {}
    """key name to OpenSSH public key"""
    metadata: dict[str, str] = {}
    image_ref: str = ""
    reservation_id: str = ""
    security_groups: tuple[str, ...] = ()
    admin_password: str = ""
    told_password: str = ""
    """What the guest has told of its password, encrypted by it."""
    files: tuple[InjectedFile, ...] = ()
    vifs: tuple[Vif, ...] = ()
    disks: tuple[TaggedDisk, ...] = ()
    root_device_name: str = "/dev/vda"
    boot_roles: str = ""
    """Roles of who asked for the server, with commas between them; nothing that the guest is told."""


class GuestShare(msgspec.Struct, frozen=True):
    """A directory of the host that a guest sees. tag: the name under which it finds it."""

    tag: str
    directory: str


class HostDevice(msgspec.Struct, frozen=True):
    """A PCI device of the host that a guest has for itself. address: for example `0000:81:00.1`."""

    address: str


class Guest(msgspec.Struct, frozen=True, kw_only=True):
    """One guest on one host.

    Args:
        memory_mib, swap_mib: MiB. root_gib, ephemeral_gib: GiB; root_gib 0 takes the image's own size.
        block_devices: those asked for. What its blank disks are, together with the flavor's sizes, `blank_disks` says.
        image: the image of the root disk, None for a guest that boots from elsewhere.
        config_drive: build one.
        properties: image properties (`hw_*`, `os_*`). extra_specs: those of the flavor.
        trusted_certs: ids of certificates that the image's signature must be checked against.
        rescue: the image of a rescue disk that the guest boots from, with its own disks beside it; None for its own.
        layout: which CPUs, NUMA cells and pages of the host it has, None for a guest without a place of its own.
        host_devices: PCI devices that it has beside those that its interfaces are.
        volumes: in the order in which it finds them.
    """

    uuid: str
    name: str
    project_id: str
    user_id: str
    vcpus: int
    memory_mib: int
    root_gib: int
    ephemeral_gib: int = 0
    swap_mib: int = 0
    image: Image | None = None
    vifs: tuple[Vif, ...] = ()
    config_drive: bool = False
    metadata: GuestMetadata
    properties: dict[str, str] = {}
    extra_specs: dict[str, str] = {}
    trusted_certs: tuple[str, ...] = ()
    rescue: Image | None = None
    layout: Layout | None = None
    block_devices: tuple[BlockDevice, ...] = ()
    shares: tuple[GuestShare, ...] = ()
    host_devices: tuple[HostDevice, ...] = ()
    volumes: tuple[GuestVolume, ...] = ()

    @property
    def port_devices(self) -> tuple[HostDevice, ...]:
        """The PCI devices that its interfaces are."""
        return tuple(HostDevice(vif.address) for vif in self.vifs if vif.address)

    @property
    def blank_disks(self) -> tuple[BlankDisk, ...]:
        """Its ephemeral disks and its swap disk."""
        return blank_disks(self.block_devices, self.ephemeral_gib, self.swap_mib)


class BesideDisks(msgspec.Struct, frozen=True, kw_only=True):
    """What lies on a host beside the disks that a guest has.

    Args:
        rescue: the disk of a rescue. kept: disks that a resize has kept. put_aside: disks that a rebuild has put
            aside, or has made and not put in place. snapshots: copies that are to become images.
    """

    uuid: str
    rescue: bool = False
    kept: bool = False
    put_aside: bool = False
    snapshots: bool = False


class GuestOnHost(msgspec.Struct, frozen=True, kw_only=True):
    """A guest as found on the hypervisor. managed: it carries this product's mark."""

    uuid: str
    name: str
    power_state: PowerState
    managed: bool = True


class NetworkBandwidth(msgspec.Struct, frozen=True, kw_only=True):
    """What a host carries of networks, from guests and to them, in kbit/s; 0 if nobody says. physical_network: its
    name, "" for the networks of this cloud itself."""

    physical_network: str = ""
    egress_kbps: int
    ingress_kbps: int


class PacketRate(msgspec.Struct, frozen=True, kw_only=True):
    """What a host forwards for its guests, in 1000 packets per second; 0 if nobody says. kpps: from them and to them
    together, where the host makes no difference; egress_kpps, ingress_kpps: from them, and to them."""

    kpps: int = 0
    egress_kpps: int = 0
    ingress_kpps: int = 0


class HostInventory(msgspec.Struct, frozen=True, kw_only=True):
    """What a host has. Memory in MiB, disk in GiB (local_gib the total, disk_available_gib the free part).

    Args:
        vcpus, pcpus: CPUs that guests share, and CPUs that are given to one guest at a time.
        topology: where they are, None if the driver cannot tell.
        bandwidths, packet_rate: what it guarantees to ports.
    """

    hostname: str
    hypervisor_type: str
    hypervisor_version: int
    vcpus: int
    pcpus: int = 0
    memory_mib: int
    local_gib: int
    disk_available_gib: int
    memory_free_mib: int
    host_ip: str = "127.0.0.1"
    architecture: str = "x86_64"
    cpu_info: str = "{}"
    traits: tuple[str, ...] = ()
    supported: tuple[tuple[str, str, str], ...] = ()
    """(architecture, hypervisor type, vm mode)"""
    uptime: str | None = None
    topology: HostTopology | None = None
    bandwidths: tuple[NetworkBandwidth, ...] = ()
    packet_rate: PacketRate = PacketRate()

    def lasting(self) -> HostInventory:
        """Without what is different at every look, and what placement does not know."""
        return msgspec.structs.replace(self, disk_available_gib=0, memory_free_mib=0, uptime=None)


class GuestEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A change the hypervisor tells of by itself. transition: started, stopped, crashed, paused, resumed..."""

    uuid: str
    transition: str
    power_state: PowerState
