"""What versioned notifications say: objects with a name, a version and fields, as the ecosystem reads them."""

from __future__ import annotations

import datetime
from collections.abc import Iterable
from typing import Any

import msgspec

from kilonova.domain.block_device import BlockDevice
from kilonova.domain.flavor import Flavor
from kilonova.domain.instance import Instance, RequestSpec
from kilonova.domain.network import Vif
from kilonova.domain.operation import Asker, Failure
from kilonova.domain.states import PowerState

Payload = dict[str, Any]

POWER_STATES = {
    PowerState.NOSTATE: "pending", PowerState.RUNNING: "running", PowerState.PAUSED: "paused",
    PowerState.SHUTDOWN: "shutdown", PowerState.CRASHED: "crashed", PowerState.SUSPENDED: "suspended",
}


def versioned(name: str, version: str, data: Payload) -> Payload:
    """An object in its form on the wire."""
    return {
        "nova_object.name": name, "nova_object.namespace": "nova", "nova_object.version": version,
        "nova_object.data": data,
    }


def replaced(of: Instance, **changes: Any) -> Instance:
    """A record as it stands with changes that are not stored."""
    return msgspec.structs.replace(of, **changes)


def period(begin: float, end: float) -> Payload:
    """A period of usage. Times in seconds since the epoch."""
    times = {"audit_period_beginning": time_of(begin), "audit_period_ending": time_of(end)}
    return versioned("AuditPeriodPayload", "1.0", times)


def time_of(seconds: float | None) -> str | None:
    """A time as versioned objects write it."""
    return None if seconds is None else _utc(seconds).strftime("%Y-%m-%dT%H:%M:%SZ")


def timestamp(seconds: float) -> str:
    """A time as the envelopes of notifications write it."""
    return _utc(seconds).strftime("%Y-%m-%d %H:%M:%S.%f")


def _utc(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def flavor(of: Flavor, projects: list[str] | None = None) -> Payload:
    """projects: who may use it if it is not public, None where that is not told."""
    return versioned("FlavorPayload", "1.4", {
        "flavorid": of.flavor_id, "name": of.name, "memory_mb": of.memory_mib, "vcpus": of.vcpus,
        "root_gb": of.root_gib, "ephemeral_gb": of.ephemeral_gib, "swap": of.swap_mib, "rxtx_factor": of.rxtx_factor,
        "vcpu_weight": of.vcpu_weight, "disabled": of.disabled, "is_public": of.is_public,
        "extra_specs": of.extra_specs, "description": of.description, "projects": projects,
    })


def keypair(*, user_id: str, name: str, fingerprint: str, public_key: str, type_: str = "ssh") -> Payload:
    return versioned("KeypairPayload", "1.0", {
        "user_id": user_id, "name": name, "fingerprint": fingerprint, "public_key": public_key, "type": type_,
    })


def exception(failure: Failure) -> Payload:
    """An error, where it happened as far as its traceback tells."""
    module, function = _place(failure)
    return versioned("ExceptionPayload", "1.1", {
        "module_name": module, "function_name": function, "exception": failure.kind,
        "exception_message": failure.message, "traceback": failure.details,
    })


def _place(failure: Failure) -> tuple[str, str]:
    """Module and function that raised; the step if there is no traceback."""
    lines = [line.strip() for line in failure.details.splitlines() if line.strip().startswith('File "')]
    if not lines:
        return "kilonova.operations", failure.step
    path, _, function = lines[-1].removeprefix('File "').partition('", line ')
    module = path.removesuffix(".py").replace("/", ".")
    return module[module.rfind("kilonova."):] if "kilonova." in module else module, function.rpartition(" in ")[2]


def addresses(vifs: tuple[Vif, ...]) -> list[Payload]:
    """One entry for each fixed address of a server."""
    return [
        versioned("IpPayload", "1.0", {
            "label": vif.network_name, "mac": vif.mac, "meta": {}, "port_uuid": vif.id,
            "version": fixed.subnet.version, "address": fixed.address, "device_name": vif.devname,
        })
        for vif in vifs for fixed in vif.fixed_ips
    ]


def block_devices(volumes: Iterable[BlockDevice]) -> list[Payload]:
    """The volumes of a server."""
    return [
        versioned("BlockDevicePayload", "1.0", {
            "device_name": one.device_name, "tag": one.tag, "volume_id": one.volume_id,
            "delete_on_termination": one.delete_on_termination, "boot_index": one.boot_index,
        })
        for one in volumes if one.volume_id is not None
    ]


def instance(of: Instance, volumes: Iterable[BlockDevice], asker: Asker, fault: Failure | None) -> Payload:
    """The fields that every notification about an action on a server has. volumes: its block devices."""
    asked = bool(asker.user_id and asker.project_id)
    image = of.image.properties if of.image is not None else {}
    return {
        "uuid": of.uuid, "user_id": of.user_id, "tenant_id": of.project_id, "reservation_id": of.reservation_id,
        "display_name": of.display_name, "display_description": of.display_description, "host_name": of.hostname,
        "host": of.host, "node": of.node, "os_type": image.get("os_type"),
        "architecture": image.get("hw_architecture") or image.get("architecture"),
        "availability_zone": of.availability_zone, "flavor": flavor(of.flavor), "image_uuid": of.image_ref,
        "key_name": of.key_name, "kernel_id": of.kernel_id, "ramdisk_id": of.ramdisk_id,
        "created_at": time_of(of.created_at), "launched_at": time_of(of.launched_at),
        "terminated_at": time_of(of.terminated_at), "deleted_at": time_of(of.deleted_at),
        "updated_at": time_of(of.updated_at), "state": of.vm_state.value,
        "task_state": of.task_state.value if of.task_state is not None else None,
        "power_state": POWER_STATES[of.power_state], "progress": of.progress,
        "ip_addresses": addresses(of.network_info), "block_devices": block_devices(volumes), "metadata": of.metadata,
        "locked": of.locked_by is not None, "locked_reason": of.locked_reason,
        "auto_disk_config": "AUTO" if of.auto_disk_config else "MANUAL",
        "request_id": asker.request_id if asked else None,
        "action_initiator_user": asker.user_id or None, "action_initiator_project": asker.project_id or None,
        "fault": exception(fault) if fault is not None else None,
    }


def server_group(
    *, uuid: str, name: str, project_id: str, user_id: str, policy: str, max_per_host: int | None,
    members: tuple[str, ...] = (),
) -> Payload:
    rules = {"max_server_per_host": str(max_per_host)} if max_per_host is not None else {}
    return versioned("ServerGroupPayload", "1.1", {
        "uuid": uuid, "name": name, "project_id": project_id, "user_id": user_id, "policies": [policy],
        "policy": policy, "rules": rules, "members": list(members), "hosts": None,
    })


def request_spec(of: RequestSpec) -> Payload:
    """What was asked for; the image by its main fields."""
    image = of.image
    return versioned("RequestSpecPayload", "1.1", {
        "instance_uuid": of.instance_uuid, "project_id": of.project_id, "user_id": of.user_id,
        "availability_zone": of.availability_zone, "flavor": flavor(of.flavor), "ignore_hosts": list(of.ignore_hosts),
        "image": versioned("ImageMetaPayload", "1.0", {
            "id": image.id, "name": image.name, "status": image.status, "visibility": image.visibility,
            "size": image.size, "virtual_size": image.virtual_size, "container_format": image.container_format,
            "disk_format": image.disk_format, "created_at": image.created_at or None,
            "updated_at": image.updated_at or None, "tags": [], "direct_url": None, "checksum": image.checksum,
            "owner": image.owner, "min_disk": image.min_disk, "min_ram": image.min_ram, "protected": False,
            "properties": versioned("ImageMetaPropsPayload", "1.0", image.properties),
        }),
        "num_instances": 1, "numa_topology": None, "pci_requests": None, "scheduler_hints": of.scheduler_hints,
        "security_groups": list(of.security_groups), "force_hosts": [of.force_host] if of.force_host else None,
        "force_nodes": [of.force_node] if of.force_node else None, "instance_group": None,
        "requested_destination": None, "retry": None,
    })
