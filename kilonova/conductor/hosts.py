"""What conductors make of the reports of hosts: service records, observations, recovery after a restart.

A report changes no task and no vm_state on its own; what has to be done becomes an operation.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol
from uuid import uuid4

import msgspec
import sqlalchemy as sa
import structlog

from kilonova.agent.reports import REFUSED, HostReport, PowerReport
from kilonova.bus.subjects import speaker
from kilonova.conductor.cpu_sets import objection, policies, warn_of_strays
from kilonova.conductor.power_states import observe
from kilonova.conductor.tpms import without_tpm
from kilonova.conductor.unconfirmed import confirm_overdue
from kilonova.db import instances, services
from kilonova.db.database import Database
from kilonova.db.journal import cell_journal
from kilonova.domain.clock import Clock
from kilonova.domain.errors import InstanceNotFound, KilonovaError
from kilonova.domain.instance import Fault, Instance
from kilonova.domain.operation import Asker
from kilonova.domain.states import GUEST_OFF, PowerState, TaskState, VmState
from kilonova.engine import submit
from kilonova.engine.failure import describe
from kilonova.engine.operation import Tx
from kilonova.hypervisor.guest import HostInventory
from kilonova.notifications.changes import tell_service
from kilonova.operations.build import BUILD_TASKS
from kilonova.operations.delete import DELETE, DeleteServer
from kilonova.operations.options import OperationOptions
from kilonova.operations.reboot import HARD_REBOOT_SERVER, RebootServer
from kilonova.shapes.host import Layout

log = structlog.get_logger(__name__)

_decode_report = msgspec.msgpack.Decoder(HostReport).decode
NOTED = b"noted"
STANDSTILL_TASKS = (TaskState.PAUSING, TaskState.UNPAUSING, TaskState.SUSPENDING, TaskState.RESUMING)
BY_GUEST = {
    PowerState.RUNNING: VmState.ACTIVE, PowerState.PAUSED: VmState.PAUSED, PowerState.SUSPENDED: VmState.SUSPENDED,
}
"""What a server is after such a task, by its guest."""
_decode_power = msgspec.msgpack.Decoder(PowerReport).decode


class HostRegistry(Protocol):
    """Where the inventory of hosts is recorded (placement)."""

    async def report(
        self, host: str, inventory: HostInventory, *, now: float, cell: str, kept_off: bool | None
    ) -> str:
        """Returns the uuid of the host's resource provider. kept_off: it gets no new servers, None if that stays."""
        ...

    async def heartbeat(self, host: str, now: float) -> bool:
        """Record a sign of life. Returns False for a host that is not known."""
        ...

    async def layouts(self, host: str) -> dict[str, Layout]:
        """The places of servers on a host."""
        ...


class _Known(NamedTuple):
    """What placement was last told of a host, and when."""

    inventory: HostInventory
    kept_off: bool | None
    provider: str
    told_at: float


class HostReports:
    """Handles the reports of one cell's hosts.

    Args:
        cell: uuid of the cell. wake: the cell's runner has something to do.
        resume_guests: start guests that ran when their host went down. Spec: INI-093.
    """

    def __init__(self, cell: str, database: Database, registry: HostRegistry, clock: Clock,
                 options: OperationOptions, *, resume_guests: bool = False) -> None:
        self._cell = cell
        self._database = database
        self._registry = registry
        self._clock = clock
        self._resume_guests = resume_guests
        self._options = options
        self._known: dict[str, _Known] = {}
        self._compared: dict[str, float] = {}
        self._counted: dict[str, tuple[int, int]] = {}

    async def on_report(self, subject: str, payload: bytes) -> bytes | None:
        """A host tells what it has. The answer tells a host that has started that recovery has begun."""
        report = _decode_report(payload)
        if not _speaks_for_itself(subject, report.host):
            return None
        refusal = await self._refusal(report) if report.started else ""
        if refusal:
            log.error("a host cannot serve its servers", host=report.host, reason=refusal)
            return REFUSED + refusal.encode()
        now = self._clock.now()
        provider = await self._try_to_register(report, now)
        if provider is None:
            return None
        await self._database.write(lambda conn: self._record(conn, report, provider, now))
        return NOTED

    async def _refusal(self, report: HostReport) -> str:
        """Why a host that starts must not serve, "" if it may. Nothing was changed then. Spec: INI-015, INI-024,
        INI-025, INI-033."""
        servers = await self._database.read(lambda conn: instances.on_host(conn, report.host))
        topology = report.inventory.topology
        refusal = without_tpm(report.inventory.traits, servers)
        if refusal or topology is None or not topology.cells:
            return refusal
        found = policies(servers)
        refusal = objection(topology, found)
        if not refusal and any(policy != "shared" for policy in found.values()):
            warn_of_strays(report.host, topology, await self._registry.layouts(report.host))
        return refusal

    async def _try_to_register(self, report: HostReport, now: float) -> str | None:
        """The host's provider. If placement refuses what a host that serves has now, it is told again with the next
        report; a host that starts waits. Spec: RSU-11."""
        try:
            return await self._register(report, now)
        except KilonovaError:
            log.warning("placement did not take what a host has", host=report.host, exc_info=True)
            known = self._known.get(report.host)
            return None if known is None or report.started else known.provider

    async def _register(self, report: HostReport, now: float) -> str:
        """Tell placement what the host has, and whether it gets new servers, if that has changed, or somebody else may
        have changed it there, and that it lives. Returns its provider's uuid. Spec: RSU-07."""
        known, kept_off = self._known.get(report.host), await self._kept_off(report.host)
        lasting = report.inventory.lasting()
        if known is not None and not report.started and (known.inventory, known.kept_off) == (lasting, kept_off):
            interval = self._options.update_resources_interval
            trusted = interval < 0 or now - known.told_at < interval
            if trusted and await self._registry.heartbeat(report.host, now):
                return known.provider
        while True:
            told = kept_off
            provider = await self._registry.report(
                report.host, report.inventory, now=now, cell=self._cell, kept_off=told
            )
            kept_off = await self._kept_off(report.host)
            if kept_off == told:  # else somebody has changed it meanwhile, and placement may have the older one
                break
        self._known[report.host] = _Known(lasting, kept_off, provider, now)
        return provider

    async def _kept_off(self, host: str) -> bool | None:
        """Whether the host gets no new servers, by the record of its service; None without one."""
        return await self._database.read(lambda conn: services.kept_off(conn, host))

    async def on_event(self, subject: str, payload: bytes) -> None:
        """A guest changed its power state by itself. Spec: LCE-08, LCE-09, LCE-20."""
        event = _decode_power(payload)
        if not _speaks_for_itself(subject, event.host):
            return
        now = self._clock.now()
        observed = {event.uuid: event.power_state}
        await self._database.write(lambda conn: observe(Tx(conn, now), event.host, observed))

    def _record(self, conn: sa.Connection, report: HostReport, provider: str, now: float) -> None:
        new = services.seen(conn, services.COMPUTE, report.host, version=report.version, now=now)
        if new is not None:
            tell_service(conn, "create", new, now=now, asker=Asker())
        services.report_node(conn, provider, report.host, report.inventory, now=now)
        if report.started:
            cell_journal.wake_debts(conn, report.host, now)
            self._recover(conn, report, now)
        self._compare(conn, report, now)
        confirm_overdue(Tx(conn, now), report.host, self._options.resize_confirm_window)

    def _compare(self, conn: sa.Connection, report: HostReport, now: float) -> None:
        """Compare guests with their records when it is time, and when the host has just started; again with the next
        report if a record was too fresh for that. Spec: PER-01, PER-02, PSY-02, PSY-29."""
        interval = self._options.sync_power_state_interval
        due = report.started or now - self._compared.get(report.host, 0.0) >= interval
        if interval < 0 or not due:
            return
        guests, servers = len(report.guests), instances.count_on_host(conn, report.host)
        if guests != servers and self._counted.get(report.host) != (guests, servers):
            log.warning("numbers of guests and of servers differ", host=report.host, guests=guests, servers=servers)
        self._counted[report.host] = (guests, servers)
        seen = {guest.uuid: guest.power_state for guest in report.guests}
        complete = observe(Tx(conn, now), report.host, seen, whole=True)
        self._compared[report.host] = now if complete else now - interval

    # --- recovery: comparing the hypervisor with the records --------------------------------------

    def _recover(self, conn: sa.Connection, report: HostReport, now: float) -> None:
        """After a restart of the agent. Operations go on by themselves; what no operation owns is settled here, all
        servers of the host in one transaction that is repeated until it is committed.

        Spec: INI-007, INI-009, INI-012, INI-013, INI-017, INI-020, INI-111, INI-125.
        """
        guests = {guest.uuid: guest.power_state for guest in report.guests}
        here = [instance.uuid for instance in instances.on_host(conn, report.host)]
        tx = Tx(conn, now)
        for uuid in here:
            try:
                instance = instances.get(conn, uuid, lock=True)
                if instance.host == report.host and cell_journal.holder(conn, uuid) is None:
                    self._recover_one(tx, instance, guests.get(uuid, PowerState.NOSTATE))
            except InstanceNotFound:
                continue
        for uuid in sorted(guests.keys() - set(here)):
            _warn_of_stranger(conn, report.host, uuid)

    def _recover_one(self, tx: Tx, instance: Instance, found: PowerState) -> None:
        """Whatever one server meets (but for a database that is away), the next is recovered. Spec: INI-013."""
        try:
            self._settle(tx, instance, found)
        except sa.exc.SQLAlchemyError:
            raise
        except Exception as error:
            log.exception("server not recovered", instance=instance.uuid)
            self._put_in_error(tx, instance, f"The server could not be recovered: {describe(error, '').message}")

    def _settle(self, tx: Tx, instance: Instance, found: PowerState) -> None:
        """One server that no operation works on.

        Spec: INI-071, INI-074, INI-075, INI-079, INI-093 to INI-095, INI-097 to INI-099, INI-126.
        """
        if instance.task_state is TaskState.DELETING:
            submit.submit(tx, cell_journal, DELETE, instance.uuid, DeleteServer(), _the_service_for(instance))
            return
        building = instance.task_state is not None and instance.task_state in BUILD_TASKS
        if building or instance.vm_state is VmState.BUILDING:
            self._put_in_error(tx, instance, _stopped_during(instance))
            return
        if instance.task_state is not None:
            self._clear_stray_task(tx, instance, found)
        if instance.vm_state is VmState.SOFT_DELETED:
            return
        # What is resized is meant to run, too; its operations bring the way to start it.
        meant = instance.vm_state in (VmState.ACTIVE, VmState.RESCUED)
        wanted = instance.power_state is PowerState.RUNNING and meant
        if self._resume_guests and wanted and found in GUEST_OFF:
            log.info("guest is started again", instance=instance.uuid, host=instance.host)
            again = RebootServer(recovery=True)
            submit.submit(tx, cell_journal, HARD_REBOOT_SERVER, instance.uuid, again, _the_service_for(instance))
        elif found is not instance.power_state:
            instances.update(tx.conn, instance.uuid, now=tx.now, power_state=found)

    def _clear_stray_task(self, tx: Tx, instance: Instance, found: PowerState) -> None:
        """A task state without an operation was left by something else than this engine: nobody will end it. What
        the task has made of the guest tells what the server is.

        Spec: INI-101, INI-103, INI-105, INI-107, INI-111, SUS-05, SUS-07.
        """
        reason = _stopped_during(instance)
        log.warning("task state without an operation cleared", instance=instance.uuid, reason=reason)
        is_now = instance.vm_state
        if instance.task_state in STANDSTILL_TASKS:
            is_now = BY_GUEST.get(found, is_now)
        instances.update(tx.conn, instance.uuid, now=tx.now, task_state=None, vm_state=is_now)
        _tell_why(tx, instance, reason)

    def _put_in_error(self, tx: Tx, instance: Instance, reason: str) -> None:
        """It keeps its host, so that a delete finds what stayed there. Spec: INI-112."""
        log.warning("server put in error", instance=instance.uuid, reason=reason)
        instances.update(tx.conn, instance.uuid, now=tx.now, task_state=None, vm_state=VmState.ERROR)
        _tell_why(tx, instance, reason)


def _stopped_during(instance: Instance) -> str:
    task = instance.task_state.value if instance.task_state else VmState.BUILDING.value
    return f"The service stopped during {task}."


def _tell_why(tx: Tx, instance: Instance, reason: str) -> None:
    fault = Fault(code=500, message=reason, created_at=tx.now)
    instances.add_fault(tx.conn, instance.uuid, str(uuid4()), fault)


def _the_service_for(instance: Instance) -> Asker:
    """Nobody asked: the service does it by itself, and the server's history tells it. Spec: INI-117."""
    return Asker(project_id=instance.project_id, request_id=f"req-{uuid4()}")


def _warn_of_stranger(conn: sa.Connection, host: str, uuid: str) -> None:
    """A guest whose record names another host is left alone: it may be the one that must not be lost. Spec:
    INI-070."""
    try:
        instance = instances.get(conn, uuid)
    except InstanceNotFound:
        return  # the audit's business
    log.warning("guest of a server that is recorded elsewhere", instance=uuid, here=host, host=instance.host)


def _speaks_for_itself(subject: str, host: str) -> bool:
    """Whether a message is from the host that it is about: the bus vouches for the subject, nobody for the rest."""
    if speaker(subject) == host:
        return True
    log.warning("a host speaks for another", host=speaker(subject), other=host)
    return False
