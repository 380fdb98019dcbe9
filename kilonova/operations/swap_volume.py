"""Swap volume: move a running guest from one volume to another, for a volume service that migrates its volume.

The hypervisor copies the volume while the guest uses it, and keeps both alike until the guest changes over. Before that
moment everything can be undone, and the guest goes on with the old volume; after it the operation only goes forward.
Nobody but the volume service can have this done: it alone can prove that it migrates the volume, and it gives the data
of the new volume the name of the old one afterwards, so that the server keeps the volume that it knows.
"""

from __future__ import annotations

import contextlib
import uuid
from typing import Any

import msgspec

from kilonova.agent.steps.volume_copy import ABORT_COPY, AWAIT_COPY, PIVOT, START_COPY, CopyArgs
from kilonova.agent.steps.volumes import CHECK, AbilityArgs, Connector
from kilonova.agent.steps.watching import between_watches
from kilonova.db import block_devices, instances
from kilonova.db.journal import cell_journal
from kilonova.domain.block_device import AttachState
from kilonova.domain.errors import Conflict, InvalidInput, InvalidVolume, VolumeNotFound
from kilonova.domain.instance import Instance
from kilonova.domain.operation import Asker, Failure
from kilonova.domain.states import VmState
from kilonova.engine import submit
from kilonova.engine.debt import FOREVER
from kilonova.engine.operation import Here, NoUndo, OnHost, Operation, Record, Tx
from kilonova.engine.run import Run
from kilonova.hypervisor.volumes import GuestVolume, guest_volume
from kilonova.notifications.payloads import Payload
from kilonova.operations.environment import Environment
from kilonova.operations.notices import announce
from kilonova.operations.records import blame, check
from kilonova.operations.volumes import keep_connection
from kilonova.services.volumes import Volume

STATES = (VmState.ACTIVE, VmState.PAUSED, VmState.RESIZED)
CONNECT = "connect new volume"
"""The step after which the request can only fail because of the copy."""
MIGRATING = "migrating"
COPY_LIMIT = 24 * 3600.0
"""Seconds that the hypervisor may copy."""
ANSWER_LIMIT, ANSWER_TRIES = 3600.0, 100
"""Seconds for which the volume service is asked whether it migrates the volume, and how often."""
READS = NoUndo("changes nothing")
FORWARD = NoUndo("the guest uses the new volume")


class SwapVolume(msgspec.Struct, frozen=True):
    """volume_id: that the server has. new_volume_id: that it is to have in its place."""

    volume_id: str
    new_volume_id: str


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where the guest is, and what the record of its volume said. device: the uuid of the record."""

    host: str
    device: str
    attachment_id: str | None


class Checked(msgspec.Struct, frozen=True):
    """What is known of the new volume."""

    multiattach: bool


class Target(msgspec.Struct, frozen=True):
    """The new volume as it is served to the host. The guest knows it by the id of the old one."""

    attachment_id: str
    volume: GuestVolume


def refuse_unless_migrating(volume: Volume) -> None:
    """Proof that the volume service asks: what only it can set.

    Raises:
        Conflict. Spec: SWP-04, SWP-05, SWP-06, API-179.
    """
    if volume.migration_status != MIGRATING:
        raise Conflict(
            f"Volume {volume.id} is not being migrated by the volume service, which alone can let a server change from "
            "one volume to another. Migrate or retype the volume there (`openstack volume migrate`, `openstack volume "
            "set --type --retype-policy on-demand`), after its snapshots are deleted or made volumes of their own.",
        )


def refuse_other_size(volume: Volume, new: Volume) -> None:
    """A copy has the size of what it is a copy of. Raises InvalidInput. Spec: SWP-34."""
    if new.size != volume.size:
        raise InvalidInput(
            f"Volume {new.id} has {new.size} GiB and volume {volume.id} {volume.size} GiB: it cannot take its place."
        )


def ask(tx: Tx, server: Instance, request: SwapVolume) -> None:
    """Accept a swap for the volume service of this installation, once for each new volume however often it asks.

    Raises:
        Busy: another operation works on the server. Whatever `begins` raises.
    """
    id_ = str(uuid.uuid5(uuid.UUID(request.new_volume_id), server.uuid))
    if cell_journal.get(tx.conn, id_) is None:
        asker = Asker(project_id=server.project_id, user_id=server.user_id, request_id=f"req-{id_}")
        submit.submit(tx, cell_journal, SWAP_VOLUME, server.uuid, request, asker, operation_id=id_)


def _begin(tx: Tx, run: Run[SwapVolume]) -> None:
    """Spec: SWP-04, SWP-25."""
    asked = run.request
    check(tx, run.subject, action="swap_volume", vm=STATES, needs_host=True)
    device = block_devices.of_volume(tx.conn, run.subject, asked.volume_id)
    if device.state is not AttachState.ATTACHED or device.connection_info is None:
        raise InvalidVolume(f"Invalid volume: volume {asked.volume_id} is {device.state.value} and not attached.")
    if any(one.volume_id == asked.new_volume_id for one in block_devices.of_server(tx.conn, run.subject)):
        raise InvalidVolume(f"Invalid volume: server {run.subject} has volume {asked.new_volume_id} already.")


def _look(tx: Tx, run: Run[SwapVolume]) -> Place:
    host = instances.get(tx.conn, run.subject).host
    assert host is not None
    device = block_devices.of_volume(tx.conn, run.subject, run.request.volume_id)
    return Place(host=host, device=device.uuid, attachment_id=device.attachment_id)


async def _check(env: Environment, run: Run[SwapVolume]) -> Checked:
    """Before anything is changed, also at the volume service: it is told nothing of what it has not asked for. Spec:
    SWP-04, SWP-09, SWP-11, SWP-33."""
    volume = await env.volumes.volume(None, run.request.volume_id)
    new = await env.volumes.volume(None, run.request.new_volume_id)
    refuse_unless_migrating(volume)
    if new.attachments:
        raise InvalidVolume(f"Invalid volume: volume {new.id} is in use.")
    return Checked(new.multiattach)


async def _begin_detaching(env: Environment, run: Run[SwapVolume]) -> None:
    """Nobody else detaches it then, or migrates it. Spec: EMV-30."""
    await env.volumes.begin_detaching(run.request.volume_id)


async def _give_up(env: Environment, run: Run[SwapVolume]) -> None:
    """The old volume is in use as before, and the volume service hears that the new one is not used. Each is tried,
    whatever becomes of the other. Spec: SWP-22, SWP-24, SWP-29, SWP-30, SWP-36."""
    asked = run.request
    try:
        await env.volumes.roll_detaching(asked.volume_id)
    finally:
        with contextlib.suppress(VolumeNotFound, InvalidVolume):  # it does not migrate there any more
            if (await env.volumes.volume(None, asked.volume_id)).migration_status == MIGRATING:
                await env.volumes.migration_completed(asked.volume_id, asked.new_volume_id, error=True)


async def _connect(env: Environment, run: Run[SwapVolume]) -> Target:
    """The guest knows the new volume by the id of the old one. Spec: SWP-03, SWP-12, SWP-34."""
    asked, place = run.request, run.output(Place)
    volume = await env.volumes.volume(None, asked.volume_id)
    refuse_other_size(volume, await env.volumes.volume(None, asked.new_volume_id))
    device = await env.database.read(lambda conn: block_devices.get(conn, place.device))
    connector: dict[str, Any] = run.output(Connector).connector | {"mountpoint": device.device_name}
    made = await env.volumes.create_attachment(asked.new_volume_id, run.subject, (), connector=connector)
    info = msgspec.json.encode(made.connection_info).decode() if made.connection_info is not None else None
    return Target(made.id, guest_volume(msgspec.structs.replace(device, connection_info=info)))


async def _disconnect(env: Environment, run: Run[SwapVolume]) -> None:
    """Whatever this operation has made of it, found by asking. Spec: SWP-22, SWP-31."""
    await env.volumes.discard_attachments(run.request.new_volume_id, run.subject, ())


def _copy_args(run: Run[SwapVolume]) -> CopyArgs:
    return CopyArgs(run.subject, run.request.volume_id, run.output(Target).volume)


async def _record(env: Environment, run: Run[SwapVolume]) -> None:
    """The first thing after the guest has changed over, in one transaction: by what it is reached now. Until then the
    operation has the server to itself. Spec: SWP-03, SWP-14, SWP-20, SWP-28, SWP-37."""
    known, attachment = run.request.volume_id, await env.volumes.attachment(run.output(Target).attachment_id)
    info = attachment.connection_info or {}
    own = {name: known for name in ("volume_id", "serial") if name in info}
    await keep_connection(
        env, run.output(Place).device,
        msgspec.structs.replace(attachment, volume_id=known, connection_info=info | own),
        source_type="volume", destination_type="volume", snapshot_id=None,
    )


async def _complete(env: Environment, run: Run[SwapVolume]) -> None:
    """Spec: SWP-16, SWP-27."""
    await env.volumes.complete_attachment(run.output(Target).attachment_id)


async def _release(env: Environment, run: Run[SwapVolume]) -> None:
    """The volume service removes the data of the old volume only after nobody is connected to them. Spec: SWP-02,
    SWP-17, SWP-19, SWP-28."""
    asked, place = run.request, run.output(Place)
    if place.attachment_id is not None:
        await env.volumes.delete_attachment(place.attachment_id)
    kept = await env.volumes.migration_completed(asked.volume_id, asked.new_volume_id, error=False)
    if kept != asked.volume_id:
        now = env.clock.now()
        await env.database.write(lambda conn: block_devices.update(
            conn, place.device, now=now, was=tuple(AttachState), volume_id=kept
        ))


def _swapped(_tx: Tx, _run: Run[SwapVolume]) -> None:
    return None


def _failed(tx: Tx, run: Run[SwapVolume], failure: Failure) -> None:
    """The record of the volume was not touched. Spec: SWP-25."""
    blame(tx, run, failure)


def _told(run: Run[SwapVolume], _instance: Instance) -> Payload:
    """Spec: SWP-08, SWP-21."""
    return {"old_volume_id": run.request.volume_id, "new_volume_id": run.request.new_volume_id}


def _host(run: Run[SwapVolume]) -> str:
    return run.output(Place).host


SWAP_VOLUME = Operation(
    name="swap-volume",
    action="swap_volume",
    event="compute_swap_volume",
    notices=announce(
        "volume_swap", older=None, fields=_told, payload="InstanceActionVolumeSwapPayload", version="1.8",
    ),
    request=SwapVolume,
    waited_for=True,
    begins=_begin,
    no_return="pivot",
    steps=(
        Record("look", _look, undo=READS),
        Here("check volumes", _check, undo=READS, timeout=ANSWER_LIMIT, retries=ANSWER_TRIES),
        Here("begin detaching", _begin_detaching, undo=_give_up, undo_owed=True),
        OnHost("check host", _host, CHECK, lambda run: AbilityArgs(multiattach=run.output(Checked).multiattach),
               undo=READS),
        Here(CONNECT, _connect, undo=_disconnect, undo_owed=True),
        OnHost("start copy", _host, START_COPY, _copy_args, undo=ABORT_COPY),
        OnHost("copy", _host, AWAIT_COPY, _copy_args, undo=NoUndo("the copy is ended as a whole"), timeout=COPY_LIMIT,
               retries=2**31, pause=between_watches),
        OnHost("pivot", _host, PIVOT, _copy_args, timeout=FOREVER, retries=2**31,
               undo=NoUndo("the undo of the copy finds out which volume the guest uses")),
        Here("record new volume", _record, undo=FORWARD, persistent=True),
        Here("complete attachment", _complete, undo=FORWARD, retries=10, owed=True),
        Here("release old volume", _release, undo=FORWARD, owed=True),
    ),
    ends=_swapped,
    fails=_failed,
)
