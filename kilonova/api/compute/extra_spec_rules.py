"""Which extra specs exist and what values they take, checked from 2.86. Spec: API-650 to API-653."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from kilonova.db.placement.names import STANDARD_CLASSES, standard_traits
from kilonova.domain.errors import InvalidInput


@dataclass(frozen=True)
class Check:
    """Whether a value is one that a key takes. told: which values those are, for people."""

    told: str
    accepts: Callable[[str], bool]

    def __call__(self, value: str) -> bool:
        return self.accepts(value)


LONGEST_KEY = 255
_WORDS = frozenset({"1", "t", "true", "on", "y", "yes", "0", "f", "false", "off", "n", "no"})
_INTEGER = re.compile(r"-?[0-9]+", re.ASCII)


_text = Check("text", lambda _value: True)
_boolean = Check("boolean", lambda value: value.strip().lower() in _WORDS)


def _integer(least: int | None = None, most: int | None = None) -> Check:
    def check(value: str) -> bool:
        if not _INTEGER.fullmatch(value):
            return False
        number = int(value)
        return (least is None or number >= least) and (most is None or number <= most)

    if least is None:
        return Check("integer", check)
    return Check(f"integer from {least} to {most}" if most is not None else f"integer of at least {least}", check)


def _one_of(*words: str) -> Check:
    return Check(", ".join(words), lambda value: value in words)


def _like(told: str, pattern: str) -> Check:
    found = re.compile(pattern, re.ASCII).fullmatch
    return Check(told, lambda value: found(value) is not None)


_CPUS = _like("CPUs such as 0-3,^2", r"\^?\d+(-\d+)?(,\^?\d+(-\d+)?)*")
_SIZE = _like("large, small, any, or a size such as 2MB", r"large|small|any|\d+([kKMGT]i?)?(b|bit|B)?")
_LABELS = _like("labels", r"[A-Za-z0-9_-]+(\s*,\s*[A-Za-z0-9_-]+)*")
_ALIASES = _like("name:count, several with commas", r"[^:,]+:\d+(\s*,\s*[^:,]+:\d+)*")
_COUNT, _WHOLE, _ANY_INTEGER = _integer(1), _integer(0), _integer()

_CAPABILITIES = """
id uuid service_id host vcpus memory_mb local_gb vcpus_used memory_mb_used local_gb_used hypervisor_type
hypervisor_version hypervisor_hostname free_ram_mb free_disk_gb current_workload running_vms disk_available_least
host_ip mapped cpu_allocation_ratio ram_allocation_ratio disk_allocation_ratio total_usable_ram_mb
total_usable_disk_gb disk_mb_used free_disk_mb vcpus_total num_instances num_io_ops failed_builds aggregates
cell_uuid updated
"""
_NESTED_CAPABILITIES = """
cpu_info metrics stats numa_topology supported_hv_specs pci_device_pools nodename pci_stats supported_instances
limits instances
"""
_QUOTA_WHOLE = """
cpu_limit cpu_shares_share memory_limit memory_shares_share disk_io_limit disk_io_shares_share vif_limit
vif_shares_share cpu_shares cpu_period
"""

EXACT: dict[str, Check] = {
    "accel:device_profile": _text,
    **{f"capabilities:{name}": _text for name in _CAPABILITIES.split()},
    **{f"hw:{name}": _boolean for name in (
        "cpu_realtime", "hide_hypervisor_id", "locked_memory", "boot_menu", "vif_multiqueue_enabled",
        "mem_encryption", "pmu", "virtio_packed_ring", "ephemeral_encryption",
    )},
    "hw:cpu_realtime_mask": _CPUS,
    "hw:cpu_dedicated_mask": _CPUS,
    "hw:cpu_policy": _one_of("dedicated", "shared", "mixed"),
    "hw:cpu_thread_policy": _one_of("prefer", "isolate", "require"),
    "hw:emulator_threads_policy": _one_of("isolate", "share"),
    "hw:mem_page_size": _SIZE,
    **{f"hw:{name}": _COUNT for name in (
        "numa_nodes", "cpu_sockets", "cpu_cores", "cpu_threads", "cpu_max_sockets", "cpu_max_cores",
        "cpu_max_threads",
    )},
    "hw:serial_port_count": _WHOLE,
    "hw:pci_numa_affinity_policy": _one_of("required", "preferred", "legacy", "socket"),
    "hw:maxphysaddr_mode": _one_of("passthrough", "emulate"),
    "hw:maxphysaddr_bits": _COUNT,
    "hw:mem_encryption_model": _one_of("amd-sev", "amd-sev-es", "amd-sev-snp", "intel-tdx"),
    "hw:pmem": _LABELS,
    "hw:tpm_model": _one_of("tpm-tis", "tpm-crb"),
    "hw:tpm_version": _one_of("1.2", "2.0"),
    "hw:tpm_secret_security": _one_of("user", "host", "deployment"),
    "hw:watchdog_action": _one_of("none", "pause", "poweroff", "reset", "disabled"),
    "hw:viommu_model": _one_of("intel", "smmuv3", "virtio", "auto"),
    "hw:sound_model": _one_of("sb16", "es1370", "pcspk", "ac97", "ich6", "ich9", "usb", "virtio"),
    "hw:usb_model": _one_of("none", "nec-xhci", "qemu-xhci"),
    "hw:redirected_usb_ports": _integer(0, 15),
    "hw:ephemeral_encryption_format": _one_of("plain", "luks", "luksv2"),
    "hw_rng:allowed": _boolean,
    "hw_rng:rate_bytes": _WHOLE,
    "hw_rng:rate_period": _WHOLE,
    "hw_video:ram_max_mb": _WHOLE,
    "os:secure_boot": _one_of("disabled", "required"),
    "pci_passthrough:alias": _ALIASES,
    **{f"quota:{name}": _WHOLE for name in _QUOTA_WHOLE.split()},
    **{f"quota:disk_{way}_{unit}_sec": _WHOLE for way in ("read", "write", "total") for unit in ("bytes", "iops")},
    **{f"quota:vif_{way}_{kind}": _WHOLE for way in ("inbound", "outbound") for kind in ("average", "peak", "burst")},
    **{f"quota:{name}": _ANY_INTEGER for name in (
        "cpu_reservation", "memory_reservation", "disk_io_reservation", "vif_reservation", "cpu_quota",
    )},
    **{f"quota:{name}_shares_level": _one_of("custom", "high", "normal", "low") for name in (
        "cpu", "memory", "disk_io", "vif",
    )},
    "vmware:hw_version": _text,
    "vmware:storage_policy": _text,
    "group_policy": _one_of("isolate", "none"),
    "hide_hypervisor_id": _boolean,
}

_GROUP = r"([a-zA-Z0-9_-]{1,64})?"
_CUSTOM = re.compile(r"CUSTOM_[A-Z0-9_]+", re.ASCII)
PATTERNS: tuple[tuple[re.Pattern[str], Check], ...] = tuple(
    (re.compile(pattern, re.ASCII), check)
    for pattern, check in (
        (r"aggregate_instance_extra_specs:.+", _text),
        (rf"capabilities:({'|'.join(_NESTED_CAPABILITIES.split())})(:\w+)*", _text),
        (r"hw:numa_cpus\.\d+", _CPUS),
        (r"hw:numa_mem\.\d+", _COUNT),
        (rf"resources{_GROUP}:(?P<class_>\w+)", _ANY_INTEGER),
        (rf"trait{_GROUP}:(?P<trait>\w+)", _one_of("required", "forbidden")),
    )
)
_GROUPED = re.compile(rf"(resources|trait){_GROUP}", re.ASCII)
NAMESPACES = frozenset(key.partition(":")[0] for key in EXACT if ":" in key) | {"aggregate_instance_extra_specs"}


def check_extra_spec(key: str, value: str) -> None:
    """Raises InvalidInput for a key that its namespace does not know, or a value that the key does not take."""
    if len(key) > LONGEST_KEY:
        raise InvalidInput(f"Validation failed; the key {key[:64]!r}... is too long.")
    check = _check_of(key)
    if check is not None and not check(value):
        raise InvalidInput(f"Validation failed; {value!r} is no value of extra spec {key!r}.")


def _check_of(key: str) -> Check | None:
    """The check of a key; None for one that is nobody's business. Raises InvalidInput."""
    if key in EXACT:
        return EXACT[key]
    for pattern, check in PATTERNS:
        match = pattern.fullmatch(key)
        if match is not None and _known_name(match):
            return check
    namespace, colon, _ = key.partition(":")
    if colon and (namespace in NAMESPACES or _GROUPED.fullmatch(namespace)):
        raise InvalidInput(f"Validation failed; extra spec {key!r} does not appear to be a valid extra spec.")
    return None


def _known_name(match: re.Match[str]) -> bool:
    """Whether the resource class or trait in a key exists."""
    names = match.groupdict()
    name = names.get("class_") or names.get("trait")
    if name is None:
        return True
    known = STANDARD_CLASSES if "class_" in names else standard_traits()
    return name in known or _CUSTOM.fullmatch(name) is not None
