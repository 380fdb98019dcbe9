"""The error hierarchy. Every error knows its HTTP status, what happened, to what, and what to do.

Three questions decide where an error belongs:

- Is it the caller's? Then it is one of the HTTP families below (`InvalidInput`, `NotFound`, ...).
- Does it tell the engine what to do next? Then it derives from `Retryable`, `TryElsewhere` or `Unreachable`.
- Neither? Then it is a plain `KilonovaError`: the step has failed for good and the operation unwinds.
"""

from __future__ import annotations

from typing import ClassVar


class KilonovaError(Exception):
    """Root of all errors that this package raises on purpose.

    Args:
        message: what happened, naming the object. Shown to users; holds no secrets or addresses.
        hint: what to do about it, or None.
    """

    status: ClassVar[int] = 500

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


# --- The caller's errors, by HTTP status -----------------------------------------------------------


class InvalidInput(KilonovaError):
    """The request is malformed or contradicts itself."""

    status = 400


class ConsoleTypeInvalid(InvalidInput):
    """There is no console of this type, or not of this kind. Spec: CON-11, CON-12, CON-27."""

    def __init__(self, type_: str) -> None:
        super().__init__(f"Invalid console type {type_}")


class ConsoleTypeUnavailable(InvalidInput):
    """Consoles of this kind are switched off, or no driver has them. Spec: CON-10."""

    def __init__(self, kind: str) -> None:
        super().__init__(f"Unavailable console type {kind}.")


class InvalidBlockDevice(InvalidInput):
    """why: a sentence."""

    def __init__(self, why: str) -> None:
        super().__init__(f"Block Device Mapping is Invalid: {why}")


class VolumeNotCreated(InvalidBlockDevice):
    """A volume that a server is to have does not become available. seconds: waited for it. Spec: BDM-05."""

    def __init__(self, volume: str, *, seconds: int, attempts: int, status: str) -> None:
        super().__init__(
            f"volume {volume} was not made; after {seconds} s and {attempts} looks at it, its status is {status}."
        )


class VolumeAttachedAlready(InvalidInput):
    """Spec: RBN-08."""

    def __init__(self, volume: str, instance: str) -> None:
        super().__init__(f"Volume {volume} is attached to instance {instance} already.")


class InstanceNotRescuable(InvalidInput):
    """Spec: RSC-07, RSC-16."""

    def __init__(self, instance: str, reason: str) -> None:
        super().__init__(f"Instance {instance} cannot be rescued: {reason}")


class Unauthorized(KilonovaError):
    """No token, or one that is not valid."""

    status = 401


class Forbidden(KilonovaError):
    """The caller may not do this."""

    status = 403


class PolicyNotAuthorized(Forbidden):
    """A policy rule refuses the caller. Spec: API-041."""

    def __init__(self, rule: str) -> None:
        super().__init__(f"Policy doesn't allow {rule} to be performed.")
        self.rule = rule


class OverQuota(Forbidden):
    """A quota would be exceeded. Spec: API-058, API-059."""


class TooManyDisks(Forbidden):
    """A guest has no place left for one more disk. Spec: BDM-14."""


class NotFound(KilonovaError):
    """The object does not exist, or not for this caller."""

    status = 404


class InstanceNotFound(NotFound):
    def __init__(self, instance: str) -> None:
        super().__init__(f"Instance {instance} could not be found.")


class FlavorNotFound(NotFound):
    def __init__(self, flavor: str) -> None:
        super().__init__(f"Flavor {flavor} could not be found.")


class ImageNotFound(NotFound):
    def __init__(self, image: str) -> None:
        super().__init__(f"Image {image} could not be found.")


class VolumeNotFound(NotFound):
    def __init__(self, volume: str) -> None:
        super().__init__(f"Volume {volume} could not be found.")


class VolumeSnapshotNotFound(NotFound):
    def __init__(self, snapshot: str) -> None:
        super().__init__(f"Snapshot {snapshot} could not be found.")


class VolumeAttachmentNotFound(NotFound):
    def __init__(self, attachment: str) -> None:
        super().__init__(f"Volume attachment could not be found with filter: attachment_id = {attachment}.")


class VolumeNotAttached(NotFound):
    """Spec: VOL-36, API-178."""

    def __init__(self, volume: str, instance: str) -> None:
        super().__init__(f"Instance {instance} is not attached to volume {volume}")


class InvalidVolume(InvalidInput):
    """A volume is in a state that does not allow this. Spec: VOL-06."""


class NetworkNotFound(NotFound):
    def __init__(self, network: str) -> None:
        super().__init__(f"Network {network} could not be found.")


class PortNotFound(NotFound):
    def __init__(self, port: str) -> None:
        super().__init__(f"Port id {port} could not be found.")


class Conflict(KilonovaError):
    """The object is in a state that does not allow this."""

    status = 409


class DeviceNameTaken(Conflict):
    def __init__(self, name: str, instance: str) -> None:
        super().__init__(f"Instance {instance} has another disk that is called {name}.")


class GuestAgentAway(Conflict):
    """A guest has a channel to an agent, but none answers there."""


class PortInUse(Conflict):
    def __init__(self, port: str) -> None:
        super().__init__(f"Port {port} is still in use.")


class ExportInUse(Conflict):
    """A client is connected to the export of a volume."""

    def __init__(self, export: str) -> None:
        super().__init__(f"Export {export} is in use.", hint="detach the volume in the server that uses it")


class PortResourcesNotFree(InvalidInput):
    """Spec: IFC-03, IFC-05."""

    def __init__(self, port: str, host: str) -> None:
        super().__init__(f"Host {host} has not enough left of the resources that port {port} asks for.")


class PortDeviceNotFree(InvalidInput):
    """why: a sentence, or what would be one. Spec: IFC-18."""

    def __init__(self, port: str, host: str, why: str) -> None:
        super().__init__(f"Host {host} has no PCI device for port {port}: {why.rstrip('.')}.")


class InstanceInvalidState(Conflict):
    """Spec: API-062."""

    def __init__(self, instance: str, action: str, attr: str, value: str) -> None:
        super().__init__(f"Cannot '{action}' instance {instance} while it is in {attr} {value}")


class InstanceNeverLaunched(Conflict):
    """The server never ran. Spec: API-063."""

    def __init__(self, instance: str, action: str) -> None:
        super().__init__(f"Instance {instance} is in an invalid state for '{action}'")


class InstanceLocked(Conflict):
    """Spec: API-064."""

    def __init__(self, instance: str) -> None:
        super().__init__(f"Instance {instance} is locked")


class InstanceNotReady(Conflict):
    """The server has no host yet. Spec: API-065."""

    def __init__(self, instance: str) -> None:
        super().__init__(f"Instance {instance} is not ready")


class BodyTooLarge(KilonovaError):
    """The body of a request is longer than a service reads. most: bytes. Spec: API-022."""

    status = 413

    def __init__(self, most: int) -> None:
        super().__init__(f"The body of the request is larger than {most} bytes.", hint="ask for less at a time")


class NotSupported(KilonovaError):
    """This deployment cannot do it (a driver or service lacks the feature)."""

    status = 501


class ServiceUnavailable(KilonovaError):
    """Something this depends on does not answer now; try again later."""

    status = 503


class StoragePoolFull(KilonovaError):
    """The file system of a storage pool has no space left."""

    status = 507

    def __init__(self, pool: str) -> None:
        super().__init__(f"Storage pool {pool} is full.", hint="delete volumes or snapshots of it, or make it larger")


# --- Errors that tell the engine what to do --------------------------------------------------------


class Retryable(KilonovaError):
    """The same step may succeed when repeated (a restart, a lost connection, a busy database)."""

    status = 503


class Unfinished(Retryable):
    """What was begun goes on by itself and is not done yet: nothing is wrong, ask again."""


class Unreachable(Retryable):
    """The host or service did not answer; whether the command took effect is not known."""


class PastReturn(KilonovaError):
    """What was to be undone cannot be any more, for a later step had its effect although it failed: the operation goes
    forward from its point of no return."""


class TryElsewhere(KilonovaError):
    """This host cannot do it but another may: the operation unwinds to its claim and goes on there."""


class DeviceDetachFailed(KilonovaError):
    """A running guest does not let go of a device. Spec: IFC-48."""

    def __init__(self, device: str, instance: str, reason: str) -> None:
        super().__init__(f"Device {device} was not detached from instance {instance}: {reason}")


class NoValidHost(KilonovaError):
    """No host can take the server."""

    def __init__(self, reason: str = "There are not enough hosts available.") -> None:
        super().__init__(f"No valid host was found. {reason}")


class Fenced(KilonovaError):
    """A write or command carried an epoch that another owner has overtaken. The loser just stops."""


class StaleState(Conflict):
    """A guarded save found another state than the one expected. Spec: FND-11."""
