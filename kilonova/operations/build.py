"""Build: make the guest of a new server on the host that was chosen, or on an alternate.

The server was recorded by `place`, which also claimed the first host. Here the interfaces are allocated, the
disks made, the guest started; if a host cannot do it, everything of that host is undone and the next alternate
is claimed. A delete that comes in at any moment cancels the build, which undoes what it did.
"""

from __future__ import annotations

import math

import msgspec

from kilonova.agent.steps.power import (
    CREATE_DISKS,
    DESTROY,
    REMOVE,
    RESUME,
    SPAWN,
    DisksMade,
    GuestArgs,
    GuestRef,
    Powered,
    SpawnArgs,
)
from kilonova.db import instances
from kilonova.domain.errors import InstanceNotFound, Retryable, ServiceUnavailable, StaleState
from kilonova.domain.instance import InjectedFile, Instance, RequestSpec
from kilonova.domain.network import Vif
from kilonova.domain.operation import EntryState, Failure
from kilonova.domain.states import PowerState, TaskState, VmState
from kilonova.engine.operation import Await, Here, NoUndo, OnHost, Operation, Record, Tx
from kilonova.engine.run import Run
from kilonova.hypervisor.guest import Guest
from kilonova.notifications import payloads
from kilonova.notifications.payloads import Payload
from kilonova.operations.accelerators import AcceleratorSteps, devices_of
from kilonova.operations.build_volumes import PREPARING, has_none, making, shared, with_kept_volumes
from kilonova.operations.connect_volumes import VolumeSteps, attached, volumes_of
from kilonova.operations.environment import Environment
from kilonova.operations.guests import guest_of, with_volumes
from kilonova.operations.network_allocation import ALLOCATION_LIMIT, allocate, allocation_pause
from kilonova.operations.notices import announce, announce_part
from kilonova.operations.port_resources import tell_ports
from kilonova.operations.records import fail, give_back, settle
from kilonova.operations.wiring import wired_events
from kilonova.services.placement import Target
from kilonova.shapes.host import Layout
from kilonova.shapes.port_devices import with_own_devices

BUILD_TASKS = (
    TaskState.SCHEDULING, TaskState.NETWORKING, TaskState.BLOCK_DEVICE_MAPPING, TaskState.SPAWNING, None,
)


class BuildServer(msgspec.Struct, frozen=True, kw_only=True):
    """What to build.

    Args:
        targets: the claimed host first, then the alternates.
        wiring_timeout: seconds to wait for the interfaces; 0 does not wait. wiring_is_fatal: fail without them.
        binding_timeout: seconds in which the accelerators of the server must be bound.
        network_retries: further attempts at allocating the interfaces, if an error may pass.
        time_limit: seconds after the server was asked for that its build may take; 0 for no limit.
    """

    instance: Instance
    spec: RequestSpec
    targets: tuple[Target, ...]
    config_drive: bool = False
    admin_password: str = ""
    injected_files: tuple[InjectedFile, ...] = ()
    wiring_timeout: float = 300.0
    binding_timeout: float = 300.0
    wiring_is_fatal: bool = True
    access_network: str = ""
    network_retries: int = 2
    time_limit: float = 0.0


class Allocated(msgspec.Struct, frozen=True):
    """The interfaces of the server, and its place on the host."""

    vifs: tuple[Vif, ...]
    layout: Layout | None = None


def _target(run: Run[BuildServer]) -> Target:
    return run.request.targets[run.round]


def _guest(run: Run[BuildServer]) -> Guest:
    request = run.request
    target = _target(run)
    instance = msgspec.structs.replace(request.instance, availability_zone=target.availability_zone or None)
    allocated = run.output(Allocated)
    guest = guest_of(
        instance, allocated.vifs, layout=allocated.layout, config_drive=request.config_drive,
        admin_password=request.admin_password, files=request.injected_files, devices=devices_of(run),
        volumes=[device for device in instance.block_devices if device.is_volume],
    )
    return with_volumes(guest, volumes_of(run))


def _ref(run: Run[BuildServer]) -> GuestRef:
    allocated = run.find(Allocated)
    return GuestRef(uuid=run.subject, devnames=tuple(v.devname for v in allocated.vifs) if allocated else ())


def _guest_may_be_left(run: Run[BuildServer]) -> bool:
    """The host of this round could not be brought to say that no guest is left there. Then the server keeps host,
    claim and ports, so that a delete goes there. Spec: BLD-81, BLD-82, BLD-115."""
    undo = run.entry("start guest", undo=True)
    return undo is not None and undo.state is EntryState.OWED


async def _claim(env: Environment, run: Run[BuildServer]) -> None:
    """Hold the alternate of this round. A service that is away is no fault of the host. Spec: BLD-100."""
    try:
        await env.placement.claim(run.request.spec, _target(run))
    except ServiceUnavailable as error:
        raise Retryable(error.message) from error


async def _release(env: Environment, run: Run[BuildServer]) -> None:
    """Give back what is held of this round's host and of no other, unless the record says that the server is there:
    a build that never owned it gives nothing back. Spec: BLD-57, BLD-61, BLD-70, BLD-81."""
    target = _target(run)
    try:
        record = await env.database.read(lambda conn: instances.get(conn, run.subject))
    except InstanceNotFound:
        record = None
    if record is None or record.host != target.host:
        await env.placement.release(run.subject, target.provider)
    failure = run.record.failure
    if failure is not None and _blames_host(failure) and env.options.consecutive_build_service_disable_threshold:
        await env.placement.count_build(target, failed=True)


def _blames_host(failure: Failure) -> bool:
    """What another host might have done, unless this one was never tried. Spec: BLD-48."""
    return failure.elsewhere and not failure.cancelled and failure.step != "claim host"


async def _clear_failures(env: Environment, run: Run[BuildServer]) -> None:
    """The host has shown that it can build. Spec: BLD-47, BLD-104."""
    await env.placement.count_build(_target(run), failed=False)


def _go_to_host(tx: Tx, run: Run[BuildServer]) -> None:
    """From here on the record names the host. Only a server that waits to be built is taken. Spec: BLD-61, BLD-88,
    INI-180."""
    target = _target(run)
    if instances.get(tx.conn, run.subject).host is not None:
        raise StaleState(f"Instance {run.subject} has a host already.")
    settle(
        tx, run, owned=PREPARING, vm=(VmState.BUILDING,), task_state=TaskState.NETWORKING,
        host=target.host, node=target.node, launched_on=target.host,
        availability_zone=target.availability_zone or None,
    )


def _leave_host(tx: Tx, run: Run[BuildServer]) -> None:
    """Only after nothing is left there. A record that a delete or a reset has taken keeps its states. Spec: BLD-66,
    BLD-68, BLD-81, FND-32, FND-34."""
    if _guest_may_be_left(run):
        return
    try:
        instance = instances.get(tx.conn, run.subject)
    except InstanceNotFound:
        return
    owned = instance.vm_state is VmState.BUILDING and instance.task_state in BUILD_TASKS
    instances.update(
        tx.conn, run.subject, now=tx.now, task_state=TaskState.SCHEDULING if owned else instance.task_state,
        host=None, node=None, launched_on=None, availability_zone=None,
    )


async def _allocate(env: Environment, run: Run[BuildServer]) -> Allocated:
    target = _target(run)
    vifs = await allocate(env.networks, run.request.spec, target.host, target.availability_zone)
    await tell_ports(env, run.subject, run.request.spec.port_needs)
    layout = await env.placement.layout(run.subject, target.host)
    return Allocated(with_own_devices(vifs, layout.devices if layout is not None else ()), layout)


async def _deallocate(env: Environment, run: Run[BuildServer]) -> None:
    """Delete what was made, unbind what the user brought. Found by asking, never by a flag. A release that was owed
    may come when another host has the ports already: those stay. Spec: BLD-82, NET-09, NET-16, NET-18, NET-20."""
    if run.request.spec.requested_networks == () or _guest_may_be_left(run):
        return
    brought = tuple(r.port_id for r in run.request.spec.requested_networks or () if r.port_id)
    await env.networks.release(run.subject, brought, _target(run).host)


def _networked(tx: Tx, run: Run[BuildServer]) -> None:
    vifs = run.output(Allocated).vifs
    settle(tx, run, owned=(TaskState.NETWORKING,), task_state=TaskState.BLOCK_DEVICE_MAPPING, network_info=vifs)


def _forget_networks(tx: Tx, run: Run[BuildServer]) -> None:
    if not _guest_may_be_left(run):
        give_back(tx, run, owned=(*BUILD_TASKS, TaskState.DELETING), network_info=())


def _spawning(tx: Tx, run: Run[BuildServer]) -> None:
    """The record names the root device: as asked for, or as the host does. Spec: BDM-11, BDM-15."""
    devices = run.request.spec.block_devices
    asked = next((device.device_name for device in devices if device.boot_index == 0), None)
    settle(tx, run, owned=(TaskState.BLOCK_DEVICE_MAPPING,), task_state=TaskState.SPAWNING,
           root_device_name=asked or run.output(DisksMade).root_device_name)


def _waits_for_wiring(run: Run[BuildServer]) -> bool:
    return bool(_wired_events(run))


def _wired_events(run: Run[BuildServer]) -> tuple[str, ...]:
    return wired_events(run.output(Allocated).vifs, run.request.wiring_timeout)


def _built(tx: Tx, run: Run[BuildServer]) -> None:
    """Spec: BLD-35, BLD-37, BLD-89 to BLD-91."""
    attached(tx, run.subject)
    powered = run.find(Powered)
    vifs = tuple(msgspec.structs.replace(v, active=True) for v in run.output(Allocated).vifs)
    addresses: dict[str, str] = {}
    instance = run.request.instance
    if run.request.access_network and not instance.access_ip_v4 and not instance.access_ip_v6:
        addresses = _access_addresses(vifs, run.request.access_network)
    settle(
        tx, run, owned=(TaskState.SPAWNING,), vm_state=VmState.ACTIVE, task_state=None, launched_at=tx.now,
        power_state=powered.power_state if powered else PowerState.RUNNING, network_info=vifs,
        config_drive="True" if run.request.config_drive else "", **addresses,
    )


def _access_addresses(vifs: tuple[Vif, ...], network: str) -> dict[str, str]:
    """First address of each version on the first interface of that network."""
    found: dict[str, str] = {}
    for vif in vifs:
        if vif.network_name == network:
            for fixed in vif.fixed_ips:
                found.setdefault(f"access_ip_v{fixed.subnet.version}", fixed.address)
            break
    return found


def _failed(tx: Tx, run: Run[BuildServer], failure: Failure) -> None:
    """ERROR with the reason, if it is still being built; the host was left when the undo ended. Spec: BLD-61, BLD-63,
    BLD-67, BLD-75, BLD-78, FND-38."""
    failure = with_kept_volumes(tx, run, failure)
    fail(tx, run, failure, owned=BUILD_TASKS, vm=(VmState.BUILDING,), vm_state=VmState.ERROR)


def _rounds(run: Run[BuildServer]) -> int:
    return len(run.request.targets)


def _deadline(run: Run[BuildServer]) -> float:
    """Spec: BLD-21, BLD-22."""
    limit = run.request.time_limit
    return run.request.instance.created_at + limit if limit > 0 else math.inf


def _without_secrets(request: BuildServer) -> BuildServer:
    """Passwords and files leave the journal with the end of the build. Spec: BLD-06."""
    instance = msgspec.structs.replace(request.instance, user_data=None)
    return msgspec.structs.replace(request, admin_password="", injected_files=(), instance=instance)


def _told(run: Run[BuildServer], instance: Instance) -> Payload:
    """What notifications tell of a new server beside the usual."""
    key = payloads.keypair(user_id=instance.user_id, name=instance.key_name or "", fingerprint="",
                           public_key=instance.key_data or "")
    certificates = run.request.spec.trusted_certs
    return {
        "keypairs": [key] if instance.key_name else [], "tags": list(instance.tags),
        "trusted_image_certificates": list(certificates) or None, "instance_name": instance.display_name,
    }


def _told_as_usage(run: Run[BuildServer], _instance: Instance) -> Payload:
    """Spec: BLD-83, BLD-84."""
    failure = run.record.failure
    return {
        "image_name": run.request.spec.image.name,
        "message": failure.message if failure is not None else "Success" if run.record.entries else "",
    }


ACCELERATORS = AcceleratorSteps(
    spec=lambda run: run.request.spec, target=_target, timeout=lambda run: run.request.binding_timeout,
    stays=_guest_may_be_left,
)
VOLUMES = VolumeSteps(
    host=lambda run: _target(run).host, without=has_none, stays=_guest_may_be_left, multiattach=shared,
)

BUILD = Operation(
    name="build",
    action="create",
    event="compute__do_build_and_run_instance",
    notices=(
        *announce("create", host=lambda run, _instance: _target(run).host, fields=_told, usage=_told_as_usage,
                  payload="InstanceCreatePayload", version="1.12"),
        *announce_part("shutdown", "start guest", undo=True),
    ),
    request=BuildServer,
    again_from="claim host",
    rounds=_rounds,
    deadline=_deadline,
    steps=(
        Here("claim host", _claim, undo=_release, given=lambda run: run.round == 0, undo_owed=True),
        *making(stays=_guest_may_be_left),
        Record("go to host", _go_to_host, undo=_leave_host),
        Here("allocate networks", _allocate, undo=_deallocate, recorded=_networked, undone=_forget_networks,
             timeout=ALLOCATION_LIMIT, retries=lambda run: run.request.network_retries, pause=allocation_pause,
             undo_owed=True),
        *ACCELERATORS.request,
        *VOLUMES.connect,
        OnHost("create disks", lambda run: _target(run).host, CREATE_DISKS, lambda run: GuestArgs(_guest(run)),
               undo=REMOVE, undo_args=_ref, recorded=_spawning, timeout=1800, undo_owed=True),
        *ACCELERATORS.wait,
        OnHost("start guest", lambda run: _target(run).host, SPAWN,
               lambda run: SpawnArgs(_guest(run), paused=_waits_for_wiring(run)),
               undo=DESTROY, undo_args=_ref, timeout=600, undo_owed=True, binds=True),
        Await("wait for wiring", _wired_events, timeout=lambda run: run.request.wiring_timeout,
              fatal=lambda run: run.request.wiring_is_fatal),
        OnHost("let guest run", lambda run: _target(run).host if _waits_for_wiring(run) else None, RESUME, _ref,
               undo=NoUndo("the guest's start is undone as a whole")),
        *VOLUMES.complete,
        Here("clear failures", _clear_failures, undo=NoUndo("a number"), owed=True,
             given=lambda run: not _target(run).failing),
    ),
    ends=_built,
    fails=_failed,
    scrub=_without_secrets,
)
