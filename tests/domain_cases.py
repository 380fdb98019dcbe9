"""Guests whose domain XML is kept in `tests/unit/domain_xml`, together covering every declared property."""

from __future__ import annotations

from pathlib import Path

from kilonova.domain.block_device import BlockDevice
from kilonova.domain.image import Image
from kilonova.domain.network import Vif
from kilonova.hypervisor.guest import Guest, GuestMetadata, GuestShare, HostDevice
from kilonova.hypervisor.libvirt.description import Describer, GuestFiles
from kilonova.hypervisor.libvirt.domain.domain import Domain
from kilonova.hypervisor.libvirt.host import CpuInfo, CpuTopology, HostCapabilities, Virt
from kilonova.hypervisor.volumes import FileSource, GuestVolume, NbdSource
from kilonova.shapes.host import HostCell, HostTopology, Layout, Place
from kilonova.shapes.limits import DiskLimits

UUID = "6ba7b810-9dad-41d1-80b4-00c04fd430c8"
SEEN = Path("/var/lib/libvirt/kilonova/instances") / UUID
FILES = GuestFiles(
    root=SEEN / "disk", blank=SEEN / "disk", config_drive=SEEN / "disk.config",
    console_log=SEEN / "console.log", console_socket=SEEN / "console.sock",
    uefi_variables=SEEN / "uefi-variables.fd",
    rescue=SEEN / "disk.rescue", rescue_config_drive=SEEN / "disk.rescue.config",
    rescue_uefi_variables=SEEN / "uefi-variables.rescue.fd",
)
IMAGE = Image(id="f1c9a2f0-3c1d-4f6b-9a62-1f6f3c0f3c11")
WINDOWS = {"os_type": "windows", "hw_firmware_type": "uefi", "hw_vif_model": "e1000e", "hw_video_model": "virtio"}
DEVICES = {
    "hw_watchdog_action": "reset", "hw_video_model": "qxl", "hw_video_ram": "32", "hw_sound_model": "ich9",
    "hw_vif_multiqueue_enabled": "yes", "hw_virtio_packed_ring": "yes", "hw_serial_port_count": "2",
    "hw_time_hpet": "true", "hw_viommu_model": "virtio", "hw_tpm_version": "2.0", "hw_tpm_model": "tpm-crb",
}
LIMITS = {
    "quota:cpu_shares": "512", "quota:cpu_period": "20000", "quota:cpu_quota": "10000",
    "quota:disk_total_bytes_sec": "50000000", "quota:disk_total_iops_sec": "400",
    "quota:vif_inbound_average": "1024", "quota:vif_inbound_peak": "2048", "quota:vif_inbound_burst": "512",
    "quota:vif_outbound_average": "256",
}
SPLIT_LIMITS = {
    "quota:disk_read_bytes_sec": "10485760", "quota:disk_write_bytes_sec": "5242880",
    "quota:disk_read_iops_sec": "200", "quota:disk_write_iops_sec": "100",
}


CELLS = HostTopology(cells=(
    HostCell(id=0, memory_mib=8192, dedicated=(2, 3), shared=(0, 1), pages={4: 1572864, 2048: 1024}),
    HostCell(id=1, memory_mib=8192, dedicated=(6, 7), shared=(4, 5), pages={4: 1572864, 2048: 1024}),
))
PINNED = Layout(
    places=(
        Place(host_cell=1, cpus=(0, 2), pins={0: 6, 2: 7}, memory_mib=512, page_kib=2048),
        Place(host_cell=0, cpus=(1, 3), pins={3: 2}, floating=(0, 1), memory_mib=512, page_kib=2048),
    ),
    emulator=(3,), own_emulator=True,
)
MIXED = {
    "hw:cpu_policy": "mixed", "hw:cpu_realtime": "yes", "hw:cpu_realtime_mask": "0,2-3", "hw:mem_page_size": "2MB",
    "hw:emulator_threads_policy": "isolate", "hw:numa_nodes": "2", "hw:numa_cpus.0": "0,2", "hw:numa_cpus.1": "1,3",
    "hw:numa_mem.0": "512", "hw:numa_mem.1": "512", "hw:cpu_sockets": "1", "hw:cpu_threads": "2",
    "hw:maxphysaddr_mode": "emulate", "hw:maxphysaddr_bits": "42", "hide_hypervisor_id": "true",
}


def capabilities(virt: Virt = "qemu", *, divided: bool = False) -> HostCapabilities:
    info = CpuInfo("x86_64", "EPYC", "AMD", ("avx",), CpuTopology(1, 1, 2, 1))
    return HostCapabilities(
        virt=virt, arch="x86_64", cpu_mode="host-model" if virt == "kvm" else "maximum",
        uefi=("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
        secure_uefi=("/usr/share/OVMF/OVMF_CODE_4M.ms.fd", "/usr/share/OVMF/OVMF_VARS_4M.ms.fd"),
        hypervisor_type="QEMU", hypervisor_version=7002022, cpu_info=info, traits=frozenset(),
        topology=CELLS, divided=divided, sharing="/usr/lib/qemu/virtiofsd",
    )


def guest(**changes: object) -> Guest:
    metadata = GuestMetadata(instance_uuid=UUID, name="web", hostname="web", project_id="p1", flavor_name="small")
    values: dict[str, object] = {
        "uuid": UUID, "name": "web", "project_id": "p1", "user_id": "u1", "vcpus": 1, "memory_mib": 256,
        "root_gib": 1, "image": IMAGE, "metadata": metadata,
    }
    return Guest(**(values | changes))  # type: ignore[arg-type]


def local(uuid: str, **changes: object) -> BlockDevice:
    values: dict[str, object] = {"uuid": uuid, "source_type": "blank", "destination_type": "local"}
    return BlockDevice(**(values | changes))  # type: ignore[arg-type]


def vif(number: int, **changes: object) -> Vif:
    values: dict[str, object] = {
        "id": f"port-{number}", "mac": f"fa:16:3e:00:00:0{number}", "network_id": "n", "network_name": "net",
        "devname": f"tap{number}", "bridge": "br-n", "mtu": 1450,
    }
    return Vif(**(values | changes))  # type: ignore[arg-type]


def port(number: int, vnic_type: str, **changes: object) -> Vif:
    """An interface that is a PCI device."""
    values: dict[str, object] = {
        "vnic_type": vnic_type, "vif_type": "hw_veb", "bridge": "", "profile": {"pci_slot": f"0000:82:02.{number}"},
    }
    return vif(number, **(values | changes))


GUESTS: dict[str, tuple[Virt, Guest]] = {
    "plain": ("qemu", guest(vifs=(vif(1),), config_drive=True)),
    "kvm": ("kvm", guest(vcpus=4, memory_mib=4096, vifs=(vif(1), vif(2, mtu=9000)))),
    "bare": ("kvm", guest(
        image=None, properties={"hw_qemu_guest_agent": "no", "hw_video_model": "none"},
        extra_specs={"hw_rng:allowed": "False"},
    )),
    "windows": ("kvm", guest(
        memory_mib=8192, properties=WINDOWS, vifs=(vif(1),), config_drive=True, extra_specs=LIMITS,
    )),
    "scsi": ("qemu", guest(
        ephemeral_gib=2, swap_mib=64, properties={"hw_disk_bus": "scsi"}, extra_specs=SPLIT_LIMITS,
    )),
    "pc": ("qemu", guest(
        config_drive=True, properties={"hw_machine_type": "pc", "hw_disk_bus": "ide"}, name="<a>\x01&\"b\"",
    )),
    "rescue": ("qemu", guest(
        config_drive=True, properties={"hw_vif_model": "e1000e"}, vifs=(vif(1),),
        rescue=Image(id="rescue", properties={"hw_firmware_type": "uefi"}),
    )),
    "stable_rescue": ("qemu", guest(
        config_drive=True, ephemeral_gib=2, properties={"hw_firmware_type": "uefi"},
        rescue=Image(id="rescue", properties={"hw_rescue_device": "cdrom", "hw_disk_bus": "ide"}),
    )),
    "secure": ("qemu", guest(
        properties={"hw_firmware_type": "uefi", "os_secure_boot": "required", "hw_boot_menu": "yes"},
    )),
    "stateless": ("qemu", guest(
        image=None, properties={"hw_firmware_type": "uefi", "hw_firmware_stateless": "true",
                                "os_secure_boot": "optional"},
    )),
    "devices": ("qemu", guest(
        vcpus=4, vifs=(vif(1),), properties=DEVICES, ephemeral_gib=1,
        extra_specs={"hw_rng:rate_bytes": "2048", "hw_rng:rate_period": "500", "hw_video:ram_max_mb": "64"},
    )),
    "touched": ("kvm", guest(
        properties={"hw_pointer_model": "usbtablet", "hw_redirected_usb_ports": "2", "hw_viommu_model": "intel",
                    "hw_virtio_packed_ring": "yes", "hw_disk_bus": "scsi"},
    )),
    "old": ("qemu", guest(
        properties={"hw_machine_type": "pc", "hw_disk_type": "cdrom", "vmware_adaptertype": "lsilogic",
                    "hw_input_bus": "virtio", "hw_usb_model": "nec-xhci"},
    )),
    "mixed": ("kvm", guest(vcpus=4, memory_mib=1024, extra_specs=MIXED, layout=PINNED)),
    "locked": ("qemu", guest(
        extra_specs={"hw:locked_memory": "true", "hw:mem_page_size": "small", "hw:pmu": "off"},
        layout=Layout(places=(Place(host_cell=0, cpus=(0,), floating=(0, 1), memory_mib=256, page_kib=4),)),
    )),
    "shares": ("qemu", guest(shares=(GuestShare("my-data", "/srv/a & b"), GuestShare("more", "/srv/more")))),
    "host_devices": ("kvm", guest(host_devices=(HostDevice("0000:81:00.1"), HostDevice("10001:02:1f.7")))),
    "encrypted": ("qemu", guest(
        ephemeral_gib=1, swap_mib=64, extra_specs={"hw:ephemeral_encryption": "true"},
        properties={"hw_ephemeral_encryption_format": "luks"},
    )),
    "several": ("qemu", guest(
        ephemeral_gib=4, swap_mib=64, properties={"hw_virtio_packed_ring": "yes"}, block_devices=(
            local("root", boot_index=0, source_type="image", disk_bus="scsi"),
            local("swap", guest_format="swap", volume_size=32),
            local("first", volume_size=1, guest_format="ext3", boot_index=1),
            local("second", disk_bus="sata", volume_size=2),
        ),
    )),
    "kernel": ("qemu", guest(
        properties={"kernel_id": "k", "ramdisk_id": "r", "os_command_line": "quiet 'x'", "hw_disk_bus": "scsi"},
    )),
    "kernel_of_rescue": ("kvm", guest(
        properties={"kernel_id": "k", "ramdisk_id": "r"}, rescue=Image(id="rescue", properties={"kernel_id": "k2"}),
    )),
    "usb": ("qemu", guest(properties={"hw_disk_bus": "usb"})),
    "boots_from_volume": ("kvm", guest(
        image=None, ephemeral_gib=1, config_drive=True, properties={"hw_virtio_packed_ring": "yes"}, volumes=(
            GuestVolume(id="data", source=NbdSource(export="a", socket="/run/pool/nbd"), device_name="/dev/vdb",
                        write_through=True),
            GuestVolume(id="root", source=NbdSource(export="b", socket="/run/pool/nbd"), device_name="/dev/vda",
                        boot_index=0, discard=True),
        ),
    )),
    "volumes": ("qemu", guest(volumes=(
        GuestVolume(
            id="many", source=NbdSource(export="a", host="192.0.2.1", port=10810, tls=True), multiattach=True,
            bus="scsi", limits=DiskLimits(total_iops_sec=100), encrypted=True,
        ),
        GuestVolume(id="read", source=NbdSource(export="b", host="192.0.2.1"), device_name="/dev/vdd", read_only=True),
        GuestVolume(id="cdrom", source=NbdSource(export="c", socket="/run/pool/nbd"), device="cdrom", boot_index=1),
        GuestVolume(id="file", source=FileSource(path="/srv/volumes/f", format="qcow2"), device_name="/dev/sdx"),
    ))),
    "ports": ("kvm", guest(
        vifs=(
            port(1, "direct", vlan=100), port(2, "direct"), port(3, "macvtap", vlan=101), port(4, "macvtap"),
            port(5, "direct-physical"),
        ),
        properties={"hw_vif_model": "e1000e"}, host_devices=(HostDevice("0000:81:00.1"),),
    )),
}


def domains(virt: Virt | None = None) -> dict[str, Domain]:
    """The described guests. virt: describe all for that kind of host instead of their own."""
    return {
        name: Describer(
            host=capabilities(virt or own, divided=name == "bare"), installation="9b2f6f7e",
            cache="writeback" if name == "usb" else "none",
            vnc_listen="127.0.0.1" if name != "kvm" else "10.0.0.5", spice=name in ("kvm", "touched"),
            netdev_of=lambda address: f"eth{address[-1]}",
        ).describe(one, FILES)
        for name, (own, one) in GUESTS.items()
    }
