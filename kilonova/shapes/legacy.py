"""Old names of image properties, which count where the new one is absent. Spec: EMG-35."""

from __future__ import annotations

from collections.abc import Mapping

NAMES = {
    "architecture": "hw_architecture", "owner_id": "img_owner_id", "auto_disk_config": "hw_auto_disk_config",
    "vm_mode": "hw_vm_mode", "ipxe_boot": "hw_ipxe_boot", "mappings": "img_mappings",
    "block_device_mapping": "img_block_device_mapping", "bdm_v2": "img_bdm_v2",
    "root_device_name": "img_root_device_name", "cache_in_nova": "img_cache_in_nova",
    "hypervisor_type": "img_hv_type", "hypervisor_version_requires": "img_hv_requested_version",
    "vmware_disktype": "hw_disk_type", "vmware_image_version": "img_version", "vmware_ostype": "os_distro",
}
SCSI_MODELS = {"lsilogicsas": "lsisas1068", "paravirtual": "vmpvscsi"}
"""Names of SCSI controllers of another hypervisor, in lower case."""


def modern(properties: Mapping[str, str]) -> dict[str, str]:
    """The properties by today's names."""
    named = {NAMES[name]: value for name, value in properties.items() if name in NAMES}
    adapter = properties.get("vmware_adaptertype", "").lower()
    if adapter == "ide":
        named["hw_disk_bus"] = adapter
    elif adapter:
        named |= {"hw_disk_bus": "scsi", "hw_scsi_model": SCSI_MODELS.get(adapter, adapter)}
    return named | dict(properties)
