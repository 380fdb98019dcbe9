"""Place: choose a host for a new server, claim it, and hand the server over to the host's cell.

Runs over the API database, where the build request waits. A server that cannot be placed is buried: it appears in
the first cell in ERROR, with the reason. A delete that comes in first removes the build
request; then the hand-over finds it gone and everything made so far is undone: the server never comes back.
"""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
import sqlalchemy as sa

from kilonova.db import block_devices, build_requests, instances
from kilonova.db.journal import api_journal, cell_journal
from kilonova.domain.errors import Conflict, InstanceNotFound, NoValidHost
from kilonova.domain.instance import BuildRequest, Fault
from kilonova.domain.operation import Failure, OperationRecord, OperationState
from kilonova.domain.states import VmState
from kilonova.engine import submit
from kilonova.engine.operation import Here, NoUndo, Operation, Record, Tx
from kilonova.engine.run import Run
from kilonova.notifications.changes import tell_unplaced
from kilonova.operations.build import BUILD, BuildServer
from kilonova.operations.environment import PlacingEnvironment
from kilonova.operations.guests import wants_config_drive
from kilonova.services.placement import Target


class PlaceServer(msgspec.Struct, frozen=True, kw_only=True):
    """The server to place."""

    request: BuildRequest


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """Where it goes: the claimed host first; none, and the reason, if no host can take it."""

    targets: tuple[Target, ...]
    cell: str
    reason: str = ""


class HandedOver(msgspec.Struct, frozen=True):
    """changed: JSON of the record's fields that differ from the request that was journaled."""

    changed: msgspec.Raw


CHANGEABLE = (
    "display_name", "display_description", "hostname", "metadata", "tags", "locked_by", "locked_reason",
    "access_ip_v4", "access_ip_v6", "auto_disk_config",
)
"""Fields that the API may change while a server waits to be placed."""


def build_id(place_id: str) -> str:
    """The id of the build that a placing leads to: the same however often it is repeated."""
    return str(uuid.uuid5(uuid.UUID(place_id), "build"))


async def _choose(env: PlacingEnvironment, run: Run[PlaceServer]) -> Chosen:
    spec = run.request.request.spec
    cell = env.cells.all[0].name
    limit = env.options.instance_build_timeout
    if limit > 0 and env.clock.now() >= run.request.request.instance.created_at + limit:  # Spec: BLD-26
        await env.placement.release(run.subject)
        return Chosen(targets=(), cell=cell, reason="No host was chosen in time.")
    try:
        targets = await env.scheduler.place(spec, alternates=env.options.max_attempts - 1)
    except NoValidHost as error:
        return Chosen(targets=(), cell=cell, reason=error.message)
    return Chosen(targets=targets, cell=cell)


async def _unclaim(env: PlacingEnvironment, run: Run[PlaceServer]) -> None:
    await env.placement.release(run.subject)


async def _record(env: PlacingEnvironment, run: Run[PlaceServer]) -> None:
    """The record appears in the cell, with its build held back; or in ERROR, if no host can take it."""
    chosen = run.output(Chosen)
    request = run.request.request
    cell = env.cells.named(chosen.cell)
    now = env.clock.now()
    if chosen.targets:
        await cell.database.write(lambda conn: _insert_building(Tx(conn, now), env, run, chosen))
        return

    await _bury(env, run, request, chosen.reason)


async def _bury(env: PlacingEnvironment, run: Run[Any], request: BuildRequest, reason: str) -> None:
    """A server that will not be built: its record in the first cell, in ERROR, with the build that never began."""
    now = env.clock.now()
    failure = Failure(kind="NoValidHost", message=reason, step="choose host")
    failed = msgspec.structs.replace(request.instance, vm_state=VmState.ERROR, task_state=None, updated_at=now)
    history = _operation(run, OperationState.FAILED, now, failure)

    def insert(conn: sa.Connection) -> None:
        instances.insert(conn, failed)
        instances.add_fault(conn, failed.uuid, history.id, Fault(code=500, message=reason, created_at=now))
        if cell_journal.get(conn, history.id) is None:
            cell_journal.insert(conn, history, wake_at=None)
            tell_unplaced(conn, request, failure, now=now, asker=run.record.asker)

    await env.cells.all[0].database.write(insert)


def _insert_building(tx: Tx, env: PlacingEnvironment, run: Run[PlaceServer], chosen: Chosen) -> None:
    request, options = run.request.request, env.options
    instances.insert(tx.conn, request.instance)
    for device in request.instance.block_devices:
        if device.is_volume:
            block_devices.insert(tx.conn, request.instance.uuid, device, now=tx.now)
    if cell_journal.get(tx.conn, build_id(run.id)) is None:
        build = BuildServer(
            instance=request.instance, spec=request.spec, targets=chosen.targets,
            config_drive=wants_config_drive(request.instance, options, request.injected_files),
            admin_password=request.admin_password, injected_files=request.injected_files,
            wiring_timeout=options.vif_plugging_timeout, wiring_is_fatal=options.vif_plugging_is_fatal,
            binding_timeout=options.arq_binding_timeout, access_network=options.default_access_ip_network_name,
            network_retries=options.network_allocate_retries, time_limit=options.instance_build_timeout,
        )
        submit.submit(
            tx, cell_journal, BUILD, run.subject, build, run.record.asker, held=True,
            operation_id=build_id(run.id),
        )


def _operation(run: Run[Any], state: OperationState, now: float, failure: Failure) -> OperationRecord:
    """The build that never began, as the server's history tells it."""
    return OperationRecord(
        id=build_id(run.id), kind=BUILD.name, version=BUILD.version, subject=run.subject, state=state,
        exclusive=True, asker=run.record.asker, failure=failure, created_at=run.record.created_at, updated_at=now,
        finished_at=now,
    )


async def _unrecord(env: PlacingEnvironment, run: Run[PlaceServer]) -> None:
    """The server was deleted while it was placed: its record goes without a trace. Spec: DEL-50."""
    now = env.clock.now()

    def remove(conn: sa.Connection) -> None:
        tx = Tx(conn, now)
        submit.drop_held(tx, cell_journal, BUILD, build_id(run.id), "the server was deleted before it was built")
        instances.erase(conn, run.subject)

    await env.cells.named(run.output(Chosen).cell).database.write(remove)


def _hand_over(tx: Tx, run: Run[PlaceServer]) -> HandedOver:
    """One atomic step: the build request goes and the mapping names the cell. Spec: DEL-49 to DEL-51."""
    request = build_requests.consume(tx.conn, run.subject, run.output(Chosen).cell)
    if request is None:
        raise Conflict(f"Server {run.subject} was deleted before it was built.")
    before, after = run.request.request.instance, request.instance
    changed = {name: getattr(after, name) for name in CHANGEABLE if getattr(after, name) != getattr(before, name)}
    return HandedOver(changed=msgspec.Raw(msgspec.json.encode(changed)))


async def _let_build(env: PlacingEnvironment, run: Run[PlaceServer]) -> None:
    """The record takes over what its user changed while it was placed; then the build begins."""
    chosen = run.output(Chosen)
    changed = msgspec.json.decode(run.output(HandedOver).changed)
    now = env.clock.now()

    def release(conn: sa.Connection) -> None:
        if changed:
            instance = instances.get(conn, run.subject)
            merged = msgspec.convert(msgspec.to_builtins(instance) | changed, type(instance))
            instances.update(conn, run.subject, now=now, **{name: getattr(merged, name) for name in changed})
        if chosen.targets:
            submit.release(Tx(conn, now), cell_journal, build_id(run.id))

    await env.cells.named(chosen.cell).database.write(release)
    if chosen.targets:
        env.wake(chosen.cell)


def _nothing(_tx: Tx, _run: Run[Any]) -> None:
    return None


def _given_up(tx: Tx, run: Run[PlaceServer], failure: Failure) -> None:
    """A server that was deleted goes with what remains of its request; any other must not vanish."""
    if failure.cancelled:
        build_requests.discard(tx.conn, run.subject)
    elif build_requests.get(tx.conn, run.subject) is not None:
        reason = f"The server could not be placed. {failure.message}"
        submit.follow(
            tx, api_journal, BURY, run.subject, BuryServer(reason=reason), run.record.asker,
            operation_id=str(uuid.uuid5(uuid.UUID(run.id), "bury")),
        )


class BuryServer(msgspec.Struct, frozen=True, kw_only=True):
    """A server that could not be placed. reason: for its fault."""

    reason: str


async def _move_to_cell(env: PlacingEnvironment, run: Run[BuryServer]) -> None:
    """The record first, then the mapping that names its cell; if the server is deleted in between, the record goes
    again. Spec: DEL-50."""
    cell = env.cells.all[0]
    request = await env.cells.api.read(lambda conn: build_requests.get(conn, run.subject))
    if request is not None:
        await _bury(env, run, request, run.request.reason)
    if not await env.cells.api.write(lambda conn: _is_handed_over(conn, run.subject, cell.name)):
        await cell.database.write(lambda conn: instances.erase(conn, run.subject))


def _is_handed_over(conn: sa.Connection, server: str, cell: str) -> bool:
    """Hand the server over, unless that was done before. Returns False if it was deleted."""
    if build_requests.consume(conn, server, cell) is not None:
        return True
    try:
        return build_requests.cell_of(conn, server) == cell
    except InstanceNotFound:
        return False


def _still_waiting(_tx: Tx, _run: Run[BuryServer], _failure: Failure) -> None:
    return None


def _without_secrets(request: PlaceServer) -> PlaceServer:
    clean = msgspec.structs.replace(request.request, admin_password="", injected_files=())
    return PlaceServer(request=clean)


PLACE = Operation(
    name="place",
    request=PlaceServer,
    steps=(
        Here("choose host", _choose, undo=_unclaim, timeout=3600, retries=1000, undo_owed=True),
        Here("record in cell", _record, undo=_unrecord, timeout=3600, retries=1000),
        Record("hand over", _hand_over, undo=NoUndo("from here on the cell's record is the server")),
        Here("let it build", _let_build, undo=NoUndo("the build is undone by itself"), owed=True),
    ),
    ends=_nothing,
    fails=_given_up,
    no_return="let it build",
    scrub=_without_secrets,
)

BURY = Operation(
    name="bury",
    request=BuryServer,
    steps=(
        Here("record in cell", _move_to_cell, undo=NoUndo("it is tried until the record is the server"),
             persistent=True),
    ),
    ends=_nothing,
    fails=_still_waiting,
    no_return="record in cell",
)
