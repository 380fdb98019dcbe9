"""Rebuild: make the guest of a server anew on its host, from its image or another.

The new disks are made beside the old ones while the guest still runs, so that an image that is no good costs nothing.
Then the guest is powered off and forgotten, the disks are exchanged and the new guest is started; only when it runs
are the old disks removed. Whatever fails before brings the old disks and the old record back; once the guest was
powered off, the server is in ERROR then, and a hard reboot starts what it was. A server that was stopped is stopped
again, as an operation of its own that takes over in the transaction that ends this one.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import msgspec

from kilonova.agent.steps.power import (
    DESTROY,
    POWER_OFF,
    SPAWN,
    DisksMade,
    GuestArgs,
    GuestRef,
    Powered,
    PoweredOff,
    PowerOffArgs,
    SpawnArgs,
)
from kilonova.agent.steps.rebuild import DROP_OLD_DISKS, PREPARE_DISKS, REPLACE_DISKS, RESTORE_DISKS, PrepareArgs
from kilonova.db import block_devices, instances
from kilonova.db.journal import cell_journal
from kilonova.domain.errors import Conflict
from kilonova.domain.image import Image
from kilonova.domain.instance import InjectedFile, Instance
from kilonova.domain.notification import Phase
from kilonova.domain.operation import EntryState, Failure
from kilonova.domain.states import PowerState, TaskState, VmState
from kilonova.engine import submit
from kilonova.engine.operation import Here, NoUndo, OnHost, Operation, Tx
from kilonova.engine.run import Run
from kilonova.hypervisor.guest import Guest
from kilonova.operations.accelerators import read_devices
from kilonova.operations.environment import Environment
from kilonova.operations.guests import guest_of, wants_config_drive
from kilonova.operations.notices import announce
from kilonova.operations.records import fail, settle, take
from kilonova.operations.stop import STOP, StopServer, grace_of
from kilonova.operations.volumes import refresh_connections

T, V = TaskState, VmState
REBUILDABLE = (V.ACTIVE, V.STOPPED, V.ERROR)
"""vm_states in which a server may be rebuilt."""
OWNED = (T.REBUILDING, T.REBUILD_BLOCK_DEVICE_MAPPING, T.REBUILD_SPAWNING)
IMAGE_WRITTEN = "wait for image"
"""The step after which the root volume of a server holds the new image."""


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """What a guest is made from: fields of the record that only a build and a rebuild write."""

    image: Image | None
    image_ref: str
    kernel_id: str
    ramdisk_id: str
    system_metadata: dict[str, str]
    trusted_certs: tuple[str, ...] | None
    key_name: str | None
    key_data: str | None
    user_data: str | None

    @classmethod
    def of(cls, instance: Instance) -> Origin:
        return cls(**{name: getattr(instance, name) for name in cls.__struct_fields__})

    def fields(self) -> dict[str, Any]:
        """By name, to be written."""
        return {name: getattr(self, name) for name in self.__struct_fields__}


class RebuildServer(msgspec.Struct, frozen=True, kw_only=True):
    """What to make of a server.

    Args:
        before: what the guest was made from when this was asked for. after: what it is to be made from.
        changes: further fields of the record and their new values, which stay if the rebuild fails.
        keep_ephemeral: the guest keeps its ephemeral and swap disks.
        admin_password, files: secrets and files of the first boot.
    """

    before: Origin
    after: Origin
    changes: dict[str, Any] = {}
    keep_ephemeral: bool = False
    admin_password: str = ""
    files: tuple[InjectedFile, ...] = ()


class Anew(msgspec.Struct, frozen=True, kw_only=True):
    """The guest to be made, where, and what the server was.

    Args:
        grace: seconds for a clean shutdown of the old guest. interval: seconds between signals.
    """

    guest: Guest
    host: str
    vm_state: VmState
    grace: float
    interval: float


def begin(tx: Tx, run: Run[RebuildServer]) -> None:
    """The record names at once what the guest will be. Spec: RBD-02, API-126."""
    request = run.request
    instance = take(
        tx, run.subject, action="rebuild", becomes=T.REBUILDING, vm=REBUILDABLE, needs_host=True
    )
    if Origin.of(instance) != request.before:
        raise Conflict(f"Instance {run.subject} was rebuilt meanwhile.", hint="look at it, then ask again")
    settle(tx, run, owned=(T.REBUILDING,), **(request.changes | request.after.fields()))


async def _describe(env: Environment, run: Run[RebuildServer]) -> Anew:
    return await describe_anew(env, run)


async def describe_anew(env: Environment, run: Run[RebuildServer], *, but: str = "") -> Anew:
    """The host must be able to run another image, too. The interfaces are those stored: no port is touched.

    Args:
        but: the uuid of a block device that need not be connected now.

    Spec: RBD-03, RBD-08, RBD-23, RBD-47, RBD-56.
    """
    await refresh_connections(env, run.subject, but=but)
    instance, volumes = await env.database.read(
        lambda conn: (instances.get(conn, run.subject), block_devices.of_server(conn, run.subject))
    )
    assert instance.host is not None
    before, after = run.request.before, run.request.after
    if after.image is not None and (before.image, before.trusted_certs) != (after.image, after.trusted_certs):
        await env.placement.change_image(run.subject, instance.host, after.image, after.trusted_certs or ())
    guest = guest_of(
        instance, instance.network_info, layout=await env.placement.layout(run.subject, instance.host),
        config_drive=wants_config_drive(instance, env.options, run.request.files),
        devices=await read_devices(env, instance), volumes=volumes,
    )
    return Anew(
        guest=guest, host=instance.host, vm_state=instance.vm_state, grace=grace_of(instance, env.options),
        interval=env.options.shutdown_retry_interval,
    )


async def restore_image(env: Environment, run: Run[RebuildServer]) -> None:
    """Placement knows of the image that the server has in the end."""
    kept = run.request.after if _is_new(run) else run.request.before
    if kept.image is not None:
        await env.placement.note_image(run.subject, kept.image, kept.trusted_certs or ())


def host_of(run: Run[RebuildServer]) -> str:
    return run.output(Anew).host


def guest_anew(run: Run[RebuildServer]) -> Guest:
    """With the secrets of its first boot, which no result of a step may hold. Spec: RBD-26."""
    guest, request = run.output(Anew).guest, run.request
    metadata = msgspec.structs.replace(guest.metadata, admin_password=request.admin_password, files=request.files)
    return msgspec.structs.replace(guest, metadata=metadata)


def _guest_ref(run: Run[RebuildServer]) -> GuestRef:
    return GuestRef(uuid=run.subject, devnames=tuple(vif.devname for vif in run.output(Anew).guest.vifs))


def _power_off_args(run: Run[RebuildServer]) -> PowerOffArgs:
    anew = run.output(Anew)
    return PowerOffArgs(uuid=run.subject, grace=anew.grace, interval=anew.interval)


def _mapping(tx: Tx, run: Run[RebuildServer]) -> None:
    """Spec: RBD-46, RBD-48."""
    settle(tx, run, owned=(T.REBUILDING,), task_state=T.REBUILD_BLOCK_DEVICE_MAPPING, power_state=PowerState.NOSTATE)


def _spawning(tx: Tx, run: Run[RebuildServer]) -> None:
    settle(tx, run, owned=(T.REBUILD_BLOCK_DEVICE_MAPPING,), task_state=T.REBUILD_SPAWNING,
           root_device_name=run.output(DisksMade).root_device_name)


def _is_new(run: Run[RebuildServer]) -> bool:
    """Whether the old disks are gone, so that there is no way back."""
    ended = [run.entry(step) for step in (IMAGE_WRITTEN, "drop old disks")]
    return any(entry is not None and entry.state in (EntryState.DONE, EntryState.OWED) for entry in ended)


def rebuilt(tx: Tx, run: Run[RebuildServer]) -> None:
    """Spec: RBD-30 to RBD-32."""
    anew = run.output(Anew)
    settle(tx, run, owned=(T.REBUILD_SPAWNING,), vm_state=V.ACTIVE, task_state=None, progress=0, launched_at=tx.now,
           power_state=run.output(Powered).power_state, config_drive="True" if anew.guest.config_drive else "")
    if anew.vm_state is V.STOPPED:
        submit.follow(
            tx, cell_journal, STOP, run.subject, StopServer(grace=0.0, interval=0.0), run.record.asker,
            operation_id=str(uuid.uuid5(uuid.UUID(run.id), "stop")),
        )


def failed(tx: Tx, run: Run[RebuildServer], failure: Failure) -> None:
    """A guest that was not touched leaves the server as it was. Spec: RBD-54, RBD-56, RBD-57."""
    changes: dict[str, Any] = {} if _is_new(run) else run.request.before.fields()
    if run.entry("power off") is not None:
        off = run.find(PoweredOff)
        changes["vm_state"] = V.ERROR
        if off is not None:
            changes["power_state"] = off.power_state
        if run.entry("forget guest") is not None:
            changes["power_state"] = PowerState.NOSTATE
    fail(tx, run, failure, owned=OWNED, **changes)


def without_secrets(request: RebuildServer) -> RebuildServer:
    before = msgspec.structs.replace(request.before, user_data=None)
    after = msgspec.structs.replace(request.after, user_data=None)
    return msgspec.structs.replace(request, before=before, after=after, admin_password="", files=())


def _original(run: Run[RebuildServer], instance: Instance) -> Instance:
    """The server whose usage so far is told. Spec: RBD-21."""
    return msgspec.structs.replace(instance, **run.request.before.fields())


NOTICES = announce(
    "rebuild", payload="InstanceActionRebuildPayload", version="1.9", exists=Phase.START, was=_original,
    fields=lambda run, _instance: {"trusted_image_certificates": run.request.after.trusted_certs},
    usage=lambda run, _instance: {"image_name": run.request.after.image.name if run.request.after.image else ""},
)

PREPARE = OnHost(
    "prepare disks", host_of, PREPARE_DISKS,
    lambda run: PrepareArgs(guest=guest_anew(run), keep_ephemeral=run.request.keep_ephemeral),
    undo=RESTORE_DISKS, undo_args=_guest_ref, timeout=1800, undo_owed=True,
)
"""The new disks are made beside the old ones."""
TAKE_AWAY = (
    OnHost("power off", host_of, POWER_OFF, _power_off_args,
           undo=NoUndo("a guest that went off stays off; the server is in ERROR then"), timeout=900),
    OnHost("forget guest", host_of, DESTROY, _guest_ref,
           undo=NoUndo("a hard reboot defines it again"), recorded=_mapping),
)
"""The old guest goes."""


def start_anew(guest: Callable[[Run[Any]], Guest]) -> tuple[OnHost, ...]:
    """The new guest comes. guest: as it is to be."""
    return (
        OnHost("replace disks", host_of, REPLACE_DISKS, lambda run: GuestArgs(guest(run)),
               undo=NoUndo("the undo of `prepare disks` brings the old ones back"), recorded=_spawning, timeout=1800),
        OnHost("start guest", host_of, SPAWN, lambda run: SpawnArgs(guest(run), paused=False),
               undo=DESTROY, undo_args=_guest_ref, timeout=600, undo_owed=True),
        OnHost("drop old disks", host_of, DROP_OLD_DISKS, _guest_ref,
               undo=NoUndo("they are gone for good"), owed=True),
    )


REBUILD = Operation(
    name="rebuild",
    action="rebuild",
    event="compute_rebuild_instance",
    notices=NOTICES,
    request=RebuildServer,
    begins=begin,
    steps=(
        Here("describe guest", _describe, undo=restore_image, undo_owed=True),
        PREPARE,
        *TAKE_AWAY,
        *start_anew(guest_anew),
    ),
    ends=rebuilt,
    fails=failed,
    scrub=without_secrets,
)
