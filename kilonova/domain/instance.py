"""The instance (the server of the Compute API): its record and what belongs to it."""

from __future__ import annotations

import msgspec

from kilonova.domain.block_device import BlockDevice
from kilonova.domain.flavor import Flavor
from kilonova.domain.image import Image
from kilonova.domain.network import PortNeed, RequestedNetwork, Vif
from kilonova.domain.share import ShareMapping
from kilonova.domain.states import PowerState, TaskState, VmState

BOOT_ROLES = "boot_roles"
"""In the system metadata of an instance: roles of who asked for it, with commas between them. Spec: BLD-83."""
GUEST_PASSWORD = "password"
"""In the system metadata of an instance: what the guest has told of its password, encrypted by the guest."""


class Rescue(msgspec.Struct, frozen=True, kw_only=True):
    """That a server runs from a rescue disk.

    Args:
        image: what that disk was made from. since: seconds since the epoch. vm_state: what the server was before.
    """

    image: Image
    since: float
    vm_state: VmState


class SoftDeletion(msgspec.Struct, frozen=True, kw_only=True):
    """That a server was deleted and is still kept.

    Args:
        at: when, seconds since the epoch. vm_state: what it was before.
    """

    at: float
    vm_state: VmState


class Instance(msgspec.Struct, kw_only=True):
    """The record of one server in its cell.

    Times are seconds since the epoch, UTC. `network_info` caches what the network service last said.
    """

    uuid: str
    project_id: str
    user_id: str
    reservation_id: str = ""
    display_name: str = ""
    display_description: str | None = None
    hostname: str = ""
    vm_state: VmState = VmState.BUILDING
    task_state: TaskState | None = TaskState.SCHEDULING
    power_state: PowerState = PowerState.NOSTATE
    host: str | None = None
    node: str | None = None
    launched_on: str | None = None
    availability_zone: str | None = None
    image_ref: str = ""
    image: Image | None = None
    """The image as it was when the server was built; None for a server that boots from a volume."""
    kernel_id: str = ""
    ramdisk_id: str = ""
    flavor: Flavor
    metadata: dict[str, str] = {}
    system_metadata: dict[str, str] = {}
    tags: tuple[str, ...] = ()
    key_name: str | None = None
    key_data: str | None = None
    user_data: str | None = None
    config_drive: str = ""
    access_ip_v4: str | None = None
    access_ip_v6: str | None = None
    root_device_name: str | None = None
    launch_index: int = 0
    progress: int = 0
    auto_disk_config: bool = True
    locked_by: str | None = None
    locked_reason: str | None = None
    trusted_certs: tuple[str, ...] | None = None
    network_info: tuple[Vif, ...] = ()
    security_groups: tuple[str, ...] = ()
    created_at: float = 0.0
    updated_at: float | None = None
    launched_at: float | None = None
    terminated_at: float | None = None
    deleted_at: float | None = None
    soft_deletion: SoftDeletion | None = None
    rescue: Rescue | None = None
    """Counts only while vm_state is RESCUED."""
    block_devices: tuple[BlockDevice, ...] = ()
    """Those that its user asked for; what a flavor gives is not among them."""
    shares: tuple[ShareMapping, ...] = ()
    accelerators: tuple[str, ...] = ()
    """Ids of its requests at the accelerator service."""


class InjectedFile(msgspec.Struct, frozen=True):
    """path in the guest; contents base64."""

    path: str
    contents: str


class Fault(msgspec.Struct, frozen=True, kw_only=True):
    """Why an operation on the instance failed. Spec: FND-18."""

    code: int
    message: str
    details: str = ""
    created_at: float = 0.0


class RequestSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for, kept as long as the instance: the scheduler reads it now and on every later move."""

    instance_uuid: str
    project_id: str
    user_id: str
    flavor: Flavor
    image: Image
    availability_zone: str | None = None
    force_host: str | None = None
    force_node: str | None = None
    requested_host: str | None = None
    ignore_hosts: tuple[str, ...] = ()
    scheduler_hints: dict[str, list[str]] = {}
    server_group: str | None = None
    requested_networks: tuple[RequestedNetwork, ...] | None = None
    """None asks for automatic choice; an empty tuple for no networking."""
    security_groups: tuple[str, ...] = ("default",)
    attached: tuple[PortNeed, ...] | None = None
    """What the ports of a server that is there ask for; None while only the ports that it is to get are known."""
    block_devices: tuple[BlockDevice, ...] = ()
    trusted_certs: tuple[str, ...] = ()
    """Certificates that the image's signature must be checked against."""

    @property
    def port_needs(self) -> tuple[PortNeed, ...]:
        """What its ports ask for."""
        if self.attached is not None:
            return self.attached
        return tuple(entry.need for entry in self.requested_networks or () if entry.need is not None)


class BuildRequest(msgspec.Struct, kw_only=True):
    """The full first record of a server that has been accepted and has no cell yet. Spec: DEL-46."""

    instance: Instance
    spec: RequestSpec
    injected_files: tuple[InjectedFile, ...] = ()
    admin_password: str = ""
