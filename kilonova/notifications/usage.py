"""What notifications of the older form say: usage of a server, as plain names that billing and metering read.

Spec: BLD-43.
"""

from __future__ import annotations

import datetime
from typing import Any

from kilonova.domain.instance import Instance
from kilonova.domain.operation import Failure


def usage(of: Instance, *, network: bool, fault: Failure | None, **more: Any) -> dict[str, Any]:
    """The usage of a server.

    Args:
        network: with its addresses. fault: why something failed. more: further fields.
    """
    flavor = of.flavor
    image = of.image.properties if of.image is not None else {}
    told: dict[str, Any] = {
        "tenant_id": of.project_id, "user_id": of.user_id, "instance_id": of.uuid, "display_name": of.display_name,
        "reservation_id": of.reservation_id, "hostname": of.hostname, "instance_type": flavor.name,
        "instance_type_id": flavor.id, "instance_flavor_id": flavor.flavor_id,
        "architecture": image.get("hw_architecture") or image.get("architecture"), "memory_mb": flavor.memory_mib,
        "disk_gb": flavor.root_gib + flavor.ephemeral_gib, "vcpus": flavor.vcpus, "root_gb": flavor.root_gib,
        "ephemeral_gb": flavor.ephemeral_gib, "host": of.host, "node": of.node,
        "availability_zone": of.availability_zone, "cell_name": "", "created_at": _time(of.created_at),
        "terminated_at": _time(of.terminated_at), "deleted_at": _time(of.deleted_at),
        "launched_at": _time(of.launched_at), "image_ref_url": image_url(of.image_ref), "os_type": image.get("os_type"),
        "kernel_id": of.kernel_id, "ramdisk_id": of.ramdisk_id, "state": of.vm_state.value,
        "state_description": of.task_state.value if of.task_state is not None else "",
        "progress": of.progress or "", "access_ip_v4": of.access_ip_v4, "access_ip_v6": of.access_ip_v6,
        "image_meta": {"base_image_ref": of.image_ref, **{k: v for k, v in image.items() if k != "kernel_id"}},
        "metadata": of.metadata, **more,
    }
    if network:
        told["fixed_ips"] = [
            {
                "address": fixed.address, "type": "fixed", "version": fixed.subnet.version, "meta": {},
                "label": vif.network_name, "vif_mac": vif.mac,
                "floating_ips": [{"address": floating, "type": "floating"} for floating in fixed.floating],
            }
            for vif in of.network_info for fixed in vif.fixed_ips
        ]
    if fault is not None:
        told["exception"] = fault.message
        told["code"] = fault.status
    return told


def image_url(image_ref: str) -> str:
    """An image, by its path at the image service."""
    return f"images/{image_ref}" if image_ref else ""


def time_text(seconds: float) -> str:
    """A time as usage writes it."""
    return str(datetime.datetime.fromtimestamp(seconds, datetime.UTC).replace(tzinfo=None))


def _time(seconds: float | None) -> str:
    return "" if seconds is None else time_text(seconds)
