"""What versioned notifications say: objects with a name, a version and fields, as the ecosystem reads them."""

from __future__ import annotations

import datetime
from typing import Any

from kilonova.domain.flavor import Flavor
from kilonova.domain.instance import Instance
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


def instance(of: Instance, asker: Asker, fault: Failure | None) -> Payload:
    """The fields that every notification about an action on a server has."""
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
        "ip_addresses": addresses(of.network_info), "block_devices": [], "metadata": of.metadata,
        "locked": of.locked_by is not None, "locked_reason": of.locked_reason,
        "auto_disk_config": "AUTO" if of.auto_disk_config else "MANUAL",
        "request_id": asker.request_id if asked else None,
        "action_initiator_user": asker.user_id or None, "action_initiator_project": asker.project_id or None,
        "fault": exception(fault) if fault is not None else None,
    }
