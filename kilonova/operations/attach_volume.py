"""Attach volume: give a server a volume, at once if it has a host, else when it is unshelved.

The server's record of the volume is made when the request is accepted, with the name of the device. The volume is
reserved for the server and served to its host, then the guest gets it, then the volume service is told so. Whatever
fails, the guest lets go of the volume before it is served no longer, and the record of it goes.
"""

from __future__ import annotations

import msgspec
import sqlalchemy as sa

from kilonova.agent.steps.volumes import ATTACH, CHECK, DETACH, AbilityArgs, AttachArgs, Connector, VolumeRef
from kilonova.db import block_devices, instances
from kilonova.db.journal import cell_journal
from kilonova.domain.block_device import AttachState, BlockDevice
from kilonova.domain.errors import InvalidInput, TooManyDisks, Unreachable
from kilonova.domain.instance import Instance
from kilonova.domain.operation import Failure
from kilonova.domain.states import VmState
from kilonova.engine.debt import is_owed
from kilonova.engine.operation import Here, NoUndo, OnHost, Operation, Record, Tx
from kilonova.engine.run import Run
from kilonova.notifications.payloads import Payload
from kilonova.operations.environment import Environment
from kilonova.operations.guests import Described, describe_as_is
from kilonova.operations.notices import announce
from kilonova.operations.records import blame, check
from kilonova.operations.volumes import keep_connection, named, refuse_local_name
from kilonova.shapes.disk_names import local_names

SHELVED = (VmState.SHELVED, VmState.SHELVED_OFFLOADED)
STATES = (VmState.ACTIVE, VmState.PAUSED, VmState.STOPPED, VmState.RESIZED, VmState.SOFT_DELETED, *SHELVED)
CONNECT = "connect volume"
"""The step after which the volume is the server's."""
GIVE = "attach volume"
READS = NoUndo("changes nothing")


class AttachVolume(msgspec.Struct, frozen=True, kw_only=True):
    """What to attach.

    Args:
        device_name: wanted, for example `/dev/vdb`; None for the next that is free.
        multiattach: several servers may have the volume.
    """

    volume_id: str
    device_name: str | None = None
    tag: str | None = None
    delete_on_termination: bool = False
    multiattach: bool = False


class Place(msgspec.Struct, frozen=True):
    """Where the server is; None for nowhere."""

    host: str | None


class Connected(msgspec.Struct, frozen=True):
    """The attachment that the volume service has made."""

    attachment_id: str


def _begin(tx: Tx, run: Run[AttachVolume]) -> None:
    """The record of the volume, made on the server's record as it is when its turn has come. The database has no second
    one of the same name or volume. Spec: VOL-03, VOL-04, RBN-03, RBN-05, RBN-08, RBN-10."""
    wanted = run.request
    instance = check(tx, run.subject, action="attach_volume", vm=STATES)
    if instance.host is None and (wanted.tag is not None or wanted.multiattach):
        what = "with a tag" if wanted.tag is not None else "that several servers may have"
        raise InvalidInput(f"A volume {what} cannot be attached to a server that has no host.", hint="unshelve it")
    device = BlockDevice(
        uuid=run.id, source_type="volume", destination_type="volume", volume_id=wanted.volume_id,
        device_name=wanted.device_name, tag=wanted.tag, delete_on_termination=wanted.delete_on_termination,
        state=AttachState.ATTACHING,
    )
    device = named(tx, instance, device)
    refuse_local_name(tx, instance, device)
    block_devices.insert(tx.conn, run.subject, device, now=tx.now)


def _find_place(tx: Tx, run: Run[AttachVolume]) -> Place:
    return Place(instances.get(tx.conn, run.subject).host)


async def _connect(env: Environment, run: Run[AttachVolume]) -> Connected:
    """The reservation is the guard against others who want the volume. What is needed to reach it is kept before the
    guest is touched. What was left of the volume before goes first, for it is found as what no record names.

    Spec: VOL-06, VOL-08, VOL-29.
    """
    await env.database.read(lambda conn: _check_place(conn, run, env.options.max_disk_devices_to_attach))
    connector = None
    if run.output(Place).host is not None:
        device = await env.database.read(lambda conn: block_devices.get(conn, run.id))
        connector = run.output(Connector).connector | {"mountpoint": device.device_name}
    made = await env.volumes.create_attachment(run.request.volume_id, run.subject, (), connector=connector)
    await keep_connection(env, run.id, made)
    return Connected(made.id)


def _check_place(conn: sa.Connection, run: Run[AttachVolume], most: int) -> None:
    """Raises TooManyDisks: the server has as many disks as it may have. Unreachable: something is still owed to it."""
    instance, volumes = instances.get(conn, run.subject), block_devices.of_server(conn, run.subject)
    local = local_names(volumes, flavor=instance.flavor, image=instance.image, asked=instance.block_devices)
    if 0 <= most < len(volumes) + len(local):
        raise TooManyDisks(f"The maximum allowed number of disk devices ({most}) to attach to a single instance has "
                           "been exceeded.")
    if cell_journal.owes(conn, run.subject, run.record.created_at):
        raise Unreachable(f"What was to be taken from instance {run.subject} before is not gone yet.")


async def _release(env: Environment, run: Run[AttachVolume]) -> None:
    """Whatever this operation has made of it, found by asking. As long as the guest may have it, it is not released:
    that would take it away from under the guest. Spec: VOL-20, VOL-23, VOL-25, VOL-27."""
    if await env.database.read(lambda conn: is_owed(conn, cell_journal, run.record, GIVE, undo=True)):
        raise Unreachable(f"The guest of instance {run.subject} has not let go of the volume yet.")
    await env.volumes.discard_attachments(run.request.volume_id, run.subject, ())


def _offloaded(run: Run[AttachVolume]) -> bool:
    return run.output(Place).host is None


async def _complete(env: Environment, run: Run[AttachVolume]) -> None:
    """Without a host, too: the volume is in use then, as who waits for it expects, and connected when the server is
    unshelved. Spec: VOL-25, VOL-28, EMV-17."""
    await env.volumes.complete_attachment(run.output(Connected).attachment_id)


def _attached(tx: Tx, run: Run[AttachVolume]) -> None:
    state = AttachState.RESERVED if _offloaded(run) else AttachState.ATTACHED
    block_devices.update(tx.conn, run.id, now=tx.now, was=(AttachState.ATTACHING,), state=state)


def _failed(tx: Tx, run: Run[AttachVolume], failure: Failure) -> None:
    """The server is as it was. Spec: VOL-01, VOL-22, RBN-09."""
    block_devices.remove(tx.conn, run.id)
    blame(tx, run, failure)


def told_of_volume(run: Run[AttachVolume], _instance: Instance) -> Payload:
    """Spec: VOL-16."""
    return {"volume_id": run.request.volume_id}


ATTACH_VOLUME = Operation(
    name="attach-volume",
    action="attach_volume",
    event="compute_attach_volume",
    notices=announce(
        "volume_attach", older="volume.attach", once=True, fields=told_of_volume, usage=told_of_volume,
        payload="InstanceActionVolumePayload", version="1.6",
    ),
    request=AttachVolume,
    waited_for=True,
    begins=_begin,
    steps=(
        Record("find place", _find_place, undo=READS),
        OnHost("check host", lambda run: run.output(Place).host, CHECK,
               lambda run: AbilityArgs(tagged=run.request.tag is not None, multiattach=run.request.multiattach),
               undo=READS),
        Here(CONNECT, _connect, undo=_release, undo_owed=True),
        Here("describe guest", describe_as_is, undo=READS, given=_offloaded),
        OnHost(GIVE, lambda run: run.output(Place).host, ATTACH,
               lambda run: AttachArgs(run.output(Described).guest, run.request.volume_id),
               undo=DETACH, undo_args=lambda run: VolumeRef(run.subject, run.request.volume_id), undo_owed=True),
        Here("complete attachment", _complete, undo=NoUndo("the attachment is deleted"), retries=10),
    ),
    ends=_attached,
    fails=_failed,
)
