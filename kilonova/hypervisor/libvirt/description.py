"""From a guest as the agent asks for it to a domain as libvirt takes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from kilonova import __version__
from kilonova.domain.errors import NotSupported, TryElsewhere
from kilonova.domain.image import Image
from kilonova.domain.network import Vif
from kilonova.hypervisor.guest import Guest, GuestShare
from kilonova.hypervisor.guest_shape import checked_shape
from kilonova.hypervisor.libvirt import limits, processors, rescue
from kilonova.hypervisor.libvirt.direct_boot import boot_files, command_line
from kilonova.hypervisor.libvirt.domain.balloon import Balloon
from kilonova.hypervisor.libvirt.domain.channel import AgentChannel
from kilonova.hypervisor.libvirt.domain.clock import GuestClock
from kilonova.hypervisor.libvirt.domain.controller import PcieRootPort, ScsiController, UsbController
from kilonova.hypervisor.libvirt.domain.disk import Bus, FileDisk, TargetNames
from kilonova.hypervisor.libvirt.domain.domain import Domain
from kilonova.hypervisor.libvirt.domain.element import Device
from kilonova.hypervisor.libvirt.domain.entropy import Entropy
from kilonova.hypervisor.libvirt.domain.features import Features
from kilonova.hypervisor.libvirt.domain.filesystem import SharedFilesystem
from kilonova.hypervisor.libvirt.domain.firmware import Uefi, UefiVariables
from kilonova.hypervisor.libvirt.domain.graphics import Spice, Video, Vnc
from kilonova.hypervisor.libvirt.domain.host_device import PciHostDevice
from kilonova.hypervisor.libvirt.domain.interface import BridgeInterface, FunctionInterface, MacvtapInterface
from kilonova.hypervisor.libvirt.domain.iommu import IntelIommu, Iommu
from kilonova.hypervisor.libvirt.domain.kernel import DirectKernel
from kilonova.hypervisor.libvirt.domain.mark import Mark
from kilonova.hypervisor.libvirt.domain.pointer import RedirectedUsbPort, Tablet
from kilonova.hypervisor.libvirt.domain.serial import SerialConsole
from kilonova.hypervisor.libvirt.domain.smbios import Smbios
from kilonova.hypervisor.libvirt.domain.sound import Sound
from kilonova.hypervisor.libvirt.domain.tpm import Tpm
from kilonova.hypervisor.libvirt.domain.volume import VolumeDisk
from kilonova.hypervisor.libvirt.domain.watchdog import Watchdog
from kilonova.hypervisor.libvirt.host import HostCapabilities
from kilonova.hypervisor.libvirt.netdevs import netdev_of
from kilonova.hypervisor.libvirt.properties import Hardware, hardware, is_encrypted, offered_bus
from kilonova.hypervisor.libvirt.secrets import secret_id
from kilonova.hypervisor.libvirt.volume_disks import volume_disk
from kilonova.hypervisor.volumes import GuestVolume
from kilonova.services.secrets import Purpose
from kilonova.shapes.blank_disks import root_bus
from kilonova.shapes.devices import Devices
from kilonova.shapes.disk_names import target_of
from kilonova.shapes.firmware import Firmware

LEAST_ROOT_PORTS = 16
SPARE_ROOT_PORTS = 8
TB_CACHE_LEAST, TB_CACHE_MOST, TB_CACHE_PART = 32, 256, 8
"""MiB, MiB, and the divisor of the guest's memory. QEMU's own default may use a gigabyte per guest."""
MOST_QUEUES = 256
"""Pairs of queues that Linux gives a tap device."""


@dataclass(frozen=True, kw_only=True)
class GuestFiles:
    """The files of a guest, as QEMU finds them. blank: what those of its blank disks begin with."""

    root: Path
    blank: Path
    config_drive: Path
    console_log: Path
    console_socket: Path
    uefi_variables: Path
    rescue: Path
    rescue_config_drive: Path
    rescue_uefi_variables: Path


def domain_name(uuid: str) -> str:
    """libvirt's name of an instance: short enough to read, long enough to be unique on any host."""
    return f"instance-{uuid.replace('-', '')[:12]}"


@dataclass(frozen=True, kw_only=True)
class Describer:
    """Describes guests on one host.

    Args:
        installation: id of the installation, put into each guest's mark.
        cache: how the host caches the guests' disks.
        vnc_listen: address of the guests' screens. spice: show them by SPICE as well as by VNC.
        netdev_of: finds the host's network device of a PCI device.
    """

    host: HostCapabilities
    installation: str
    cache: Literal["none", "writeback"]
    vnc_listen: str = "127.0.0.1"
    spice: bool = False
    netdev_of: Callable[[str], str] = netdev_of

    def describe(self, guest: Guest, files: GuestFiles) -> Domain:
        """The whole domain.

        Raises:
            InvalidInput: a property has a value that is not known.
            NotSupported: an interface of a kind this driver cannot make.
            TryElsewhere: this host lacks what the guest needs. KilonovaError: it was given no place, but needs one.
        """
        wanted = hardware(rescue.hardware_properties(guest), guest.extra_specs)
        shape = checked_shape(guest)
        asked, firmware = wanted.devices, self._firmware(guest, files, wanted.devices.firmware)
        translated, windows = self.host.virt == "qemu", asked.machine.windows
        return Domain(
            virt=self.host.virt,
            name=domain_name(guest.uuid),
            uuid=guest.uuid,
            memory_mib=guest.memory_mib,
            arch=self.host.arch,
            machine=asked.firmware.machine,
            cpu=processors.cpu(self.host, shape, guest.layout),
            cpuset=None if guest.layout is not None else processors.shared_cpus(self.host),
            placement=processors.placement(shape, guest.layout),
            memory_placement=processors.memory_placement(guest.layout),
            backing=processors.memory_backing(self.host, shape, guest.layout, shared=bool(guest.shares)),
            mark=Mark(
                installation=self.installation, name=guest.name, project_id=guest.project_id, user_id=guest.user_id
            ),
            smbios=Smbios(version=__version__, uuid=guest.uuid),
            firmware=firmware,
            kernel=self._kernel(guest, files),
            boot_menu=asked.machine.boot_menu,
            features=Features(
                tb_cache_mib=_tb_cache(guest.memory_mib) if translated else None, hyperv=windows,
                smm=firmware is not None and firmware.secure,
                hidden=shape.cpu.hidden, pmu=False if shape.cpu.realtime else shape.cpu.pmu,
                own_apic=asked.machine.iommu == "intel" and not translated,
            ),
            clock=GuestClock(
                offset="localtime" if windows else "utc", hyperv=windows, hpet=asked.machine.hpet
            ),
            cpu_limits=limits.cpu_limits(wanted.limits),
            devices=tuple(self._devices(guest, files, wanted)),
        )

    def interface(self, guest: Guest, vif: Vif) -> Device:
        """One more interface of a guest. Raises InvalidInput, NotSupported."""
        return self._interface(vif, hardware(guest.properties, guest.extra_specs), guest.vcpus)

    def volume(self, guest: Guest, files: GuestFiles, volume: GuestVolume) -> VolumeDisk:
        """One more volume of a guest, which may have it already. Raises InvalidInput, TryElsewhere."""
        others = tuple(one for one in guest.volumes if one.id != volume.id)
        with_it = msgspec.structs.replace(guest, volumes=(*others, volume))
        disks = self._disks(with_it, files, hardware(rescue.hardware_properties(guest), guest.extra_specs))
        return next(disk for disk in disks if isinstance(disk, VolumeDisk) and disk.serial == volume.id)

    def volume_device_name(self, guest: Guest, files: GuestFiles, volume: GuestVolume) -> str:
        """The name that one more volume gets. Raises InvalidInput, TryElsewhere."""
        nameless = msgspec.structs.replace(volume, device_name="", boot_index=None)
        return f"/dev/{self.volume(guest, files, nameless).target}"

    def _devices(self, guest: Guest, files: GuestFiles, wanted: Hardware) -> Iterator[Device]:
        disks = list(self._disks(guest, files, wanted))
        if wanted.pcie:
            needed = len(disks) + len(guest.vifs) + len(guest.shares) + len(guest.host_devices) + SPARE_ROOT_PORTS
            yield from (PcieRootPort(index=index) for index in range(1, max(LEAST_ROOT_PORTS, needed) + 1))
        asked = wanted.devices
        if any(disk.bus == "scsi" for disk in disks):
            yield ScsiController(model=asked.disks.scsi_model or "virtio-scsi", packed=_packed_controller(asked))
        if asked.screens.usb not in (None, "none"):
            yield UsbController(model=asked.screens.usb)
        elif not asked.screens.needs_usb and all(disk.bus != "usb" for disk in disks):
            yield UsbController()
        yield from disks
        yield from (self._interface(vif, wanted, guest.vcpus) for vif in guest.vifs)
        yield from (self._share(share) for share in guest.shares)
        yield from (PciHostDevice.at(device.address) for device in guest.host_devices)
        if asked.machine.serial_ports:
            yield SerialConsole(socket=str(files.console_socket), log=str(files.console_log))
        for port in range(1, asked.machine.serial_ports):
            yield SerialConsole(socket=str(files.console_socket.with_suffix(f".{port}.sock")), port=port)
        if asked.machine.agent:
            yield AgentChannel()
        yield from self._screen(wanted)
        if asked.machine.entropy:
            yield Entropy(rate=asked.machine.entropy_rate)
        if asked.tpm is not None:
            secret = secret_id(guest.uuid, Purpose.TPM)
            yield Tpm(model=asked.tpm.model, version=asked.tpm.version, secret=secret)
        if asked.machine.watchdog is not None:
            yield Watchdog(action=asked.machine.watchdog)
        if asked.machine.iommu == "intel":
            yield IntelIommu(remaps=self.host.virt == "kvm")
        elif asked.machine.iommu is not None:
            yield Iommu(model=asked.machine.iommu)
        yield Balloon()

    def _interface(self, vif: Vif, wanted: Hardware, vcpus: int) -> Device:
        if not vif.is_device:
            return _bridged(vif, wanted, vcpus)
        device = PciHostDevice.at(vif.address)
        if vif.vnic_type == "direct-physical":
            return device
        if vif.vnic_type == "macvtap":
            netdev = self.netdev_of(vif.address)
            return MacvtapInterface(mac=vif.mac, netdev=netdev, model=wanted.vif_model, vlan=vif.vlan)
        return FunctionInterface(mac=vif.mac, device=device, vlan=vif.vlan)

    def _share(self, share: GuestShare) -> SharedFilesystem:
        if self.host.sharing is None:
            raise TryElsewhere("This host cannot give shares to guests.", hint="install virtiofsd")
        return SharedFilesystem(tag=share.tag, directory=share.directory, program=self.host.sharing)

    def _screen(self, wanted: Hardware) -> Iterator[Device]:
        """What there is to see, hear and touch. A port for a client's devices is one of SPICE."""
        asked = wanted.devices.screens
        if asked.redirected_ports and not (self.spice and wanted.video is not None):
            raise TryElsewhere("This host offers no SPICE consoles, which redirect USB devices.")
        if wanted.video is not None:
            yield Vnc(listen=self.vnc_listen)
            if self.spice:
                yield Spice(listen=self.vnc_listen)
            yield Video(model=wanted.video, ram=asked.video_ram)
        if asked.sound is not None:
            yield Sound(model=asked.sound)
        if asked.pointer is not None:
            yield Tablet(bus=asked.pointer)
        yield from (RedirectedUsbPort() for _ in range(asked.redirected_ports))

    def _disks(self, guest: Guest, files: GuestFiles, wanted: Hardware) -> Iterator[FileDisk | VolumeDisk]:
        """The guest's own disks keep their places in a stable rescue; in any other, the rescue disk comes first."""
        names = TargetNames(_names_of_volumes(guest, wanted))
        bus, packed = wanted.disk_bus, wanted.devices.interfaces.packed
        cdrom = wanted.devices.disks.cdrom_root
        first_bus = root_bus_of(guest, wanted)
        stable = guest.rescue is not None and rescue.is_stable(guest.rescue)
        secret = secret_id(guest.uuid, Purpose.DISKS) if is_encrypted(guest) else None
        if guest.rescue is not None and not stable:
            yield self._rescue_disk(guest.rescue, files, wanted, names)
        root, others = root_volume(guest), [one for one in guest.volumes if one != root_volume(guest)]
        if root is not None:
            yield self._volume_disk(guest, root, wanted, names)
        if guest.image is not None:
            yield FileDisk(
                path=str(files.root), format="qcow2", target=names.next(first_bus), bus=first_bus, cache=self.cache,
                boot_order=1 if guest.rescue is None else None, limits=limits.disk_limits(wanted.limits.disk),
                device="cdrom" if cdrom else "disk", packed=packed and first_bus == "virtio" and not cdrom,
                secret=secret,
            )
        for blank in guest.blank_disks:
            own = offered_bus(blank.bus) or bus
            booted = blank.boot_index is not None and guest.rescue is None
            yield FileDisk(
                path=f"{files.blank}.{blank.name}", format="raw" if secret is None else "qcow2",
                target=names.next(own), bus=own, cache=self.cache, limits=limits.disk_limits(wanted.limits.disk),
                packed=packed and own == "virtio", secret=secret,
                boot_order=1 + (blank.boot_index or 0) if booted else None,
            )
        for volume in others:
            yield self._volume_disk(guest, volume, wanted, names)
        if guest.config_drive:
            cdrom_bus = wanted.cdrom_bus or _cdrom_bus(wanted)
            drive = files.config_drive if guest.rescue is None else files.rescue_config_drive
            yield FileDisk(
                path=str(drive), format="raw", target=names.next(cdrom_bus), bus=cdrom_bus,
                cache=self.cache, device="cdrom",
            )
        if guest.rescue is not None and stable:
            yield self._rescue_disk(guest.rescue, files, wanted, names)

    def _volume_disk(self, guest: Guest, volume: GuestVolume, wanted: Hardware, names: TargetNames) -> VolumeDisk:
        bus = bus_of_volume(volume, wanted)
        booted = volume.boot_index is not None and guest.rescue is None
        return volume_disk(
            guest.uuid, volume, target=target_of(volume.device_name, bus) or names.next(bus), bus=bus,
            packed=wanted.devices.interfaces.packed, boot_order=1 + (volume.boot_index or 0) if booted else None,
        )

    def _rescue_disk(self, image: Image, files: GuestFiles, wanted: Hardware, names: TargetNames) -> FileDisk:
        device, bus = rescue.attachment(image, wanted)
        return FileDisk(
            path=str(files.rescue), format="qcow2", target=names.next(bus), bus=bus, cache=self.cache, device=device,
            boot_order=1, limits=limits.disk_limits(wanted.limits.disk),
        )

    def _firmware(self, guest: Guest, files: GuestFiles, wanted: Firmware) -> Uefi | None:
        """None for a BIOS."""
        if not wanted.uefi:
            return None
        secure = wanted.secure_boot is not False and self.host.secure_uefi is not None
        found = self.host.secure_uefi if secure else self.host.uefi
        if found is None or (wanted.secure_boot is True and not secure):
            what = "secure boot" if wanted.secure_boot is True else "UEFI"
            raise TryElsewhere(f"This host has no firmware for {what}.", hint="install it (Debian: ovmf)")
        loader, template = found
        file = files.uefi_variables if guest.rescue is None else files.rescue_uefi_variables
        variables = None if wanted.stateless else UefiVariables(template=template, file=str(file))
        return Uefi(loader=loader, variables=variables, secure=secure)


    def _kernel(self, guest: Guest, files: GuestFiles) -> DirectKernel | None:
        boots = boot_files(guest)
        if boots is None:
            return None
        kernel, *ramdisk = [str(files.root.with_name(name)) for name in boots.names]
        return DirectKernel(
            path=kernel, ramdisk=ramdisk[0] if ramdisk else None,
            command_line=command_line(boots.wanted, root_device_name(guest)),
        )


def root_device_name(guest: Guest) -> str:
    """The name of the first disk that is described. Raises InvalidInput. Spec: BDM-11."""
    wanted, root = hardware(guest.properties, guest.extra_specs), root_volume(guest)
    bus = root_bus_of(guest, wanted) if root is None else bus_of_volume(root, wanted)
    named = target_of(root.device_name, bus) if root is not None else None
    return "/dev/" + (named or TargetNames(_names_of_volumes(guest, wanted)).next(bus))


def root_volume(guest: Guest) -> GuestVolume | None:
    """The volume that it boots from, None for a guest that boots from a local disk."""
    return next((one for one in guest.volumes if one.boot_index == 0), None)


def bus_of_volume(volume: GuestVolume, wanted: Hardware) -> Bus:
    """The bus of its disk. A CD-ROM is on none of virtio. Raises TryElsewhere."""
    bus = offered_bus(volume.bus) or wanted.disk_bus
    return wanted.cdrom_bus or _cdrom_bus(wanted) if volume.device == "cdrom" and bus == "virtio" else bus


def _names_of_volumes(guest: Guest, wanted: Hardware) -> Iterator[str]:
    for one in guest.volumes:
        named = target_of(one.device_name, bus_of_volume(one, wanted))
        if named is not None:
            yield named


def root_bus_of(guest: Guest, wanted: Hardware) -> Bus:
    """The bus of the root disk, which may be a CD-ROM."""
    asked = offered_bus(root_bus(guest.block_devices))
    if asked is not None:
        return asked
    if wanted.devices.disks.cdrom_root and wanted.disk_bus == "virtio":
        return wanted.cdrom_bus or _cdrom_bus(wanted)
    return wanted.disk_bus


def _cdrom_bus(wanted: Hardware) -> Bus:
    """SCSI, because the small kernels of cloud images lack SATA; except where the guest lacks SCSI drivers."""
    if not wanted.pcie:
        return "ide"
    return "sata" if wanted.devices.machine.windows else "scsi"


def _tb_cache(memory_mib: int) -> int:
    return min(max(memory_mib // TB_CACHE_PART, TB_CACHE_LEAST), TB_CACHE_MOST)


def _packed_controller(asked: Devices) -> bool:
    return asked.interfaces.packed and asked.disks.scsi_model in (None, "virtio-scsi")


def _bridged(vif: Vif, wanted: Hardware, vcpus: int) -> BridgeInterface:
    """Queues and packed rings are those of virtio; other models do without."""
    if vif.vif_type != "bridge" or not vif.bridge:
        raise NotSupported(f"Port {vif.id} has the binding type {vif.vif_type!r}, which this host cannot plug.")
    asked, virtio = wanted.devices.interfaces, wanted.vif_model == "virtio"
    return BridgeInterface(
        mac=vif.mac, bridge=vif.bridge, tap=vif.devname, model=wanted.vif_model, mtu=vif.mtu,
        queues=min(vcpus, MOST_QUEUES) if asked.multiqueue and virtio else 1, packed=asked.packed and virtio,
        inbound=limits.bandwidth("inbound", wanted.limits.inbound),
        outbound=limits.bandwidth("outbound", wanted.limits.outbound),
    )
