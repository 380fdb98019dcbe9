"""How a server is shown, at every microversion. Spec: API-401 to API-452."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import msgspec

from kilonova.api.call import Call
from kilonova.api.compute.addresses import addresses_of
from kilonova.api.compute.server_status import WITH_FAULT, WITH_PROGRESS, status_of
from kilonova.api.policy import Audience, Rule
from kilonova.db.instance_list import Asked
from kilonova.domain.flavor import Flavor
from kilonova.domain.instance import Fault, Instance

EXTENDED_ATTRIBUTES = Rule("os-extended-server-attributes", Audience.ADMIN)
HOST_STATUS = Rule("servers:show:host_status", Audience.ADMIN)
HOST_STATUS_UNKNOWN = Rule("servers:show:host_status:unknown-only", Audience.ADMIN)
FLAVOR_EXTRA_SPECS = Rule("servers:show:flavor-extra-specs", Audience.READER)
VIEW_RULES = (EXTENDED_ATTRIBUTES, HOST_STATUS, HOST_STATUS_UNKNOWN, FLAVOR_EXTRA_SPECS)

_IMAGE_PREFIX = "image_"
_STANDARD_PROPERTIES = ("hw_", "os_", "img_", "trait:")


class Extras(msgspec.Struct, frozen=True):
    """What a view needs beside the records, by server (statuses by host)."""

    faults: Mapping[str, Fault] = {}
    asked: Mapping[str, Asked] = {}
    host_statuses: Mapping[str, str] = {}
    groups_of_ports: tuple[str, ...] | None = None
    """Security groups as the network service tells them; None: those of the record."""
    member_of: tuple[str, ...] = ()
    """Server groups of the one server that is shown."""
    volumes: Mapping[str, Sequence[tuple[str, bool]]] = {}
    """Ids, and whether they are deleted with the server."""


def seconds(timestamp: float) -> str:
    """As server times are shown. Spec: API-055."""
    return f"{datetime.fromtimestamp(int(timestamp), UTC).isoformat()[:19]}Z"


def microseconds(timestamp: float | None) -> str | None:
    """As all other times are shown. Spec: API-055."""
    if timestamp is None:
        return None
    return datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="microseconds")[:26]


@lru_cache(4096)
def host_id(project_id: str | None, host: str | None) -> str:
    """A digest that tells servers on the same host apart from others without naming it. Spec: API-408."""
    return hashlib.sha224(f"{project_id}{host}".encode()).hexdigest() if host else ""


def image_properties(instance: Instance) -> dict[str, str]:
    """The standard image properties stored at boot. Spec: API-411."""
    stored = ((k.removeprefix(_IMAGE_PREFIX), v) for k, v in instance.system_metadata.items()
              if k.startswith(_IMAGE_PREFIX))
    return {name: value for name, value in stored if name.startswith(_STANDARD_PROPERTIES)}


def embedded_flavor(flavor: Flavor, *, extra_specs: bool) -> dict[str, Any]:
    """The flavor inside a server, from 2.47. Spec: API-412."""
    embedded: dict[str, Any] = {
        "vcpus": flavor.vcpus, "ram": flavor.memory_mib, "disk": flavor.root_gib,
        "ephemeral": flavor.ephemeral_gib, "swap": flavor.swap_mib, "original_name": flavor.name,
    }
    if extra_specs:
        embedded["extra_specs"] = flavor.extra_specs
    return embedded


class ServerView:
    """Shows servers to one caller in one microversion; policy is asked once, not once per server."""

    def __init__(self, call: Call, extras: Extras | None = None) -> None:
        self._version = call.version
        self._links = call.links
        self._extras = extras or Extras()
        self._is_admin = call.context.is_admin
        self._attributes = call.allows(EXTENDED_ATTRIBUTES)
        self._host_status = self._version >= 16 and call.allows(HOST_STATUS)
        self._host_unknown = self._version >= 16 and call.allows(HOST_STATUS_UNKNOWN)
        self._extra_specs = call.allows(FLAVOR_EXTRA_SPECS)
        self._name_template = call.cloud.options.instance_name_template
        self._flavors: dict[str, dict[str, Any]] = {}
        self._images: dict[str, dict[str, Any]] = {}

    def brief(self, instance: Instance) -> dict[str, Any]:
        """An entry of `GET /servers`. Spec: API-450."""
        return {
            "id": instance.uuid, "name": instance.display_name,
            "links": self._links.pair(f"/servers/{instance.uuid}"),
        }

    def full(self, instance: Instance, *, groups: bool) -> dict[str, Any]:
        """Everything the caller may see; `groups`: with server_groups (not in lists)."""
        version = self._version
        shown = self._basic(instance, extended=True)
        shown["key_name"] = instance.key_name
        shown["config_drive"] = instance.config_drive
        shown["OS-EXT-AZ:availability_zone"] = instance.availability_zone or ""
        shown["OS-EXT-STS:vm_state"] = "deleted" if instance.deleted_at else instance.vm_state.value
        shown["OS-EXT-STS:task_state"] = instance.task_state.value if instance.task_state else None
        shown["OS-EXT-STS:power_state"] = int(instance.power_state)
        shown["OS-SRV-USG:launched_at"] = microseconds(instance.launched_at)
        shown["OS-SRV-USG:terminated_at"] = microseconds(instance.terminated_at)
        shown["os-extended-volumes:volumes_attached"] = self._volumes(instance)
        names = self._extras.groups_of_ports
        if names is None and instance.network_info:
            names = instance.security_groups
        if names:
            shown["security_groups"] = [{"name": name} for name in names]
        if self._attributes:
            self._add_attributes(shown, instance)
        elif version >= 90:
            shown["OS-EXT-SRV-ATTR:hostname"] = instance.hostname
        if self._host_status or self._host_unknown:
            self._add_host_status(shown, instance)
        self._add_versioned(shown, instance, groups)
        if version >= 96:
            self._add_asked(shown, instance, listed=not groups)
        return shown

    def reduced(self, instance: Instance) -> dict[str, Any]:
        """The answer to PUT and rebuild up to 2.74. Spec: API-449."""
        shown = self._basic(instance, extended=False)
        self._add_versioned(shown, instance, groups=True)
        return shown

    def rebuilt(self, instance: Instance) -> dict[str, Any]:
        """The answer to rebuild, without a password. Spec: API-417, API-431, API-448, API-449."""
        shown = self.full(instance, groups=True) if self._version >= 75 else self.reduced(instance)
        shown.pop("OS-EXT-SRV-ATTR:user_data", None)
        if self._version >= 54:
            shown["key_name"] = instance.key_name
        if self._version >= 57:
            shown["user_data"] = instance.user_data
        return shown

    def _basic(self, instance: Instance, *, extended: bool) -> dict[str, Any]:
        status = status_of(instance.vm_state, instance.task_state, instance.deleted_at is not None)
        created = seconds(instance.created_at)
        shown: dict[str, Any] = {
            "id": instance.uuid,
            "name": instance.display_name,
            "status": status,
            "tenant_id": instance.project_id,
            "user_id": instance.user_id,
            "created": created,
            "updated": seconds(instance.updated_at) if instance.updated_at is not None else created,
            "hostId": host_id(instance.project_id, instance.host),
            "accessIPv4": instance.access_ip_v4 or "",
            "accessIPv6": instance.access_ip_v6 or "",
            "addresses": addresses_of(instance, extended=extended),
            "image": self._image(instance),
            "flavor": self._flavor(instance.flavor),
            "links": self._links.pair(f"/servers/{instance.uuid}"),
            "metadata": instance.metadata,
            "OS-DCF:diskConfig": "AUTO" if instance.auto_disk_config else "MANUAL",
        }
        if status in WITH_PROGRESS:
            shown["progress"] = instance.progress
        if status in WITH_FAULT:
            fault = self._extras.faults.get(instance.uuid)
            if fault is not None:
                shown["fault"] = self._fault(fault)
        return shown

    def _volumes(self, instance: Instance) -> list[dict[str, Any]]:
        """Spec: API-437."""
        volumes = self._extras.volumes.get(instance.uuid, ())
        if self._version < 3:
            return [{"id": id_} for id_, _ in volumes]
        return [{"id": id_, "delete_on_termination": deleted} for id_, deleted in volumes]

    def _add_versioned(self, shown: dict[str, Any], instance: Instance, groups: bool) -> None:
        version = self._version
        if version >= 9:
            shown["locked"] = instance.locked_by is not None
        if version >= 19:
            shown["description"] = instance.display_description
        if version >= 26:
            shown["tags"] = instance.tags
        if version >= 63:
            shown["trusted_image_certificates"] = instance.trusted_certs
        if version >= 71 and groups:
            shown["server_groups"] = list(self._extras.member_of)
        if version >= 73:
            shown["locked_reason"] = instance.locked_reason

    def _add_attributes(self, shown: dict[str, Any], instance: Instance) -> None:
        prefix = "OS-EXT-SRV-ATTR:"
        shown[f"{prefix}host"] = instance.host
        shown[f"{prefix}hypervisor_hostname"] = instance.node
        shown[f"{prefix}instance_name"] = self._name_template % {"uuid": instance.uuid}
        if self._version >= 3:
            shown[f"{prefix}hostname"] = instance.hostname
            shown[f"{prefix}reservation_id"] = instance.reservation_id
            shown[f"{prefix}launch_index"] = instance.launch_index
            shown[f"{prefix}kernel_id"] = instance.kernel_id
            shown[f"{prefix}ramdisk_id"] = instance.ramdisk_id
            shown[f"{prefix}root_device_name"] = instance.root_device_name
            shown[f"{prefix}user_data"] = instance.user_data

    def _add_host_status(self, shown: dict[str, Any], instance: Instance) -> None:
        """Spec: API-439."""
        status = self._extras.host_statuses.get(instance.host, "") if instance.host else ""
        if self._host_status or status == "UNKNOWN":
            shown["host_status"] = status

    def _add_asked(self, shown: dict[str, Any], instance: Instance, *, listed: bool) -> None:
        """Spec: API-445, API-446."""
        asked = self._extras.asked.get(instance.uuid)
        shown["pinned_availability_zone"] = asked.availability_zone if asked else None
        if self._version < 100:
            return
        if asked is None:
            shown["scheduler_hints"] = None if listed else {}
        else:
            hints = asked.scheduler_hints
            shown["scheduler_hints"] = {k: v[0] if len(v) == 1 else v for k, v in hints.items()}

    def _fault(self, fault: Fault) -> dict[str, Any]:
        """Spec: API-416."""
        shown: dict[str, Any] = {
            "code": fault.code, "created": seconds(fault.created_at), "message": fault.message
        }
        if fault.details and (self._is_admin or fault.code != 500):
            shown["details"] = fault.details
        return shown

    def _image(self, instance: Instance) -> Any:
        """Spec: API-411."""
        image_id = instance.image_ref
        if not image_id:
            return ""
        shown = self._images.get(image_id)
        if shown is None:
            links = [{"rel": "bookmark", "href": self._links.image_bookmark(image_id)}]
            shown = self._images[image_id] = {"id": image_id, "links": links}
        if self._version >= 98:
            return {**shown, "properties": image_properties(instance)}
        return shown

    def _flavor(self, flavor: Flavor) -> dict[str, Any]:
        """Spec: API-412."""
        if self._version <= 46:
            shown = self._flavors.get(flavor.flavor_id)
            if shown is None:
                links = [{"rel": "bookmark", "href": self._links.bookmark(f"/flavors/{flavor.flavor_id}")}]
                shown = self._flavors[flavor.flavor_id] = {"id": flavor.flavor_id, "links": links}
            return shown
        return embedded_flavor(flavor, extra_specs=self._extra_specs)
