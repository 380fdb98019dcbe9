"""Volumes as drivers see them: plain data that crosses the bus to the agent."""

from __future__ import annotations

import enum
from typing import Any, Literal, get_args

import msgspec

from kilonova.domain.block_device import BlockDevice
from kilonova.domain.errors import InvalidInput, KilonovaError, NotSupported
from kilonova.shapes.blank_disks import bus_of
from kilonova.shapes.disks import Bus
from kilonova.shapes.limits import DiskLimits

NBD_PORT = 10809
VolumeDevice = Literal["disk", "cdrom"]


class NbdSource(msgspec.Struct, frozen=True, kw_only=True, tag="nbd"):
    """Where a volume is served over NBD.

    Args:
        export: its name there. socket: a path on the host of the guest; "" for TCP, to `host` and `port`.
        tls: the connection is encrypted.
    """

    export: str
    socket: str = ""
    host: str = ""
    port: int = NBD_PORT
    tls: bool = False


class FileSource(msgspec.Struct, frozen=True, kw_only=True, tag="file"):
    """A volume that is a file on the host of the guest."""

    path: str
    format: Literal["raw", "qcow2"] = "raw"


VolumeSource = NbdSource | FileSource


class GuestVolume(msgspec.Struct, frozen=True, kw_only=True):
    """A volume that a guest has, or is to have.

    Args:
        id: the volume's; the guest sees it as the serial number of the disk.
        device_name: for example `/dev/vdb`; "" for the next that is free.
        bus: None for the bus of the guest's disks.
        boot_index: its place in the order of booting, None for none. 0 is the root disk.
        multiattach: other guests may write to it too.
        encrypted: it is a LUKS container. The driver asks `VolumeKeys` for its passphrase.
        discard: the guest may give up blocks.
        write_through: its server keeps what makes sense of writes in memory until it is told to flush, as that of a
            qcow2 does: the guest is told that a write is done only when it was flushed.
        limits: what the type of the volume allows the guest, None for a volume without limits.
        tag: what the user calls it, and the guest is told.
    """

    id: str
    source: VolumeSource
    device_name: str = ""
    device: VolumeDevice = "disk"
    bus: Bus | None = None
    boot_index: int | None = None
    read_only: bool = False
    multiattach: bool = False
    encrypted: bool = False
    discard: bool = False
    write_through: bool = False
    limits: DiskLimits | None = None
    tag: str | None = None


class HeldVolume(msgspec.Struct, frozen=True, kw_only=True):
    """A volume as found in a guest.

    Args:
        device_name: for example `/dev/vdb`.
        running: what the running guest has it from; None if it runs without it, or is off.
        defined: from what it will have it when it is started from its definition; None for not at all.
    """

    id: str
    device_name: str
    running: VolumeSource | None
    defined: VolumeSource | None


class CopyState(enum.StrEnum):
    """How far a guest is on its way from one volume to another."""

    NONE = "none"
    """It uses the old volume, and no copy is being made: none was begun, or it failed, or was ended."""
    COPYING = "copying"
    READY = "ready"
    """Both volumes hold the same and are kept so: `pivot_volume` can be called."""
    DONE = "done"
    """The guest uses the new volume."""


class VolumeCopy(msgspec.Struct, frozen=True, kw_only=True):
    """done, total: bytes; both 0 where nobody counts. A guest that writes adds to both."""

    state: CopyState
    done: int = 0
    total: int = 0


class FileMerge(msgspec.Struct, frozen=True, kw_only=True):
    """One of the files of a volume is to be needed no more. They are known by their names without directory.

    Args:
        into: None: the file that the guest writes to takes over what it has from the files below it, down to `file`,
            which stays the next below it. Otherwise `file` is merged into this one, which is below it.
        file: with `into` None, None means that no file stays below.
    """

    file: str | None
    into: str | None = None


class MergeState(enum.StrEnum):
    """How far a merge of files is."""

    NONE = "none"
    """It is not being made: it was not begun, or it failed, or was ended."""
    RUNNING = "running"
    DONE = "done"


class VolumeUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What a guest did with a volume since it was started or attached. Spec: VOL-32."""

    read_requests: int
    read_bytes: int
    write_requests: int
    write_bytes: int


def guest_volume(device: BlockDevice) -> GuestVolume:
    """A volume of a server as its guest is to have it.

    Args:
        device: with the connection info of the volume service, flat or with its part `data`. Without `write_through`,
            a server of NBD is taken for one that keeps in memory what makes sense of writes.

    Raises:
        KilonovaError: the device has no connection info, or it cannot be read. NotSupported: the volume is served in a
            way that no driver knows.
    """
    if device.volume_id is None or device.connection_info is None:
        raise KilonovaError(f"Block device {device.uuid} is not connected to a volume.")
    try:
        info = msgspec.json.decode(device.connection_info, type=dict[str, Any])
        data = info | info.get("data", {})
        specs = msgspec.convert(data.get("qos_specs") or {}, dict[str, Any])
        qos = {name: int(specs[name]) for name in DiskLimits.__struct_fields__ if name in specs}
        return GuestVolume(
            id=device.volume_id,
            source=_source(data),
            device_name=device.device_name or "",
            device=_device(device.device_type),
            bus=bus_of(device),
            boot_index=device.boot_index if device.boot_index is not None and device.boot_index >= 0 else None,
            read_only=data.get("access_mode", "rw") == "ro",
            multiattach=bool(data.get("multiattach", False)),
            encrypted=bool(data.get("encrypted", False)),
            discard=bool(data.get("discard", False)),
            write_through=bool(data.get("write_through", data["driver_volume_type"] == "nbd")),
            limits=DiskLimits(**qos) if qos else None,
            tag=device.tag,
        )
    except (msgspec.DecodeError, KeyError, TypeError, ValueError) as error:  # without its values, which may be secret
        raise KilonovaError(
            f"The connection info of volume {device.volume_id} cannot be read ({type(error).__name__})."
        ) from None


def _source(data: dict[str, Any]) -> VolumeSource:
    kind = data["driver_volume_type"]
    if kind == "nbd":
        at = {"socket": data["socket"]} if data.get("socket") else {"host": data["host"], "port": data["port"]}
        found = {"type": "nbd", "export": data["export"], "tls": data.get("tls", False), **at}
        return msgspec.convert(found, NbdSource)
    if kind == "local":
        found = {"type": "file", "path": data["device_path"], "format": data.get("format", "raw")}
        return msgspec.convert(found, FileSource)
    raise NotSupported(f"No driver here can attach volumes of the type {kind!r}.")


def _device(asked: str | None) -> VolumeDevice:
    for one in get_args(VolumeDevice):
        if (asked or "disk") == one:
            found: VolumeDevice = one
            return found
    raise InvalidInput(f"A volume cannot be attached as a {asked!r}.")
