"""What this host can do, asked of libvirt once, and what it has, asked each time.

Asking for capabilities can take a second (libvirt tries out QEMU), so nothing of it happens per guest.
"""

from __future__ import annotations

import os
import socket
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import libvirt  # type: ignore[import-untyped]
import msgspec
import os_traits  # type: ignore[import-untyped]

from kilonova.domain.errors import KilonovaError
from kilonova.hypervisor.guest import HostInventory
from kilonova.hypervisor.libvirt.cells import CpuSets, topology
from kilonova.hypervisor.uptime import uptime
from kilonova.imaging.signatures import TRUSTED_CERTS
from kilonova.shapes.host import HostTopology
from kilonova.shapes.traits import LOCKED_MEMORY

Virt = Literal["kvm", "qemu"]
CpuMode = Literal["host-model", "host-passthrough", "maximum"]

GIB = 1 << 30
BLOCK = 4096

UEFI_FIRMWARE = (
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
)
"""Code without secure boot, and the variables that go with it, where distributions put them."""

SECURE_FIRMWARE = (
    ("/usr/share/OVMF/OVMF_CODE_4M.ms.fd", "/usr/share/OVMF/OVMF_VARS_4M.ms.fd"),
    ("/usr/share/OVMF/OVMF_CODE.ms.fd", "/usr/share/OVMF/OVMF_VARS.ms.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.secboot.fd", "/usr/share/edk2/ovmf/OVMF_VARS.secboot.fd"),
)
"""The same for secure boot: code that enforces it, and variables with the keys of those who sign boot loaders."""

SHARING_PROGRAMS = ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/lib/virtiofsd")
"""What serves directories to guests, where distributions put it."""

STATELESS_FIRMWARE = 8_006_000
"""The libvirt that knows firmware without variables."""

QEMU_DEVICES = (
    "COMPUTE_SOUND_MODEL_SB16", "COMPUTE_SOUND_MODEL_ES1370", "COMPUTE_SOUND_MODEL_AC97",
    "COMPUTE_SOUND_MODEL_ICH6", "COMPUTE_SOUND_MODEL_ICH9", "COMPUTE_SOUND_MODEL_USB", "COMPUTE_USB_MODEL_QEMU_XHCI",
    "COMPUTE_USB_MODEL_NEC_XHCI", "COMPUTE_NET_VIRTIO_PACKED", "COMPUTE_VIOMMU_MODEL_INTEL",
    "COMPUTE_VIOMMU_MODEL_VIRTIO", "COMPUTE_EPHEMERAL_ENCRYPTION", "COMPUTE_EPHEMERAL_ENCRYPTION_LUKS",
    "CUSTOM_SCSI_MODEL_LSILOGIC", "CUSTOM_SCSI_MODEL_LSISAS1068",
    "CUSTOM_SCSI_MODEL_LSISAS1078", "CUSTOM_SCSI_MODEL_VMPVSCSI", "COMPUTE_VIOMMU_MODEL_AUTO",
)
"""Devices of QEMU on x86 of which libvirt does not tell whether they are there."""

TRAITS_OF_CPU_FEATURES = {
    "3dnow": ["3DNOW"], "abm": ["ABM"], "aes": ["AESNI"], "amd-ssbd": ["AMD_SSBD"], "amd-no-ssb": ["AMD_NO_SSB"],
    "avx": ["AVX"], "avx2": ["AVX2"], "avx512bitalg": ["AVX512BITALG"], "avx512bw": ["AVX512BW"],
    "avx512cd": ["AVX512CD"], "avx512dq": ["AVX512DQ"], "avx512er": ["AVX512ER"], "avx512f": ["AVX512F"],
    "avx512ifma": ["AVX512IFMA"], "avx512pf": ["AVX512PF"], "avx512vbmi": ["AVX512VBMI"],
    "avx512vbmi2": ["AVX512VBMI2"], "avx512vl": ["AVX512VL"], "avx512vnni": ["AVX512VNNI"],
    "avx512-vpopcntdq": ["AVX512VPOPCNTDQ"], "bmi1": ["BMI"], "bmi2": ["BMI2"], "f16c": ["F16C"],
    "fma": ["FMA3"], "fma4": ["FMA4"], "gfni": ["AVX512GFNI"], "hle": ["TSX"], "ibpb": ["AMD_IBPB"],
    "md-clear": ["INTEL_MD_CLEAR"], "mmx": ["MMX"], "mpx": ["MPX"], "pcid": ["INTEL_PCID"],
    "pclmuldq": ["CLMUL"], "pdpe1gb": ["PDPE1GB"], "rtm": ["TSX"], "sha-ni": ["SHA"],
    "spec-ctrl": ["INTEL_SPEC_CTRL"], "ssbd": ["INTEL_SSBD"], "sse": ["SSE"], "sse2": ["SSE2"],
    "pni": ["SSE3"], "sse4.1": ["SSE41"], "sse4.2": ["SSE42"], "sse4a": ["SSE4A"], "ssse3": ["SSSE3"],
    "stibp": ["STIBP"], "svm": ["SVM", "AMD_SVM"], "tbm": ["TBM"], "vaes": ["AVX512VAES"],
    "virt-ssbd": ["AMD_VIRT_SSBD"], "vmx": ["VMX", "INTEL_VMX"], "vpclmulqdq": ["AVX512VPCLMULQDQ"],
    "xop": ["XOP"],
}
"""libvirt's names of processor features, and the traits they are (after HW_CPU_X86_)."""

ALWAYS = (
    "COMPUTE_NODE", "COMPUTE_FIRMWARE_BIOS", "COMPUTE_IMAGE_TYPE_QCOW2", "COMPUTE_IMAGE_TYPE_RAW",
    "COMPUTE_IMAGE_TYPE_AMI", "COMPUTE_IMAGE_TYPE_VMDK", "COMPUTE_IMAGE_TYPE_VDI", "COMPUTE_IMAGE_TYPE_VHD",
    "COMPUTE_IMAGE_TYPE_VHDX", "COMPUTE_NET_VIF_MODEL_VIRTIO", "COMPUTE_NET_VIF_MODEL_E1000",
    "COMPUTE_NET_VIF_MODEL_E1000E", "COMPUTE_NET_VIF_MODEL_RTL8139", "COMPUTE_NET_VIF_MODEL_NE2K_PCI",
    "COMPUTE_NET_VIF_MODEL_PCNET", "COMPUTE_NET_VIF_MODEL_VMXNET3", "COMPUTE_NET_ATTACH_INTERFACE",
    "COMPUTE_NET_ATTACH_INTERFACE_WITH_TAG", "COMPUTE_VOLUME_ATTACH_WITH_TAG", "COMPUTE_VOLUME_MULTI_ATTACH",
    "COMPUTE_VOLUME_EXTEND", "COMPUTE_DEVICE_TAGGING", "COMPUTE_RESCUE_BFV", TRUSTED_CERTS,
)
"""Traits of every QEMU that this driver runs, and of the driver."""


SHARING = ("COMPUTE_STORAGE_VIRTIO_FS", "COMPUTE_MEM_BACKING_FILE")
"""Traits of a host that can give directories to guests."""

OFFERED = {
    "COMPUTE_STORAGE_BUS": "./devices/disk/enum[@name='bus']/value",
    "COMPUTE_GRAPHICS_MODEL": "./devices/video/enum[@name='modelType']/value",
}
"""Traits that end with what libvirt offers, and where it does."""


CAP_SYS_RESOURCE = 24
"""Number of the capability that raises limits: capabilities(7)."""


class CpuTopology(msgspec.Struct, frozen=True):
    cells: int
    sockets: int
    cores: int
    threads: int


class CpuInfo(msgspec.Struct, frozen=True):
    """What the Compute API shows as cpu_info."""

    arch: str
    model: str
    vendor: str
    features: tuple[str, ...]
    topology: CpuTopology


@dataclass(frozen=True, kw_only=True)
class HostCapabilities:
    """What the host can do.

    Args:
        uefi, secure_uefi: the firmware's code and variables, None where it is not installed.
        sharing: the program that serves directories to guests, None if it cannot.
        topology: its cells, and the CPUs of each that guests may have. divided: an operator has said which.
        hypervisor_version: as libvirt counts, major * 1000000 + minor * 1000 + release.
    """

    virt: Virt
    arch: str
    cpu_mode: CpuMode
    uefi: tuple[str, str] | None
    secure_uefi: tuple[str, str] | None
    hypervisor_type: str
    hypervisor_version: int
    cpu_info: CpuInfo
    traits: frozenset[str]
    topology: HostTopology
    divided: bool = False
    sharing: str | None = None


def capabilities(connection: libvirt.virConnect, virt: Virt, sets: CpuSets) -> HostCapabilities:
    """Ask libvirt.

    Raises:
        KilonovaError: it runs no guests of that kind. InvalidInput: the host has no such CPUs.
    """
    arch = connection.getInfo()[0]
    described = _described(connection, arch, virt, "q35" if arch == "x86_64" else None)
    older = _offered(_described(connection, arch, virt, "pc")) if arch == "x86_64" else frozenset()
    uefi, secure = _installed(UEFI_FIRMWARE), _installed(SECURE_FIRMWARE)
    if described.find("./os/loader/enum[@name='secure'][value='yes']") is None:
        secure = None
    info = _cpu_info(connection, described, virt)
    cells, sharing = topology(connection, sets), _sharing_program(described)
    return HostCapabilities(
        virt=virt,
        arch=arch,
        cpu_mode=_cpu_mode(described, virt),
        uefi=uefi,
        secure_uefi=secure,
        hypervisor_type=connection.getType(),
        hypervisor_version=connection.getVersion(),
        cpu_info=info,
        traits=frozenset().union(
            _traits(described, info, arch), older, _firmware_traits(connection, uefi, secure), _cpu_traits(cells, virt),
            SHARING if sharing is not None else (),
        ),
        topology=cells,
        divided=bool(sets.dedicated or sets.shared),
        sharing=sharing,
    )


def _described(connection: libvirt.virConnect, arch: str, virt: Virt, machine: str | None) -> ET.Element:
    """What libvirt says of guests of a machine type."""
    try:
        return ET.fromstring(connection.getDomainCapabilities(None, arch, machine, virt))
    except libvirt.libvirtError as error:
        raise KilonovaError(
            f"libvirt runs no {virt} guests on this host: {error.get_error_message()}.",
            hint="install QEMU for this architecture (Debian: qemu-system-x86)",
        ) from error


def inventory(connection: libvirt.virConnect, known: HostCapabilities, data: Path) -> HostInventory:
    """What the host has at this moment.

    Memory comes from the memory statistics, because libvirt's node information counts one NUMA node only and
    may miss half of it.

    Args:
        data: directory of the guests' disks.
    """
    memory = connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS, 0)
    disk = os.statvfs(data)
    usable_kib = memory["free"] + memory.get("buffers", 0) + memory.get("cached", 0)
    return HostInventory(
        hostname=socket.gethostname(),
        hypervisor_type=known.hypervisor_type,
        hypervisor_version=known.hypervisor_version,
        vcpus=sum(len(cell.shared) for cell in known.topology.cells),
        pcpus=sum(len(cell.dedicated) for cell in known.topology.cells),
        topology=known.topology,
        memory_mib=memory["total"] // 1024,
        memory_free_mib=usable_kib // 1024,
        local_gib=disk.f_blocks * disk.f_frsize // GIB,
        disk_available_gib=disk.f_bavail * disk.f_frsize // GIB,
        architecture=known.arch,
        cpu_info=msgspec.json.encode(known.cpu_info).decode(),
        traits=tuple(sorted(known.traits)),
        supported=((known.arch, known.virt, "hvm"),),
        uptime=_uptime(),
    )


def direct_io(directory: Path) -> bool:
    """Whether files of a directory can be written past the host's cache (some file systems cannot)."""
    probe = directory / ".direct-io"
    try:
        descriptor = os.open(probe, os.O_RDWR | os.O_CREAT | os.O_DIRECT | os.O_CLOEXEC, 0o600)
    except OSError:
        return False
    else:
        os.close(descriptor)
        return True
    finally:
        probe.unlink(missing_ok=True)


def _cpu_mode(described: ET.Element, virt: Virt) -> CpuMode:
    offered = {mode.get("name") for mode in described.findall("./cpu/mode") if mode.get("supported") == "yes"}
    wanted: tuple[CpuMode, ...] = (
        ("host-model", "host-passthrough") if virt == "kvm" else ("maximum", "host-model")
    )
    for mode in wanted:
        if mode in offered:
            return mode
    raise KilonovaError(f"libvirt offers {virt} guests none of the CPU modes {', '.join(wanted)}.")


def _cpu_info(connection: libvirt.virConnect, described: ET.Element, virt: Virt) -> CpuInfo:
    arch, _, _, _, cells, sockets, cores, threads = connection.getInfo()
    model = described.find("./cpu/mode[@name='host-model']")
    assert model is not None
    return CpuInfo(
        arch=arch,
        model=model.findtext("model") or "unknown",
        vendor=model.findtext("vendor") or "unknown",
        features=_cpu_features(connection, described, virt, model),
        topology=CpuTopology(cells=cells, sockets=sockets, cores=cores, threads=threads),
    )


def _cpu_features(
    connection: libvirt.virConnect, described: ET.Element, virt: Virt, model: ET.Element
) -> tuple[str, ...]:
    if model.find("model") is None:
        return ()
    cpu = ET.Element("cpu", mode="custom", match="exact")
    cpu.extend(child for child in model if child.tag in ("model", "vendor", "feature"))
    expanded = connection.baselineHypervisorCPU(
        described.findtext("path"), described.findtext("arch"), described.findtext("machine"), virt,
        [ET.tostring(cpu, encoding="unicode")], libvirt.VIR_CONNECT_BASELINE_CPU_EXPAND_FEATURES,
    )
    features = ET.fromstring(expanded).findall("feature")
    return tuple(sorted(one.get("name", "") for one in features if one.get("policy", "require") == "require"))


def _installed(candidates: tuple[tuple[str, str], ...]) -> tuple[str, str] | None:
    return next((pair for pair in candidates if all(Path(file).exists() for file in pair)), None)


def _firmware_traits(
    connection: libvirt.virConnect, uefi: tuple[str, str] | None, secure: tuple[str, str] | None
) -> frozenset[str]:
    can = {
        "COMPUTE_FIRMWARE_UEFI": uefi is not None,
        "COMPUTE_SECURITY_UEFI_SECURE_BOOT": secure is not None,
        "COMPUTE_SECURITY_STATELESS_FIRMWARE": uefi is not None and connection.getLibVersion() >= STATELESS_FIRMWARE,
    }
    return frozenset(name for name, able in can.items() if able)


def _traits(described: ET.Element, info: CpuInfo, arch: str) -> frozenset[str]:
    standard = {f"COMPUTE_ARCH_{arch.upper()}"} | _offered(described)
    for feature in info.features:
        standard.update(f"HW_CPU_X86_{name}" for name in TRAITS_OF_CPU_FEATURES.get(feature, ()))
    tpms = described.findall("./devices/tpm[@supported='yes']/enum[@name='backendModel'][value='emulator']/..")
    for value in (value for tpm in tpms for value in tpm.findall("enum/value")):
        name = (value.text or "").removeprefix("tpm-").upper().replace(".", "_")
        standard.add(f"COMPUTE_SECURITY_TPM_{name}")
    if tpms:
        standard.update(f"COMPUTE_SECURITY_TPM_SECRET_SECURITY_{who}" for who in ("USER", "HOST", "DEPLOYMENT"))
    devices = QEMU_DEVICES if arch == "x86_64" else ()
    return frozenset(standard & set(os_traits.get_traits())) | set(ALWAYS) | set(devices)


def _sharing_program(described: ET.Element) -> str | None:
    """None where QEMU or libvirt cannot, or the program is not installed."""
    offered = (
        "./devices/filesystem[@supported='yes']/enum[@name='driverType'][value='virtiofs']",
        "./memoryBacking[@supported='yes']/enum[@name='sourceType'][value='memfd']",
    )
    if any(described.find(place) is None for place in offered):
        return None
    return next((program for program in SHARING_PROGRAMS if Path(program).exists()), None)


def _offered(described: ET.Element) -> frozenset[str]:
    """Buses and models that guests of a machine type can have, as far as there are traits of them."""
    named = {
        f"{prefix}_{(value.text or '').upper().replace('-', '_').replace('.', '_')}"
        for prefix, place in OFFERED.items() for value in described.findall(place)
    }
    return frozenset(named & set(os_traits.get_traits()))


def _cpu_traits(cells: HostTopology, virt: Virt) -> frozenset[str]:
    found = {"COMPUTE_ADDRESS_SPACE_EMULATED"}
    if virt == "kvm":
        found.add("COMPUTE_ADDRESS_SPACE_PASSTHROUGH")
    if any(cell.siblings for cell in cells.cells):
        found.add("HW_CPU_HYPERTHREADING")
    if _may_lock_memory(Path("/proc/self/status").read_text()):
        found.add(LOCKED_MEMORY)
    return frozenset(found)


def _may_lock_memory(status: str) -> bool:
    """Whether libvirt, which runs with our rights or as a service of the machine with more, may raise the limit on the
    locked memory of a guest: within some containers root may not."""
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:")).split()[1]
    return bool(int(effective, 16) >> CAP_SYS_RESOURCE & 1)


def _uptime() -> str:
    return uptime(float(Path("/proc/uptime").read_text().split()[0]), os.getloadavg(), time.time())
