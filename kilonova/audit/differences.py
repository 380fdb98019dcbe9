"""What an audit can find: each kind of difference, what it means, and what is done about it."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Kind(StrEnum):
    """A kind of difference between records and the world."""

    GUEST_WITHOUT_SERVER = "guest-without-server"
    GUEST_ON_OTHER_HOST = "guest-on-other-host"
    GUEST_MISSING = "guest-missing"
    DISKS_WITHOUT_SERVER = "disks-without-server"
    DISKS_ON_OTHER_HOST = "disks-on-other-host"
    DISKS_MISSING = "disks-missing"
    RESCUE_LEFT = "rescue-left"
    RESIZE_LEFT = "resize-left"
    DISKS_PUT_ASIDE = "disks-put-aside"
    SNAPSHOT_LEFT = "snapshot-left"
    POWER_STATE = "power-state"
    HOST_SILENT = "host-silent"
    ALLOCATION_WITHOUT_SERVER = "allocation-without-server"
    ALLOCATION_LEFT = "allocation-left"
    ALLOCATION_MISSING = "allocation-missing"
    ALLOCATION_DIFFERS = "allocation-differs"
    DEVICE_NOT_ITS_OWN = "device-not-its-own"
    DEVICE_MISSING = "device-missing"
    PORT_DEVICE_LEFT = "port-device-left"
    PORT_DEVICE_MISSING = "port-device-missing"
    USED_COUNTER = "used-counter"
    PORT_WITHOUT_SERVER = "port-without-server"
    PORT_MISSING = "port-missing"
    PORT_ON_OTHER_HOST = "port-on-other-host"
    ACCELERATOR_REQUEST_LEFT = "accelerator-request-left"
    ACCELERATOR_REQUEST_MISSING = "accelerator-request-missing"
    ACCELERATORS_SILENT = "accelerators-silent"
    TAP_WITHOUT_PORT = "tap-without-port"
    BRIDGE_WITHOUT_NETWORK = "bridge-without-network"
    ROUTER_ADDRESS_LEFT = "router-address-left"
    ROUTER_ADDRESS_MISSING = "router-address-missing"
    IMAGE_DATA_WITHOUT_IMAGE = "image-data-without-image"
    IMAGE_DATA_MISSING = "image-data-missing"
    VOLUME_EXPORT_LEFT = "volume-export-left"
    VOLUME_EXPORT_MISSING = "volume-export-missing"
    VOLUME_SNAPSHOT_LEFT = "volume-snapshot-left"
    VOLUME_SNAPSHOT_MISSING = "volume-snapshot-missing"
    VOLUME_DATA_LEFT = "volume-data-left"
    VOLUME_DATA_MISSING = "volume-data-missing"
    VOLUME_LEFT_IN_GUEST = "volume-left-in-guest"
    VOLUME_MISSING_IN_GUEST = "volume-missing-in-guest"
    BLOCK_DEVICE_WITHOUT_SERVER = "block-device-without-server"
    ATTACHMENT_WITHOUT_SERVER = "attachment-without-server"
    ATTACHMENT_LEFT = "attachment-left"
    ATTACHMENT_MISSING = "attachment-missing"
    BLOCK_DEVICE_FORGOTTEN = "block-device-forgotten"
    SECRET_WITHOUT_SERVER = "secret-without-server"
    CONSOLE_TOKEN_WITHOUT_SERVER = "console-token-without-server"
    NOTIFICATION_WITHOUT_SINK = "notification-without-sink"
    BUILD_REQUEST_FORGOTTEN = "build-request-forgotten"
    MAPPING_WITHOUT_SERVER = "mapping-without-server"
    SERVER_WITHOUT_MAPPING = "server-without-mapping"
    REQUEST_SPEC_WITHOUT_SERVER = "request-spec-without-server"
    TASK_WITHOUT_OPERATION = "task-without-operation"
    OPERATION_STRANDED = "operation-stranded"
    OPERATION_LOST = "operation-lost"


HEALS: dict[Kind, str] = {
    Kind.GUEST_WITHOUT_SERVER: "removed from its host by an operation",
    Kind.DISKS_WITHOUT_SERVER: "removed from its host by an operation",
    Kind.RESCUE_LEFT: "removed from its host by an operation; a guest that runs from it keeps it until its next start",
    Kind.RESIZE_LEFT: "removed from its host by an operation",
    Kind.DISKS_PUT_ASIDE: "removed from its host by an operation",
    Kind.SNAPSHOT_LEFT: "removed from its host by an operation",
    Kind.ALLOCATION_LEFT: "given back",
    Kind.SECRET_WITHOUT_SERVER: "deleted",
    Kind.CONSOLE_TOKEN_WITHOUT_SERVER: "revoked",
    Kind.NOTIFICATION_WITHOUT_SINK: "those that are older than `notifications.retention` are given up",
    Kind.ALLOCATION_WITHOUT_SERVER: "given back",
    Kind.PORT_DEVICE_LEFT: "given back",
    Kind.USED_COUNTER: "counted anew from the allocations",
    Kind.PORT_WITHOUT_SERVER: "deleted, or unbound if a user made it",
    Kind.ACCELERATOR_REQUEST_LEFT: "deleted at the accelerator service",
    Kind.IMAGE_DATA_WITHOUT_IMAGE: "deleted",
    Kind.VOLUME_EXPORT_LEFT: "served no longer; whoever is connected is cut off",
    Kind.VOLUME_EXPORT_MISSING: "served again",
    Kind.VOLUME_SNAPSHOT_LEFT: "deleted from its pool",
    Kind.VOLUME_DATA_LEFT: "deleted from its pool",
    Kind.ATTACHMENT_WITHOUT_SERVER: "deleted at the volume service",
    Kind.ATTACHMENT_LEFT: "deleted at the volume service",
    Kind.BLOCK_DEVICE_WITHOUT_SERVER: "deleted",
    Kind.BUILD_REQUEST_FORGOTTEN: "placed by a new operation",
    Kind.MAPPING_WITHOUT_SERVER: "deleted",
    Kind.REQUEST_SPEC_WITHOUT_SERVER: "deleted",
    Kind.TASK_WITHOUT_OPERATION: "cleared, with a fault that says so",
}
"""What healing does. A kind that is not here needs a decision: healing leaves it alone."""

ADVICE: dict[Kind, str] = {
    Kind.GUEST_ON_OTHER_HOST: "find out which copy is the right one before removing the other",
    Kind.GUEST_MISSING: "start the server, or reboot it hard: its guest is made anew from its disks",
    Kind.DISKS_ON_OTHER_HOST: "find out which copy is the right one before removing the other",
    Kind.DISKS_MISSING: "rebuild or delete the server",
    Kind.POWER_STATE: "the next report of its host records it; if this stays, see the log of the agent",
    Kind.HOST_SILENT: "bring its agent back and audit again: what is there could not be compared",
    Kind.ALLOCATION_MISSING: "delete or move the server, or allocate for it in placement",
    Kind.ALLOCATION_DIFFERS: "correct the allocation in placement, or move the server",
    Kind.DEVICE_NOT_ITS_OWN: "reboot the server hard: its guest is started with the devices that are its own",
    Kind.DEVICE_MISSING: "reboot the server hard: its guest is started with the devices that are its own",
    Kind.PORT_DEVICE_MISSING: "detach the port from the server and attach it again, or delete the server",
    Kind.PORT_MISSING: "detach the interface from the server, or delete the server",
    Kind.PORT_ON_OTHER_HOST: "bind the port to the host of its server",
    Kind.ACCELERATOR_REQUEST_MISSING: "shelve and unshelve the server, which asks for its devices anew, or delete it",
    Kind.ACCELERATORS_SILENT: "bring it back and audit again: its requests could not be compared",
    Kind.TAP_WITHOUT_PORT: "see which process holds it; it goes when that ends",
    Kind.BRIDGE_WITHOUT_NETWORK: "`kilonova down` and `kilonova up`: the start removes it",
    Kind.ROUTER_ADDRESS_LEFT: "`kilonova down` and `kilonova up`: the start removes it",
    Kind.ROUTER_ADDRESS_MISSING: "`kilonova down` and `kilonova up`: the start adds it",
    Kind.IMAGE_DATA_MISSING: "upload the image again",
    Kind.VOLUME_SNAPSHOT_MISSING: "delete the snapshot",
    Kind.VOLUME_DATA_MISSING: "restore the volume from a backup, or delete it",
    Kind.VOLUME_LEFT_IN_GUEST: "reboot the server hard: its guest is started with the volumes that are its own",
    Kind.VOLUME_MISSING_IN_GUEST: "reboot the server hard: its guest is started with the volumes that are its own",
    Kind.ATTACHMENT_MISSING: "detach the volume from the server and attach it again",
    Kind.BLOCK_DEVICE_FORGOTTEN: "detach the volume from the server, and attach it again if it is to have it",
    Kind.SERVER_WITHOUT_MAPPING: "its cell has it but nobody can see it; restore the mapping from a backup",
    Kind.OPERATION_STRANDED: "`kilonova ops show` tells why; then `kilonova ops resume`, `skip` or `force`",
    Kind.OPERATION_LOST: "`kilonova ops cancel` ends it",
}


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """One difference.

    Args:
        object: uuid or name of what is wrong. host: where, "" if it is not on a host.
        subject: the server it is about, "" if it is about none. cell: where that would be recorded.
        what: a sentence for people.
    """

    kind: Kind
    object: str
    host: str = ""
    subject: str = ""
    cell: str = ""
    what: str

    @property
    def identity(self) -> tuple[str, str, str]:
        """The same difference found again has the same identity."""
        return (self.kind.value, self.object, self.host)

    @property
    def heals(self) -> bool:
        """Whether healing settles it."""
        return self.kind in HEALS

    @property
    def advice(self) -> str:
        """What to do about it."""
        return "`kilonova audit --heal`" if self.heals else ADVICE[self.kind]
